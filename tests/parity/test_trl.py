"""TRL itself, run on a tiny model: its rollouts, its advantages, its loss and its gradient, against ours on the same rows."""

import itertools

import pytest
import torch

from upslope import Batch, make
from upslope.parts.aggregate import ConstantSum, LocalTokenMean, RowMean, SequenceMean, SequenceSum
from upslope.parts.kl import KL
from upslope.parts.overlong import OverlongFilter
from upslope.parts.sampling import Sample

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore")
GROUP, LONGEST = 4, 6
PROMPTS = ["a b", "c d"]


def reward(completion_ids, **_):
    return [len(set(ids)) + 0.3 * ids.count(3) for ids in completion_ids]


def run_trl(folder, kind, micro_batches=1, **config):
    """Loss and gradient of TRL, and the batch that it trained on, off-policy by a fixed noise in old_logp."""
    trainer_class, config_class = {
        "grpo": lambda: (trl.GRPOTrainer, trl.GRPOConfig),
        "rloo": lambda: (trl.RLOOTrainer, trl.RLOOConfig),
        "gmpo": lambda: (gmpo_of_trl().GMPOTrainer, gmpo_of_trl().GMPOConfig),
    }[kind]()
    rows = GROUP * len(PROMPTS)
    given = {"max_completion_length": LONGEST, "num_generations": GROUP, "per_device_train_batch_size": rows} | config
    args = config_class(
        output_dir=str(folder / "out"),
        report_to=[],
        use_cpu=True,
        bf16=False,
        num_iterations=2,
        disable_tqdm=True,
        **given,
    )
    trainer = trainer_class(
        str(folder), reward, args=args, train_dataset=datasets.Dataset.from_dict({"prompt": PROMPTS})
    )
    noise = torch.Generator().manual_seed(1)
    if getattr(trainer, "ref_model", None) is not None:
        for parameter in trainer.ref_model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=noise)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = micro_batches
    args.steps_per_generation = micro_batches
    torch.manual_seed(2)
    inputs = trainer._generate_and_score_completions([{"prompt": p} for p in PROMPTS for _ in range(GROUP)])
    mask = inputs["completion_mask"].bool()
    old = trainer._get_per_token_logps_and_entropies(
        trainer.model, torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1), mask.shape[1],
    )[0].detach()  # fmt: skip
    columns = {"old_logp": old + 0.5 * torch.randn(old.shape, generator=noise) * mask}
    if kind == "rloo":
        reference = trainer.ref_model(torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1))
        columns["ref_logp"] = logp_of(reference, inputs).detach()
        columns["score_logp"] = old
        inputs["old_logps"] = (columns["old_logp"] * mask).sum(1)
    else:
        inputs["old_per_token_logps"] = columns["old_logp"]
        columns["ref_logp"] = inputs.get("ref_per_token_logps")
    losses = []
    for part in torch.arange(rows).tensor_split(micro_batches):
        piece = {key: value[part] if value.ndim else value for key, value in inputs.items() if torch.is_tensor(value)}
        loss = trainer._compute_loss(trainer.model, piece)
        loss.backward()
        losses.append(float(loss.detach()))
    ids = [row[keep].tolist() for row, keep in zip(inputs["completion_ids"], scored(inputs, config), strict=True)]
    logp = logp_of(trainer.model(torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)), inputs)
    truncated = torch.tensor([row[-1] > 1 for row in ids])  # the end or the padding token ends a completion
    batch = {
        "logp": logp, "mask": scored(inputs, config), "reward": torch.tensor(reward(ids)), "truncated": truncated,
        "group": torch.arange(rows) // GROUP, **columns,
    }  # fmt: skip
    return trainer, sum(losses), inputs["advantages"], batch


def gmpo_of_trl():
    return __import__("trl.experimental.gmpo", fromlist=["GMPOTrainer"])


def scored(inputs, config):
    """The tokens of the completions, those that TRL masks for truncation included (their rewards count)."""
    if not config.get("mask_truncated_completions"):
        return inputs["completion_mask"].bool()
    ended = (inputs["completion_ids"] == 1).cumsum(1)
    return (ended == 0) | ((ended == 1) & (inputs["completion_ids"] == 1))


def logp_of(output, inputs):
    ids = inputs["completion_ids"]
    return output.logits[:, -ids.shape[1] - 1 : -1].log_softmax(-1).gather(2, ids.unsqueeze(2)).squeeze(2)


def gradient_of(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def compare(folder, recipe, kind="grpo", micro_batches=1, **config):
    trainer, loss, advantages, columns = run_trl(folder, kind, micro_batches, **config)
    theirs = gradient_of(trainer.model).clone()
    trainer.model.zero_grad()
    score_logp = columns.pop("score_logp", None)
    if score_logp is None:
        prepared = recipe.prepare(Batch(**columns))
    else:  # RLOO's penalty reads the log-probs at sampling, before the noise that makes the step off-policy
        prepared = recipe.prepare(Batch(**(columns | {"old_logp": score_logp}))).replace(old_logp=columns["old_logp"])
    ours, _ = recipe.loss(prepared)
    ours.backward()
    moved = (columns["logp"] - columns["old_logp"])[columns["mask"]].exp()
    assert ((moved < 0.8) | (moved > 1.2)).any(), "no ratio leaves the interval: the clip is not tested"
    assert theirs.abs().max() > 1e-3
    kept = prepared.trained
    torch.testing.assert_close(prepared.per_row("advantage")[kept], advantages[kept], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(ours.detach(), torch.tensor(loss), rtol=1e-5, atol=2e-6, check_dtype=False)
    torch.testing.assert_close(gradient_of(trainer.model), theirs, rtol=1e-4, atol=2e-6)
    print(f"loss {abs(float(ours) - loss):.1e}, gradient {(gradient_of(trainer.model) - theirs).abs().max():.1e}")


def test_grpo_preset_is_the_default(folder):
    compare(folder, make("grpo@trl"))
    defaults = trl.GRPOConfig(output_dir=str(folder / "out"), use_cpu=True, bf16=False)
    assert make("grpo@trl").rollout == Sample(defaults.num_generations, temperature=defaults.temperature)
    assert (defaults.beta, defaults.loss_type, defaults.scale_rewards, defaults.delta) == (0.0, "dapo", "group", None)
    assert defaults.max_completion_length == make("dr_grpo@trl").aggregate.length


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo"])
def test_aggregation(folder, loss_type):
    aggregate = {
        "grpo": SequenceMean(),
        "bnpo": LocalTokenMean(GROUP),
        "dr_grpo": ConstantSum(LONGEST),
        "dapo": make("grpo@trl").aggregate,
        "luspo": SequenceSum(),
    }[loss_type]
    compare(folder, make("grpo@trl", aggregate=aggregate), loss_type=loss_type, micro_batches=2)


@pytest.mark.parametrize(("weighted", "estimator"), itertools.product([True, False], ["k3"]))
def test_kl_in_the_loss(folder, weighted, estimator):
    penalty = KL(beta=0.5, estimator=estimator, ratio_weighted=weighted)
    recipe = make("grpo@trl", regularizer=penalty, aggregate=SequenceMean())
    compare(folder, recipe, loss_type="grpo", beta=0.5, use_bias_correction_kl=weighted)


def test_two_sided_clip_is_dual_clip(folder):
    compare(folder, make("grpo@trl", dual=1.5), delta=1.5)


def test_dr_grpo_preset(folder):
    recipe = make("dr_grpo@trl", **{"aggregate.length": LONGEST})
    compare(folder, recipe, loss_type="dr_grpo", scale_rewards="none")


def test_cispo_preset(folder):
    compare(folder, make("cispo@trl"), loss_type="cispo", epsilon_high=5.0)
    compare(folder, make("cispo@trl", ratio_max=1.1), loss_type="cispo", epsilon_high=1.1)


def test_gspo_preset(folder):
    gspo = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}
    compare(folder, make("gspo@trl"), **gspo)
    compare(folder, make("gspo@trl", ratio_low=0.8, ratio_high=1.2), **(gspo | {"epsilon": 0.2, "epsilon_high": 0.2}))


def test_sequence_ratio_times_length_is_luspo(folder):
    recipe = make("gspo@trl", ratio_low=0.8, ratio_high=1.2, aggregate=RowMean(by_length=True))
    compare(folder, recipe, loss_type="luspo", importance_sampling_level="sequence")


def test_overlong_filter_is_masking_truncated_completions(folder):
    recipe = make("grpo@trl", rows=OverlongFilter(drop_truncated=True))
    compare(folder, recipe, mask_truncated_completions=True)


def test_rloo_preset(folder):
    compare(folder, make("rloo@trl"), kind="rloo")
    compare(folder, make("rloo@trl", **{"reward.beta": 0.5}), kind="rloo", beta=0.5)
    defaults = trl.RLOOConfig(output_dir=str(folder / "out"), use_cpu=True, bf16=False)
    recipe = make("rloo@trl")
    assert (defaults.beta, defaults.epsilon, defaults.num_generations) == (
        recipe.reward.beta, 0.2, recipe.rollout.group_size,
    )  # fmt: skip


def test_gmpo_preset(folder):
    compare(folder, make("gmpo@trl"), kind="gmpo")
