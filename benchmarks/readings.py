"""What the learning studies say, in words: written after looking at the tables of the run that is committed."""

READINGS = {
    "first": """With one update per step every method is on-policy: clips do nothing, and `gspo` and `gmpo` are the same run. Most
differences from `grpo` are smaller than the spread over seeds. `reinforce` without a baseline is ahead: with rewards of 0 and 1
it only raises what was right, which sharpens the policy faster (it ends with the lowest entropy). `dapo` samples half as much
again for a step; read at equal rollouts it is behind.""",
    "entropy": """Entropy falls from 0.52 to about 0.25 and pass@8 does not fall with it: the collapse that these methods are
made against does not happen here within 480 updates. `clip_cov`, `kl_cov`, `aepo_arbitrary` and `lp_reg` cannot be told from
GRPO by entropy, pass@1 or pass@8. `epo_agent` ends with a little more entropy at the same pass@1. `high_entropy_20` keeps most
entropy and learns more slowly: with answers of a few tokens there are few tokens that do not matter. At the published share of
2e-4 `clip_cov` selects one token of a mini-batch; two percent do not change the picture.""",
    "degenerate": """Very easy prompts (a model that solves 93 % of them): two groups of three have equal rewards.
`spo_single_stream` gains a little over GRPO at equal rollouts, `dapo` about as much, `bnpo` nothing; the comparison between
prompts in `copo`, and `riskpo`'s advantages, which are never positive, cost accuracy. Very hard prompts (1 % solved): no method
learns from 10,240 rollouts, and all end below where they began.""",
    "length": """Answers have five tokens, so no bias towards length can show: `dr_grpo`, `hapo` and `gtpo_trajectory` are as GRPO
within a hundredth, in length, too. `disco` with its published constraint is far slower at four updates per step, as the exact
lab explains: on stale rows the constraint is the larger part of its gradient.""",
    "aggressive": """At ten times the learning rate GRPO learns a little and then breaks. `oblr_po`, whose rate follows the
gradient's signal-to-noise ratio, is as good as GRPO at the small rate, or better. `capo_curvature` breaks, too, and further: its
published bounds are absolute, for steps of 1.5e-5, and reject a third and more of the tokens here instead of under a tenth.""",
    "stale": """`topr` is ahead of PPO's clip at every number of updates, and most at 16, where all others lose: failures that
have become unlikely no longer push. With one update its lead is that of its fixed baseline. `bapo_balanced` and `gspo` cannot be
told from PPO's clip; `cispo` falls behind at 16 updates, since its clipped tokens keep their gradient. `r2vpo` with our constants
(its paper gives none) cannot raise its dual variable fast enough within 16 updates. `remix` reuses earlier steps in place of
sampling; here its steps count as those that sample, so its saving of rollouts does not show, only what staleness costs.""",
    "teachers": """All methods close most of the distance to the teacher within 60 steps. `vopd` is ahead of `opd` by a little in
every seed, as less noise should have it; `gkd`, which compares whole distributions, is ahead of both, and quickest. `seqkd`, on the
teacher's own completions, rises as fast at first and then falls back: it imitates the teacher's mistakes at their full rate.
`g_opd` (lambda = 1.25) goes on rising where `opd` stays, up to the teacher's own level; that it surpasses the teacher did not
show within 60 steps. `scope_opd` does surpass it, since a verifier tells it which completions to reinforce.""",
    "demonstrations": """All methods that use demonstrations and rewards in the same step are ahead of rewards alone, `srft`
excepted. Beside plain imitation, which costs no sampling at all and is strong here (its demonstrations are always right),
less is left of the claim: only `hpt`, which takes the demonstration just where no completion was right, is clearly ahead of
`sft`; `chord` and `rl_plus` are level with it, `luffy` and `sft, then grpo` a little behind, `chord@phi`, whose share of
imitation is small throughout, more so. Early on, `hpt`, `rl_plus` and `luffy` learn fastest. `srft` stays behind GRPO: it
weighs the policy's own right completions by a tenth, and with answers of seven tokens its imitation term does not make up for
it.""",
    "over_optimization": """Over-optimization shows plainly, and what is said to help, helps. Under `dpo` the true reward rises
to a KL of about 1.4 nats and then falls while the KL goes on growing. A term for the likelihood of the preferred answers
(`rpo_sft`, at TRL's weight of 0.2) lets it rise to the end, at a third of the KL. `hypo_online_kl` at the published 1e-4 cannot
be told from `dpo` here; at 0.1 it holds the KL at half a nat, and the true reward is still rising at the end. PPO on a reward
model of the same pairs (which orders 0.93 of held-out pairs rightly) gains less and stays at its level: the policy soon finds
answers that the reward model overrates. `salsa` begins as a model fine-tuned on the preferred answers, far better than the
embedded one, and loses nearly all of that: with its small beta (0.02, a guess) and the average of two fine-tuned models as the
reference, the KL grows to 7 nats. That a soup holds the policy better than a single reference did not show; beta would have to
be tuned for it.""",
    "bandits": """Where ten good arms in a row are far from the reference, samples of the policy itself and a loss that also pushes
down win, as the paper has it: after 50 steps `rloo`, `grpo` and `ppo` are at 0.35 to 0.48, those that only raise at 0.10 to 0.23,
and `rloo` differs from `reinforce` in nothing but the baseline. At the reference most are within 0.06 of each other, `pref_ft`
and `reinforce` behind. Three things the claim leaves out: with a single arm there is no such order, since 5 % of the reference's
own samples are good; `dpo` and `ipo`, which use two of ten samples, are slow at first and among the best
at the end; and after 150 steps nearly all arrive, `ppo` (held by its KL and its clip) and `reinforce` excepted. Stale samples cost
the more, the less a loss lowers: with the reference's only, `rloo` reaches 0.77, `dpo` 0.52, best-of-N and `reinforce` 0.13 and
less. Using fewer samples ten times each costs `rloo` and `dpo` half of their first 50 steps, and the others nothing.

Online against offline: with 128 stored pairs online DPO is ahead at every KL budget. With 2000, four for every sequence, it is
not: what the gap was made of is coverage. Nor does it help to sample anew and let a judge decide that was fitted to the same 128
pairs, when it has a number of its own for every sequence and generalizes to none. That offline training orders the reference's
pairs better and still wins less reproduces with 2000 pairs (0.87 against 0.74 of them, win rates of 0.85 and 0.96 at the end); with
128 it wins less and orders them alike.""",
    "offline": """Four or five seeds of each on Pendulum and in the maze, up to three on HalfCheetah, one on Hopper, of
the slow methods what the tables say. BC < TD3+BC < ReBRAC holds on Pendulum with intervals far apart, and in all three seeds of
HalfCheetah, where TD3+BC's scores are far apart. In the maze TD3+BC is far above BC, and ReBRAC is below it with the coefficients
that are our default, 0.01 and 0.01, which its authors search for each log; with those that they found for a maze, 0.003 and
0.001, it cannot be told from TD3+BC, although its mean is higher. Hopper's log orders nothing after 50,000 updates, with one
seed: all are near the log's own quality. IQL is above BC wherever it was run, CQL on both logs it was run on, A2PR and PRDC above
TD3+BC on both. On 95 % random and 5 % expert data trajectory weighting lifts TD3+BC from 26 to 99 on Pendulum, and IQL in the
maze from 80 to 91; the other two pairs cannot be told apart. SAC-N and EDAC, on
Pendulum alone, are both at the expert's score, where nothing is left to gain. Playing on in the maze, AWAC gains and IQL loses 27
points in 10,000 actions: the rise that going online is to bring is not IQL's here.

The loss is of the expectile, not of playing (one seed of each run named here, two of tau = 0.5). What is stored when IQL plays
was played again in the maze, and agrees. On the log alone, 60,000 updates take it from 93, at 10,000, to 67. With tau = 0.5 in
place of 0.7 it plays on from 86 and 90 to 95 and 93. A V of the better actions' values is too large near the goal, where steps
differ much: at the steps that end an episode there it is 170 at last, and 136 is earned; so to end it is weighted by nothing,
and the policy waits beside the goal (with tau = 0.5 V is 121 there). What does not help: a constant rate of the actor
(update.actor_schedule=constant, as the authors have it when they play on: 54 at last), half of each batch from the log (71),
smaller rewards (reward.scale=150: 45). Rewards as they are (reward.scale=8.22) weigh actions so mildly that it begins at 62, and
ends at 83.

TD3+BC on Pendulum is BC at its published alpha = 2.5, and nothing is wrong with
it: lambda divides by the mean of |Q|, which comes to 250 where every reward is negative, while Q differs by a
few between actions, so that the term that keeps to the log outweighs it; and the log's actions are mostly
random. With alpha = 100, which is rebrac's ratio of the two terms for one dimension of action, it comes as far
as rebrac: there the two differ by that weight alone. `prdc` and `a2pr` keep alpha = 2.5 and do not suffer from
it: they keep near not this state's logged action but the nearest one, or one that the critic prefers.""",
    "sample_complexity": """The order that the theory gives does not show: the plain gradient ends with the smallest mean gap,
HARPG a little behind, the two with normalised steps that fall as 1 / t far behind. The means are made by the runs that are
furthest behind: the medians are about a fifth of them or less. Slopes of the mean are between -0.20 and -0.38, those of the
three methods flatter than their bounds, and the intervals of the plain gradient's and HARPG's overlap. The median run of HARPG
(-0.80) and of N-HARPG (-0.60) is steeper than its bound of -0.5, that of N-PG-IGT (-0.40) is at its own, and the plain
gradient's (-0.76) is far beyond its. Two things set this table apart from the theorem: its Fisher matrix is degenerate, and the
noise of the gradient vanishes with the gap, since a policy that is sure of its sequence has no variance, so that momentum has
less and less to average away, while the normalised steps add up to no more than log t. What momentum is to do, it does: |d -
grad J|^2 is 17 to 30 times less than the plain gradient's early and 50 times or more at the end, each at its own parameters.
Against momentum without transport, with the same schedule, the look-ahead lowers it by a seventh early and more than a third at
the end; the gap does not follow.""",
}
