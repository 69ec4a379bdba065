"""ActorCritic: a method that learns from stored transitions, as parts."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from upslope.actor_critic.critics import reads
from upslope.assembly import Assembly, as_tuple
from upslope.errors import UsageError
from upslope.parts.network import POINTS
from upslope.recipe import Part, Parts


@dataclass(frozen=True)
class ActorCritic(Assembly):
    """The parts of a method, one field per stage; all but `policy`, `actor`, `data`, `rollout` and `update` may be None.

        data -> [value] -> target -> regression + penalty          critic
                        -> [advantage -> weight] -> actor -> behavior       policy, then temperature, then targets

    rollout       how the environments are played, and where a step of the run ends
    exploration   what is done to the policy's action there; None: its own sample
    data, reward  which transitions a batch is of; what is done to their rewards
    selection     which episodes of a log, and how often; None: every transition alike
    relabel       columns of the log that are computed anew, all at once, as V changes
    policy        the network of the actor and its distribution
    critic        the ensemble of Q networks                       targets       how the target networks follow
    ensemble      how target members become one value              value         V's network and loss
    target        y [B]                                            regression    what is minimised of Q - y
    penalty       further summands of the critics' loss            temperature   alpha
    advantage, weight   of stored actions [B], for an actor that raises their likelihood
    proposer      a network that proposes actions
    actor         what the policy minimises                        behavior      what it becomes, near the data
    update        how often and how far

    Build variants with `replace`, settings with `with_settings`.
    """

    policy: Part
    actor: Part
    data: Part
    rollout: Part
    update: Part
    exploration: Part | None = None
    selection: Part | None = None
    relabel: Part | None = None
    reward: Part | None = None
    critic: Part | None = None
    value: Part | None = None
    ensemble: Part | None = None
    target: Part | None = None
    regression: Part | None = None
    penalty: Parts = None
    advantage: Part | None = None
    weight: Part | None = None
    proposer: Part | None = None
    behavior: Part | None = None
    temperature: Part | None = None
    targets: Part | None = None
    name: str = field(default="recipe", compare=False)
    terms: ClassVar[tuple[Any, ...]] = ()  # type: ignore[misc]  # every summand is a stage
    STAGES: ClassVar[tuple[str, ...]] = (
        "rollout", "exploration", "data", "selection", "relabel", "reward", "policy", "critic", "value", "ensemble", "target",
        "regression", "penalty", "advantage", "weight", "proposer", "actor", "behavior", "temperature", "targets", "update",
    )  # fmt: skip

    @property
    def needs(self) -> frozenset[str]:
        """Columns read besides observation, action, reward, terminated and next_observation: a log has to give them."""
        return frozenset().union(*(part.needs for _, part in self.stages()))

    def any_reads(self, what: str) -> bool:
        """Whether any part declares that it reads this, e.g. `reads_target_policy`."""
        return any(reads(part, what) for _, part in self.stages())

    def check(self) -> "ActorCritic":
        """Raises UsageError where a part needs another that the recipe lacks."""
        critic = ("ensemble", "target", "regression", "targets")
        if self.critic is not None:
            for stage in critic:
                self._require(stage, "a critic learns from")
        elif found := [stage for stage in (*critic, "penalty") if getattr(self, stage) is not None]:
            raise UsageError(
                f"'{self.name}' has {found[0]} but no critic. Add critic=Critics(), or leave {found[0]} out."
            )
        if self.any_reads("reads_critic"):
            self._require("critic", "one of its parts reads")
        asked, members = getattr(self.ensemble, "of", None), getattr(self.critic, "members", None)
        if asked is not None and members is not None and asked > members:
            raise UsageError(
                f"'{self.name}' asks {asked} of {members} critics (ensemble.of, critic.members). Take at most as many as there are."
            )
        if self.any_reads("reads_value"):
            self._require("value", "one of its parts reads")
        if self.any_reads("reads_proposer"):
            self._require("proposer", "one of its parts reads")
        if self.weight is not None:
            self._require("advantage", "weights are made of")
            if not reads(self.actor, "weighted"):
                raise UsageError(
                    f"'{self.name}' has weights, which {type(self.actor).__name__} does not read. Take actor=Likelihood()."
                )
        single = getattr(self.policy, "distribution", "") in POINTS
        if single and (reads(self.actor, "reads_density") or self.temperature is not None):
            raise UsageError(
                f"'{self.name}' has a deterministic policy, which has no density: policy.distribution=squashed or bounded has one; "
                "or take actor=Imitation() and temperature=None."
            )
        for setting in ("shared", "normalize"):
            if getattr(self.policy, setting, False):
                raise UsageError(
                    f"'{self.name}' does not read policy.{setting}: its critics have networks of their own, and observations are "
                    "standardized by a log's moments (data.standardize=True). Leave it out."
                )
        if self.behavior is not None and reads(self.behavior, "reads_policy_q") and reads(self.actor, "weighted"):
            raise UsageError(
                f"'{self.name}': {type(self.behavior).__name__} scales the Q that the actor maximises, and "
                f"{type(self.actor).__name__} maximises none. Take actor=MaximizeQ()."
            )
        return self

    def _require(self, stage: str, why: str) -> None:
        if getattr(self, stage) is None:
            raise UsageError(f"'{self.name}' has no part for {stage}, which {why}.")

    def objective(self) -> list[str]:
        """The losses as lines of a formula."""
        lines = []
        combine = self.ensemble.describe() if self.ensemble is not None else ""
        entropy = "alpha log pi(a|s) " if self.temperature is not None else ""

        def text(part: Part) -> str:
            return part.describe().replace("{ensemble}", combine).replace("{entropy}", entropy)

        if self.critic is not None and self.regression is not None and self.target is not None:
            summands = [text(part) for part in (self.regression, *as_tuple(self.penalty))]
            lines += [f"critic loss = {' + '.join(summands)}", f"  y = {text(self.target)}"]
        if self.value is not None:
            lines.append(f"V's loss = {text(self.value)}")
        if self.proposer is not None:
            lines.append(f"proposer's loss = {text(self.proposer)}")
        lines.append(f"actor loss = {'objective' if self.behavior else text(self.actor)}")
        if self.behavior is not None:
            lines[-1] = f"actor loss = {text(self.behavior)}"
            lines.append(f"  objective = {text(self.actor)}")
        named = (("w", self.weight), ("A", self.advantage), ("R", self.reward))
        for symbol, part in (*named, ("over the log", self.relabel), ("drawn", self.selection)):
            if part is not None:
                lines.append(f"  {symbol} = {text(part)}")
        if self.temperature is not None:
            lines.append(f"temperature: {text(self.temperature)}")
        if self.targets is not None:
            lines.append(f"targets: {text(self.targets)}")
        if self.exploration is not None:
            lines.append(f"played: {text(self.exploration)}")
        return lines

    def trainer(self) -> Any:
        """The second loop."""
        from upslope.actor_critic.trainer import ActorCriticTrainer

        return ActorCriticTrainer

    def reading(self) -> str:
        """What it reads of a transition."""
        of_log = sorted(self.needs - getattr(self.relabel, "makes", frozenset()))
        further = f", and of a log {', '.join(of_log)}" if of_log else ""
        return f"reads s, a, r, s' and whether the episode ended for good{further}"
