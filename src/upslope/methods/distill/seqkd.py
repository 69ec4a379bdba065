"""SeqKD: sequence-level distillation, maximum likelihood of completions that the teacher wrote.

    loss  mean over sequences of the sum over tokens of -logp, the sequences drawn from the teacher    [R, T]

Differs from sft:  whose completions they are, and the sum over a completion's tokens in place of a mean over all tokens.
Limits:  over the teacher's samples the mean gradient is that of KL(teacher || policy) of whole completions, the forward one.
Expects:  data with prompt and completion, the latter the teacher's (--data): sampled, or its most likely one by beam search, which
    then is another objective. The teacher itself takes no part in the run.
Source:  Kim and Rush 2016 (arXiv:1606.07947), section 3.2, who take the most likely sequence by beam search (5).
Deviations:  this trainer does not sample from a teacher: its completions come in a file.
Not this:  gkd with beta=0 on the same completions sees the teacher's whole distributions (word-level distillation). On the
    policy's own completions: opd.
Claim:  the baseline of distillation: 0.690 [0.674, 0.712] in the study "teachers" (5 seeds, equal teacher tokens), where
    opd has 0.701 and the teacher 0.746; it rises as fast and then falls back.
"""

from upslope.methods.supervised.sft import sft
from upslope.parts.aggregate import SequenceSum
from upslope.recipe import Recipe
from upslope.registry import method


@method(paper="1606.07947", title="Sequence-Level Knowledge Distillation", parent="sft")
def seqkd() -> Recipe:
    return sft().replace(aggregate=SequenceSum())
