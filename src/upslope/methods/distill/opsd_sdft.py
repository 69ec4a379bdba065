"""OPSD, SDFT and SDPO: the policy learns, on its own completions, what it would say had it read the answer.

    q     the teacher's next-token distribution after the prompt and a demonstration                   [R, T, V]
    p     the policy's after the prompt alone                                                          [R, T, V]
    loss  mean over sequences of the mean over tokens of KL(q || p), differentiated through p alone
    teacher  weights w <- 0.01 * the policy's + 0.99 * w after every step, at first the policy's

Differs from gkd:  the teacher and its prompt; the forward KL; the policy's completions alone; the mean per sequence.
Limits:  without a demonstration and with teacher=live there is nothing to learn. beta=1, no demonstration and teacher=frozen is gkd
    with beta=1 on the policy's own completions; beta between the two is the divergence of gkd.
Expects:  a policy that reads demonstrations: what it cannot use, it cannot teach. Tasks with reference answers: one row of
    each group, which only the teacher reads; demonstration="sibling" takes another completion that was right instead, with
    rollout.reference_rows=0 (SDPO). An update takes a pass of the teacher more, and its weights memory.
Source:  arXiv:2601.18734 and 2601.20802; for SDFT the code of SalesforceAIResearch/CaOPD, distil_trainer.py. opsd_sdft@caopd
    leaves out the first 3 tokens, as that code does.
Deviations:  demonstrations are put into the prompt by one template, where its last message ends, or before a plain prompt; cut to
    what the model's context leaves. Distributions are whole; TRL's SDFT takes the most likely words and one for the rest.
Not this:  maximum likelihood of the demonstration: the completions are the policy's own. With an average the teacher drifts
    along; G-OPD's authors saw that collapse and freeze it (teacher=frozen).
"""

from upslope.methods.distill.gkd import gkd
from upslope.parts.expert import PolicyRows
from upslope.parts.privileged import LateSequenceMean, PrivilegedDivergence
from upslope.parts.sampling import Sample
from upslope.recipe import Recipe
from upslope.registry import method, preset


@method(
    paper="2601.18734",
    title="Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
    parent="gkd",
)
def opsd_sdft() -> Recipe:
    return gkd().replace(
        rollout=Sample(group_size=9, reference_rows=1),
        rows=PolicyRows(),
        surrogate=PrivilegedDivergence(),
        aggregate=LateSequenceMean(),
    )


@preset("caopd", version="2604.16830")
def opsd_sdft_caopd() -> Recipe:
    return opsd_sdft().replace(aggregate=LateSequenceMean(skip=3))
