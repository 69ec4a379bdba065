"""Who writes the samples beside given completions: the policy as it is, the reference, or an earlier checkpoint of the policy."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.policies.plans import score_in_passes
from upslope.recipe import State
from upslope.rollout import Rollouts, Sampling


class Drawn(NamedTuple):
    """Who writes: "policy", "reference" or "pool", and the weights of the checkpoint that was drawn from that."""

    sampler: str
    weights: Mapping[str, Tensor] | None = None


class Writers:
    """Generates and scores with the weights of the policy, the reference or a checkpoint; the policy's own are as before after it.

    actors      of the run: the policy and, for "reference", the reference as it is at the call
    engine      which generates with the policy's weights
    """

    def __init__(self, actors: Any, engine: Any, *, tokens_per_pass: int) -> None:
        self.actors, self.engine, self.tokens_per_pass = actors, engine, tokens_per_pass
        self._of_reference: Any = None

    def write(
        self,
        who: Drawn,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> Rollouts:
        """`samples` completions of each prompt."""
        with self._as(who) as (engine, _):
            found: Rollouts = engine.generate(prompts, [samples] * len(prompts), sampling, generator, {})
        return found

    def score(self, who: Drawn, rollouts: Rollouts) -> Tensor:
        """Log-prob of each token [R, T] at temperature 1, 0 where masked."""
        with self._as(who) as (_, policy):
            scored = score_in_passes(policy, rollouts, frozenset({"logp"}), tokens_per_pass=self.tokens_per_pass)
        return scored["logp"]

    @contextmanager
    def _as(self, who: Drawn) -> Iterator[tuple[Any, Any]]:
        """An engine and a policy with the weights of the writer."""
        from upslope.policies.scorer import AdapterlessScorer  # which imports transformers; an environment needs none

        policy, reference = self.actors.policy, self.actors.reference
        if who.weights is not None:
            with with_weights(policy, who.weights):
                yield self.engine, policy
        elif who.sampler != "reference":
            yield self.engine, policy
        elif isinstance(reference, AdapterlessScorer):
            with policy.reference():
                yield self.engine, policy
        else:
            if self._of_reference is None or self._of_reference.policy is not reference.policy:
                self._of_reference = type(self.engine)(reference.policy)
            yield self._of_reference, reference.policy


@contextmanager
def with_weights(policy: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The policy has these trained weights, by name, within the block. Nothing is copied back: its own are put aside."""
    trained = {name: parameter for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    own = {name: parameter.data for name, parameter in trained.items()}
    try:
        for name, parameter in trained.items():
            parameter.data = weights[name].to(parameter.device, parameter.dtype)
        yield
    finally:
        for name, parameter in trained.items():
            parameter.data = own[name]


def remember(state: State, policy: Any, *, every: int, size: int, keep: str) -> State:
    """The state of a pool one step on: {"steps": steps begun, "pool": [{"step": steps done, "weights": by name}, ...]}.

    A checkpoint is added every `every` steps, the first before any. Of more than `size`, the latest stay; or, with keep="spread",
    every second one, and from then on they are added half as often, so that all are equally far apart.
    """
    steps, pool = state.get("steps", 0), list(state.get("pool", ()))
    apart = pool[1]["step"] - pool[0]["step"] if keep == "spread" and len(pool) > 1 else every
    if not pool or steps - pool[-1]["step"] >= apart:
        copies = {name: weight.to("cpu", copy=True) for name, weight in policy.state_dict().items()}
        pool.append({"step": steps, "weights": copies})
    if len(pool) > size:
        pool = pool[-size:] if keep == "latest" else pool[::2]
    return {**state, "steps": steps + 1, "pool": pool}


def draw(state: State, sampler: str, generator: torch.Generator) -> Drawn:
    """The writer of a step; of an empty pool, which is that of a run that has not begun, the policy itself."""
    pool = state.get("pool", ()) if sampler == "pool" else ()
    if not pool:
        return Drawn(sampler)
    chosen = int(torch.randint(len(pool), (), generator=generator))
    return Drawn(sampler, pool[chosen]["weights"])
