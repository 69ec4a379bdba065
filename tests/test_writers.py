"""Who writes the samples: the policy, the reference or a checkpoint; and which checkpoints are kept."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from upslope.collect import seeded
from upslope.engines.local import LocalEngine
from upslope.policies.language import LanguagePolicy
from upslope.policies.lora import LoraSettings
from upslope.policies.scorer import FrozenScorer, reference_of
from upslope.rollout import Sampling
from upslope.writers import Drawn, Writers, draw, remember, with_weights

PROMPTS, SAMPLING = [[5, 6, 7], [8]], Sampling(max_tokens=6)


@dataclass
class Actors:
    policy: Any
    reference: Any = None


def moved(policy, by=0.05):
    """The policy with other weights."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return policy


def written(writers, who, samples=2):
    return writers.write(who, PROMPTS, samples, SAMPLING, seeded("samples"))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["weights", "adapters"])
def test_each_writer_has_its_own_weights_and_leaves_the_policys(toy, lora):
    torch.manual_seed(0)
    policy = LanguagePolicy.load(toy, lora=lora)
    actors = Actors(policy, reference_of(policy))
    pool = remember({}, policy, every=1, size=3, keep="latest")["pool"]
    initial = FrozenScorer(policy)
    moved(policy, by=0.2)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    writers = Writers(actors, LocalEngine(policy), tokens_per_pass=64)
    now, earlier, reference = (Drawn("policy"), Drawn("pool", pool[0]["weights"]), Drawn("reference"))
    for who, scorer in ((now, policy), (earlier, initial), (reference, initial)):
        found = written(writers, who)
        with torch.no_grad():
            expected = scorer.score(found)["logp"]
        torch.testing.assert_close(found.logp, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(writers.score(who, found), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(writers.score(now, found), writers.score(earlier, found), atol=1e-2)
    assert all(torch.equal(before[name], weight) for name, weight in policy.state_dict().items())


def test_the_weights_are_put_back_when_writing_fails(toy):
    policy = LanguagePolicy.load(toy)
    own = {name: parameter.data_ptr() for name, parameter in policy.model.named_parameters()}
    zeros = {name: torch.zeros_like(weight) for name, weight in policy.state_dict().items()}
    seen = []

    def writing():
        with with_weights(policy, zeros):
            seen.append(any(parameter.any() for parameter in policy.parameters()))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        writing()
    assert seen == [False]
    assert {name: parameter.data_ptr() for name, parameter in policy.model.named_parameters()} == own


def test_the_reference_is_the_one_of_the_moment(toy):
    policy = LanguagePolicy.load(toy)
    actors = Actors(policy, FrozenScorer(policy))
    writers = Writers(actors, LocalEngine(policy), tokens_per_pass=64)
    first = written(writers, Drawn("reference"))
    actors.reference = FrozenScorer(moved(policy, by=0.5))
    assert not torch.equal(written(writers, Drawn("reference")).logp, first.logp)


def test_a_checkpoint_is_kept_every_so_many_steps(toy):
    policy, state = LanguagePolicy.load(toy), {"cursor": 4}
    for _ in range(8):
        given = {**state, "pool": list(state.get("pool", ()))}
        after = remember(state, policy, every=3, size=2, keep="latest")
        assert [one["step"] for one in state.get("pool", ())] == [one["step"] for one in given["pool"]], "not changed"
        state = after
        moved(policy)
    assert (state["cursor"], state["steps"]) == (4, 8)
    assert [one["step"] for one in state["pool"]] == [3, 6]
    name = next(iter(policy.state_dict()))
    assert not torch.equal(state["pool"][0]["weights"][name], state["pool"][1]["weights"][name])


class Bare:
    def state_dict(self):
        return {"w": torch.zeros(1)}


@pytest.mark.parametrize(
    ("keep", "size", "kept"),
    [
        ("latest", 4, [60, 70, 80, 90]),
        ("latest", 1, [90]),
        ("spread", 4, [0, 40, 80]),
        ("spread", 7, [0, 20, 40, 60, 80]),
        ("spread", 2, [0, 80]),
        ("spread", 1, [0]),
    ],
)
def test_which_are_kept(keep, size, kept):
    state = {}
    for _ in range(100):
        state = remember(state, Bare(), every=10, size=size, keep=keep)
    found = [one["step"] for one in state["pool"]]
    assert found == kept


def test_checkpoints_are_drawn_alike_and_by_the_key():
    state = {"pool": [{"step": step, "weights": {"w": step}} for step in range(3)]}
    drawn = [draw(state, "pool", seeded(7, step, "checkpoint")).weights["w"] for step in range(600)]
    assert drawn == [draw(state, "pool", seeded(7, step, "checkpoint")).weights["w"] for step in range(600)]
    for step in range(3):
        assert 150 < drawn.count(step) < 250
    assert draw({}, "pool", seeded(0)) == Drawn("pool")
    assert draw(state, "policy", seeded(0)) == Drawn("policy"), "a pool of an earlier setting is not read"
