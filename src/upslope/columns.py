"""What the columns of a Batch mean: shape, kind of number, what makes one that is absent."""

from dataclasses import dataclass

SOURCES = ("policy", "expert", "replay", "teacher", "tempered", "earlier")
"""Meaning of the integers in the column `source`: who wrote the row.

policy, tempered   the policy of this step; at another temperature, in a second draw
replay             the policy of an earlier step, whose rollouts are used again
earlier            the reference, or an earlier checkpoint of the policy, in this step
expert             the data, which gives completions
teacher            the task, whose reference answer it is
"""


@dataclass(frozen=True)
class Column:
    """What a known column means. `shape` is "R", "RT" or "RT*" (any further axes); `kind` its type of number."""

    shape: str
    kind: str
    meaning: str
    remedy: str = ""


GAUSSIAN = "which a denoising sampler gives and a language model does not have"

COLUMNS = {
    "logp": Column("RT", "float", "log-prob of each token under the policy, with gradient"),
    "mask": Column("RT", "bool", "tokens that the policy wrote and that are trained on (default: all)"),
    "old_logp": Column("RT", "float", "log-prob under the policy before the update", "pass logp.detach() on-policy"),
    "behavior_logp": Column("RT", "float", "log-prob under the distribution that was sampled from"),
    "ref_logp": Column("RT", "float", "log-prob under the frozen reference policy", "or drop the part with PART=None"),
    "teacher_logp": Column("RT", "float", "log-prob under the teacher", "pass the teacher's, or train with --teacher"),
    "teacher_kl": Column("RT", "float", "KL(policy || teacher) of the next-token distributions, before the update"),
    "divergence": Column("RT", "float", "of the policy's next-token distribution from the teacher's, with gradient"),
    "entropy": Column("RT", "float", "entropy of the policy's next-token distribution, in nats"),
    "value": Column("RT", "float", "the critic's value of the state before each token, with gradient"),
    "old_value": Column("RT", "float", "the critic's value before the update", "pass value.detach() on-policy"),
    "anchor_logp": Column(
        "RT", "float", "log-prob under the policy at the start of the step, where old_logp is an older one's"
    ),
    "masked_logp": Column("RT", "float", "log-prob before the update, with a part of the prompt hidden"),
    "mismatched_logp": Column(
        "RT", "float", "log-prob of the completion after another prompt of the step, before the update"
    ),
    "mismatched_ref_logp": Column("RT", "float", "the same under the frozen reference policy"),
    "reward": Column("R", "float", "reward of the completion"),
    "token_reward": Column("RT", "float", "reward per token, the completion's included"),
    "label": Column("R", "float", "probability that the row is the preferred one of its pair, or is desirable"),
    "valid": Column(
        "R", "bool", "False where the reward failed: the row is left out of everything (default: all True)"
    ),
    "truncated": Column("R", "bool", "the completion hit the length limit"),
    "advantage": Column("RT", "float", "advantage, constant; [R] is copied to the row's tokens"),
    "returns": Column("RT", "float", "target of the critic"),
    "ended": Column("RT", "bool", "an episode ends with this step, by itself or by a time limit"),
    "next_value": Column("RT", "float", "the critic's value of what the step led to, 0 where the episode terminated"),
    "cost": Column(
        "RT",
        "float",
        "cost of each step, a function of the policy's parameters",
        "which a simulation with gradient gives",
    ),
    "post_value": Column("RT", "float", "the second critic's value of the state after the action, with gradient"),
    "old_post_value": Column("RT", "float", "the same before the update", "pass post_value.detach() on-policy"),
    "post_state": Column("RT*", "float", "the state between the action and what is drawn after it"),
    "weight": Column("RT", "float", "multiplies the surrogate, constant (default: ones)"),
    "tokens": Column("RT", "int", "token ids"),
    "turn": Column("RT", "int", "turn of a dialogue that a token belongs to"),
    "prompt": Column("R", "int", "prompt that the row was conditioned on"),
    "group": Column("R", "int", "rows that are compared with each other", "pass group=torch.arange(R) // G"),
    "prompt_key": Column("R", "int", "identity of the prompt over the whole run"),
    "answer": Column("R", "int", "rows with the same final answer have the same number"),
    "prediction": Column("R", "float", "the number that the completion gives as its answer"),
    "stratum": Column("R", "int", "structural label of the completion, such as its number of tool calls"),
    "progress": Column("R", "float", "share of the run's steps that are done, 0 at the first (default: 0)"),
    "step": Column("R", "int", "the run's step, from 1 (default: 1)"),
    "expected_reward": Column("R", "float", "what the prompt's completions have earned so far, told by the curriculum"),
    "trajectory": Column("R", "int", "episode that the row belongs to"),
    "component_weight": Column("RT*", "float", "weights of a mixture's components, with gradient"),
    "best_component": Column("RT", "int", "the component whose action a value network finds best"),
    "fresh": Column("R", "bool", "played in this step, and not in an earlier one whose rows are used again"),
    "source": Column("R", "int", f"where the row came from: index into {SOURCES}"),
    "grad_norm_squared": Column(
        "R",
        "float",
        "squared norm of the gradient of the completion's log-prob, over all parameters, before the update",
    ),
    "predicted_gain": Column("RT", "float", "change of the token's objective that a step on it alone would bring"),
    "predicted_shift": Column("RT", "float", "how far it would move the policy: on average over tokens, a KL"),
    "mean": Column("RT*", "float", "mean of a Gaussian action, with gradient", GAUSSIAN),
    "old_mean": Column("RT*", "float", "mean under the policy before the update", GAUSSIAN),
    "ref_mean": Column("RT*", "float", "mean under the frozen reference policy", GAUSSIAN),
    "noise_scale": Column("RT", "float", "standard deviation of a Gaussian action", GAUSSIAN),
    "step_size": Column("RT", "float", "time that a step of the sampler takes", GAUSSIAN),
    "hidden": Column("RT*", "float", "hidden state that predicts each token"),
    "log_distribution": Column("RT*", "float", "log-probs of the whole vocabulary"),
}
