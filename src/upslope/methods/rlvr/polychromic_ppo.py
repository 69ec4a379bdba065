"""Polychromic PPO: random sets of completions are scored by mean reward times diversity, and members share the score.

    f_j   (mean reward of set j) * d_j, d_j = distinct answers in the set / n, or 0 if all n > 1 are the same
    A_j   f_j - mean over the prompt's sets j = 1..M
    loss  mean over sequences, and over the tokens of each, of N / (M n) times the sum over the sets j that hold it of
          max(-A_j r, -A_j clip(r, 0.8, 1.2)), plus 0.005 (r - 1 - log r), for N completions per prompt
    The M sets of n = 4 are drawn anew in every step, without replacement inside a set.
    @control, in an environment: from 2 of the states that each copy was in, N = 8 vines each, which are trajectories to the
    episode's end. R_i is what a vine earned, its answer what it did (where it ended, or where it was). Its first W = 5
    steps have the advantages of its sets; the steps of the copies have GAE with a critic, and ppo's clip.

Differs from grpo:  advantages of sets; one clipped loss per completion and set; KL(old || new) instead of k3; 2 epochs.
    @control from ppo: vines and their advantage; that KL instead of entropy; 2 epochs; advantages are not normalised.
Limits:  n = 1: d = 1, and the sum over sets has the expectation of the mean baseline, (1 - 1/M) (R_i - mean). In general the
    expected gradient is N/n (1 - 1/M) (1 - n/N) times that of E[f] (by enumeration): sets that share members take from its
    length, not from its direction. A set's score does not depend on the order of its members. Prompts with at most n
    completions have one set only, and no advantage.
Expects:  rewards in [0, 1], and answers that can be told apart: `answer`, given by the reward function, or else a
    completion's last line. At n = 2 one success beside a different failure scores 0.5, two equal successes 0, two different
    ones 1: where only one answer is right, diversity can only come from wrong answers. @control: returns in reward_range, and an
    environment that repeats itself from its seed and actions, which is how a state is put back.
Source:  arXiv:2509.25424, by second-hand notes and a third party's replication, which also gave N, n, M, epochs and the KL
    coefficient; no official code was found. This page is a reconstruction.
Deviations:  in the language form a state is a prompt, its vines are the responses, a set is a subset of them, and all
    tokens of a response get the set's advantage. The factor N / (M n) makes the loss a mean over the pairs of set and
    member. KL(old || new) is estimated at the sampled tokens. Both epochs use the policy of the rollouts as the old one.
    n = 1 counts as diverse; the paper's rule says nothing of it. @control: vine states are drawn from the 128 steps of a
    copy, not from each episode; the critic learns from vines within their window too; what the environment draws after a
    state differs between vines; gamma = 0.99 and lr = 2.5e-4 are ppo's (theirs 1 and 1e-5, for a pretrained policy).
Claim:  pass@1 as PPO's and pass@k higher: @control, yes, but most of it by its other settings, docs/results/polychromic.md. The
    language form is not tested.
Not this:  a bonus for entropy or novelty of single completions: a completion gains by the company it is drawn with.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from upslope.batch import Batch
from upslope.methods.control.ppo import ppo
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.sampling import Update
from upslope.parts.sets import ClippedRatioPerSet, SetAdvantage
from upslope.parts.steps import StepUpdate
from upslope.parts.surrogate import token_ratio
from upslope.parts.vines import ClippedRatioPerVine, VineAdvantage, Vines
from upslope.recipe import Part, Recipe
from upslope.registry import method, preset


@dataclass(frozen=True)
class KLFromOld(Part):
    """beta (r - 1 - log r) per token [R, T]: KL(old || new), estimated without bias at tokens that the old policy sampled."""

    beta: float = 0.005
    formula: ClassVar[str] = "{beta} (r - 1 - log r)"
    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})

    def __call__(self, batch: Batch) -> Tensor:
        ratio = token_ratio(batch)
        return self.beta * (ratio - 1 - ratio.log())


@method(paper="2509.25424", title="Polychromic Objectives for Reinforcement Learning", parent="grpo")
def polychromic_ppo() -> Recipe:
    return grpo().replace(
        advantage=SetAdvantage(),
        surrogate=ClippedRatioPerSet(ratio_low=0.8, ratio_high=1.2),
        regularizer=KLFromOld(beta=0.005),
        update=Update(epochs=2),
    )


@preset("control", version="vines from the states of a rollout in an environment")
def polychromic_ppo_control() -> Recipe:
    return ppo().replace(
        rollout=Vines(environments=4, steps=128, states=2, vines=8),
        advantage=VineAdvantage(sets=4, size=4, window=5, gamma=0.99, lam=0.95),
        control=None,
        surrogate=ClippedRatioPerVine(ratio_low=0.8, ratio_high=1.2),
        regularizer=KLFromOld(beta=0.005),
        update=StepUpdate(minibatches=4, epochs=2, value_coefficient=0.5),
    )
