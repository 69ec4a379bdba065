"""SRPPO: PPO in which the reward is how much more likely fine-tuning has made a completion.

    R_i   sum over tokens of (log-prob of the fine-tuned model - log-prob of the pretrained one), at the last token   [R]
    the rest is rlhf_ppo's, from the fine-tuned model on: rho = R at the last token - beta (old_logp - ref_logp), and so on

Differs from rlhf_ppo:  the reward; no score of a verifier is learned from.
Limits:  its optimum is sft * (sft / pretrained)^(1 / beta) / Z, which is that of distillation with extrapolation 1 + 1 /
    beta from the pretrained to the fine-tuned model. Equal models give a reward of 0.
Expects:  --model the fine-tuned model, which is the reference, too, and --teacher the pretrained one that it came from;
    prompts with or without answers, others than those of fine-tuning as well. The task's verifier is shown in the metrics
    and not learned from, but a completion whose reward fails is left out. A pass of each of the two frozen models, and a
    critic.
Source:  arXiv:2510.21090; no code was found. The reward and that it is paid at the end are the paper's; beta is from
    memory, here rlhf_ppo's 0.05.
Deviations:  none known beside those of rlhf_ppo.
Not this:  the same log-ratios as rewards of their tokens, which invite other lengths.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.rlhf.rlhf_ppo import rlhf_ppo
from upslope.parts.kl import KLInReward
from upslope.recipe import Part, Recipe
from upslope.registry import method


@dataclass(frozen=True)
class FineTuningReward(Part):
    """R [R], as above: ref_logp is the fine-tuned model's, teacher_logp the pretrained one's. Replaces the task's reward."""

    formula: ClassVar[str] = "sum over tokens of (ref_logp - teacher_logp)"
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp", "teacher_logp"})
    makes: ClassVar[frozenset[str]] = frozenset({"reward"})

    def __call__(self, batch: Batch) -> Tensor:
        return ((batch.ref_logp - batch.teacher_logp) * batch.mask).sum(1)


@method(
    paper="2510.21090",
    title="Self-Rewarding PPO: Aligning Large Language Models with Demonstrations Only",
    parent="rlhf_ppo",
)
def self_rewarding_ppo() -> Recipe:
    return rlhf_ppo().replace(reward=(FineTuningReward(), KLInReward(beta=0.05, level="token")))
