"""CaOPD: self-distillation in which the confidence that a completion states is replaced by how often the policy is right.

    P     share of the group's completions that are right                                              [groups]
    y     the completion up to its confidence, and then "Confidence: P" with two decimals
    loss  mean over sequences of the mean over tokens after the first 3 of KL(q || p), on y, as in opsd_sdft; the teacher reads,
          after the demonstration, that P is the confidence to state

Differs from opsd_sdft:  completions are rewritten, after their verification; what the teacher reads; the first 3 tokens.
Limits:  the rewritten confidence depends on the group alone, so that right and wrong completions of a prompt state the same. Where
    every completion of a group is right, it is opsd_sdft's target.
Expects:  prompts that ask for a last line "Confidence: c", c in [0, 1], and a verifier that reads the answer before it; 8 or more
    completions per prompt, since P is a mean over them; rewards of which those above `threshold` are right. Costs as opsd_sdft.
Source:  arXiv:2604.16830; the authors' code (SalesforceAIResearch/CaOPD, distil_trainer.py and eval/calibration_metrics.py).
Deviations:  a body that leaves no room is cut to what the model's context leaves, theirs to their limit of the completion. Our
    wording of the note to the teacher. The metrics confidence/brier, ece, over and ranking are of what was stated before.
Not this:  a reward for calibration: nothing is learned of which completions are right, but how often.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.diagnostics.calibration import brier, expected_calibration_error, overconfidence, pairwise_ranking
from upslope.methods.distill.opsd_sdft import opsd_sdft
from upslope.parts.expert import is_expert
from upslope.parts.privileged import LateSequenceMean, PrivilegedDivergence
from upslope.recipe import Recipe, State
from upslope.registry import method
from upslope.rollout import Rollouts


@dataclass(frozen=True)
class CalibratedDivergence(PrivilegedDivergence):
    """PrivilegedDivergence on completions whose last `tag` is followed by the group's share of right ones."""

    tag: str = "Confidence:"
    note: str = "The confidence to state is {}.\n"

    @property
    def reads_reward(self) -> bool:
        """Always: how many of a group are right."""
        return True

    def rewrite(self, rollouts: Rollouts, batch: Batch) -> tuple[list[tuple[str, str] | None], dict[str, float]]:
        """New completions of the policy's rows, and how well calibrated the old ones were."""
        share, expert = self._share(batch), is_expert(batch)
        bodies = [text.rpartition(self.tag) for text in rollouts.text]
        texts: list[tuple[str, str] | None] = []
        for row, (before, tag, after) in enumerate(bodies):
            body = before.rstrip() if tag else after.rstrip()
            texts.append(None if expert[row] else (f"{body}\n" if body else "", f"{self.tag} {share[row]:.2f}"))
        return texts, self._metrics([after if tag else "" for _, tag, after in bodies], batch)

    def context(self, rollouts: Rollouts, batch: Batch, state: State) -> tuple[list[str], State]:
        found, state = super().context(rollouts, batch, state)
        share = self._share(batch)
        return [text and text + self.note.replace("{}", f"{share[row]:.2f}") for row, text in enumerate(found)], state

    def _share(self, batch: Batch) -> Tensor:
        """P of each row's group, [R]."""
        own = batch.replace(valid=batch.valid & ~is_expert(batch))
        return own.group_mean((own.reward > self.threshold).to(batch.dtype))[0][batch.group]

    def _metrics(self, stated: list[str], batch: Batch) -> dict[str, float]:
        """Of the policy's rows that state a number within [0, 1]."""
        numbers = [re.match(r"\s*(\d*\.?\d+)", text) for text in stated]
        values = [float(number[1]) if number else -1.0 for number in numbers]
        own = batch.valid & ~is_expert(batch)
        rows = [row for row, value in enumerate(values) if 0 <= value <= 1 and own[row]]
        found = {"confidence/stated": len(rows) / max(int(own.sum()), 1)}
        if not rows:
            return found
        both = torch.tensor([values[row] for row in rows]), (batch.reward[rows] > self.threshold).float()
        found |= {"confidence/brier": brier(*both), "confidence/ece": expected_calibration_error(*both)}
        return found | {"confidence/over": overconfidence(*both), "confidence/ranking": pairwise_ranking(*both)}


@method(
    paper="2604.16830",
    title="CaOPD: Calibration-Aware On-Policy Distillation",
    parent="opsd_sdft",
)
def caopd() -> Recipe:
    return opsd_sdft().replace(surrogate=CalibratedDivergence(), aggregate=LateSequenceMean(skip=3))
