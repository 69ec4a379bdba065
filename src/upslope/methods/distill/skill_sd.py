"""Skill-SD: grpo, and a pull to the policy's own opinion of its completions after reading what worked and what failed before.

    u     logp - teacher_logp, the teacher being the policy at the start of the step, told a skill     [R, T]
    r     exp(logp - old_logp), with gradient                                                          [R, T]
    loss  grpo's + 0.001 * mean over the batch's tokens of r (exp(-u) - 1 + u)

    skill of a prompt: of those kept from earlier steps the one with the highest mean reward + c sqrt(ln N / n), N the times that
    any of the prompt's was told and n that it was itself; one that was never told comes first

Differs from grpo:  the second term.
Limits:  coefficient=0 is grpo; so is a first visit to a prompt, where there is no skill and u = 0. With r, the mean gradient of
    the second term is, on-policy, that of KL(policy || teacher) at the prefixes sampled; without it that of KL(teacher || policy).
Expects:  prompts that come again, so that a skill is there to be told: few questions, or many epochs. One forward pass more. The
    policy is never told, so that it needs no skill when it is used.
Source:  project page k1xe.github.io/skill-sd (arXiv:2604.10674) by way of public reading notes; no code was found. Coefficient
    0.001: 0.01 was too strong, 0.0005 too weak.
Deviations:  a reconstruction. There a language model writes skills of an analysis of success, mistakes and a workflow, at any time;
    here a program does after every step: the best and the worst completion of the group, as far as they were right and wrong.
    What a skill earns is the group's mean reward in the steps that told it, which the notes do not say; c = 1 is ours. At most 4
    are kept of each prompt, without those of lowest reward. The agent's turns are one completion here.
Not this:  opsd_sdft compares whole distributions and has no reward; a skill in the policy's own prompt would be needed in use.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.aggregate import TokenMean
from upslope.parts.kl import kl_estimate
from upslope.parts.surrogate import token_ratio
from upslope.recipe import Part, Recipe, State, Stats, Term
from upslope.registry import method
from upslope.rollout import Rollouts


@dataclass(frozen=True)
class SkillDistillation(Part):
    """r k3(logp, teacher_logp) [R, T], as above, and the skills that the teacher is told.

    The state: per prompt, by its key, up to `kept` skills with what they earned in all and how often they were told.
    """

    exploration: float = 1.0
    kept: int = 4
    threshold: float = 0.5
    teacher: Literal["frozen", "live", "ema"] = "live"
    rate: float = 0.01
    formula: ClassVar[str] = "r k3(logp, teacher_logp), the teacher ({teacher}) told a skill"
    stateful: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "teacher_logp"})

    def __post_init__(self) -> None:
        if self.kept < 1:
            raise UsageError(f"SkillDistillation(kept={self.kept}): at least 1 skill of a prompt must be kept.")

    def init(self) -> State:
        return {"bank": {}}

    def __call__(self, batch: Batch) -> Tensor:
        return token_ratio(batch) * kl_estimate(batch.logp, batch.teacher_logp, "k3")

    def stats(self, batch: Batch) -> Stats:
        return {"teacher/kl": kl_estimate(batch.logp, batch.teacher_logp, "k3")}

    def context(self, rollouts: Rollouts, batch: Batch, state: State) -> tuple[list[str], State]:
        """The skill of each row's prompt, and the bank after this step."""
        bank, told = dict(state["bank"]), [""] * len(batch)
        for group in batch.group.unique().tolist():
            rows = ((batch.group == group) & batch.valid).nonzero()[:, 0].tolist()
            if not rows:
                continue
            key = str(int(batch.prompt_key[rows[0]]))
            skills, earned = list(bank.get(key, [])), float(batch.reward[rows].mean())
            if skills:
                chosen = self._choose(skills)
                for row in (batch.group == group).nonzero()[:, 0].tolist():
                    told[row] = skills[chosen]["text"]
                skills[chosen] = _told(skills[chosen], earned)
            bank[key] = self._kept(skills, self._skill(rollouts, batch, rows))
        return told, {"bank": bank}

    def _choose(self, skills: list[dict[str, Any]]) -> int:
        """Place of the skill with the highest upper bound; of equal ones the first."""
        times = max(sum(skill["told"] for skill in skills), 1)

        def bound(skill: dict[str, Any]) -> float:
            if not skill["told"]:
                return math.inf
            mean: float = skill["earned"] / skill["told"]
            return mean + self.exploration * math.sqrt(math.log(times) / skill["told"])

        return max(range(len(skills)), key=lambda place: bound(skills[place]))

    def _skill(self, rollouts: Rollouts, batch: Batch, rows: list[int]) -> str:
        """What the group's best and worst completion teach; of equal rewards the earlier trajectory."""
        place = {row: int(batch.trajectory[row]) for row in rows}
        best = max(rows, key=lambda row: (float(batch.reward[row]), -place[row]))
        worst = min(rows, key=lambda row: (float(batch.reward[row]), place[row]))
        lines = [f"This was right: {rollouts.text[best]}\n"] if batch.reward[best] > self.threshold else []
        lines += [f"This was wrong: {rollouts.text[worst]}\n"] if batch.reward[worst] <= self.threshold else []
        return "".join(lines)

    def _kept(self, skills: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
        """The skills and a new one that was not told yet, without the one that earns least where there are too many."""
        if any(skill["text"] == text for skill in skills):
            return skills
        grown = [*skills, {"text": text, "earned": 0.0, "told": 0}]
        if len(grown) <= self.kept:
            return grown
        known = [place for place, skill in enumerate(grown) if skill["told"]] or [0]
        least = min(known, key=lambda place: grown[place]["earned"] / max(grown[place]["told"], 1))
        return [skill for place, skill in enumerate(grown) if place != least]


def _told(skill: dict[str, Any], earned: float) -> dict[str, Any]:
    return {**skill, "earned": skill["earned"] + earned, "told": skill["told"] + 1}


@method(
    paper="2604.10674",
    title="Skill-SD: Skill-Conditioned Self-Distillation for Multi-turn LLM Agents",
    parent="grpo",
)
def skill_sd() -> Recipe:
    return grpo().replace(terms=(Term(SkillDistillation(), TokenMean(), coefficient=0.001),))
