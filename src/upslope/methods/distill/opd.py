"""OPD: on-policy distillation, the teacher's log-prob of each token that the policy samples as that token's advantage.

    A     teacher_logp - old_logp, its own for every token and not normalized                          [R, T]
    r     exp(logp - old_logp)                                                                         [R, T]
    loss  mean over the batch's tokens of -A r

Differs from reinforce:  the advantage; the ratio in place of logp; the mean over tokens.
Limits:  on-policy the mean gradient is that of KL(policy || teacher) at the prefixes that were sampled, and A = 0 throughout where
    the policy is the teacher. discount=1 adds what a token does to the divergence after it: the gradient of the KL of whole
    completions.
Expects:  a teacher with the policy's tokens (--teacher), better than it on the completions that the policy writes itself. It
    costs a forward pass of the teacher beside the policy's forward and backward pass. Rewards, where there are any, are measured,
    not used.
Source:  Lu and Thinking Machines Lab 2025, "On-Policy Distillation"; thinking-machines-lab/tinker-cookbook,
    distillation/train_on_policy.py.
Deviations:  the cookbook adds the advantage to that of the environment's reward, which is 0 in pure distillation; here there is
    distillation only. Its sum over tokens is a mean here.
Not this:  gkd with beta=1 compares whole distributions, with the same mean gradient and no noise of the sampled token; vopd takes
    part of that noise away. A KL penalty in the reward (grpo with KLInReward) acts through the return.
"""

from upslope.parts.aggregate import TokenMean
from upslope.parts.distill import TeacherAdvantage
from upslope.parts.sampling import Sample, Uniform, Update
from upslope.parts.surrogate import ImportanceRatio
from upslope.recipe import Recipe
from upslope.registry import method


@method(paper="Thinking Machines Lab 2025", title="On-Policy Distillation", parent="reinforce")
def opd() -> Recipe:
    return Recipe(
        curriculum=Uniform(),
        rollout=Sample(group_size=4),
        advantage=TeacherAdvantage(),
        surrogate=ImportanceRatio(),
        aggregate=TokenMean(),
        update=Update(),
    )
