"""GKD: the divergence of whole next-token distributions from the teacher's, on completions of the policy and of the data.

    p, q  next-token distributions of the policy and of the teacher; m = beta q + (1 - beta) p         [R, T, V]
    D     beta KL(q || m) + (1 - beta) KL(p || m); KL(q || p) for beta = 0, KL(p || q) for beta = 1    [R, T]
    loss  mean over the batch's tokens of D, differentiated through p alone

Limits:  beta=1 on the policy's own completions is opd without the noise of the sampled token. beta=0 on the teacher's is
    word-level distillation, whose sampled form is seqkd. D / beta tends to the forward KL as beta falls to 0, so a small beta has
    its direction at beta times its size.
Expects:  a teacher with the policy's tokens (--teacher); a task with reference answers, since one of the two completions of each
    prompt is the reference, or rollout.reference_rows=0. Of whole distributions a few positions at a time are held, so that
    it takes little more memory than opd (make bench, 32k words). They are computed again in backward, which makes an update of
    a small model about twice as long as opd's.
Source:  Agarwal et al. 2023 (arXiv:2306.13649), algorithm 1; beta 0.5, lambda 0.5 and temperature 0.9 as in TRL's GKDTrainer.
Deviations:  lambda is a share of every group here, reference_rows of group_size, not the chance of a coin. Data of completions
    alone (lambda = 0) is rollout=FromData(kind="demonstrations"). The teacher's own completions are data like others.
Not this:  no gradient goes through the sampling: that the policy's words lead to other prefixes is left out (minillm has it).
Claim:  ahead of opd by +0.026 [+0.021, +0.032] in the study "teachers" (5 seeds, equal teacher tokens), all completions
    being the policy's (reference_rows=0).
"""

from upslope.parts.aggregate import TokenMean
from upslope.parts.distill import TeacherDivergence
from upslope.parts.sampling import Sample, Uniform, Update
from upslope.recipe import Recipe
from upslope.registry import method


@method(
    paper="2306.13649",
    title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
)
def gkd() -> Recipe:
    return Recipe(
        curriculum=Uniform(),
        rollout=Sample(group_size=2, temperature=0.9, reference_rows=1),
        surrogate=TeacherDivergence(beta=0.5),
        aggregate=TokenMean(),
        update=Update(),
    )
