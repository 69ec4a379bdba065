"""TRL itself, run on a tiny model: its losses on pairs and labels, and their gradients, against ours on the same rows."""

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from upslope import Batch, make

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = {
    "prompt": ["a b", "c", "d d a", "f e"],
    "chosen": [" c d e f", " a", " b b", " e a c"],
    "rejected": [" f", " b c e", " a f d c a", " d"],
}
LABELS = {"prompt": PAIRS["prompt"], "completion": PAIRS["chosen"], "label": [True, False, False, True]}


def open_trainer(folder, kind, data=PAIRS, seed=1, **config):
    """TRL's trainer whose policy has moved from its reference, and one batch of all rows."""
    if kind == "CPO":
        cpo = __import__("trl.experimental.cpo", fromlist=["CPOTrainer"])
        trainer_class, config_class = cpo.CPOTrainer, cpo.CPOConfig
    else:
        trainer_class, config_class = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    args = config_class(
        output_dir=str(folder / "out"), report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        per_device_train_batch_size=len(data["prompt"]), **config,
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder) if kind == "CPO" else str(folder)
    trainer = trainer_class(
        model, args=args, train_dataset=datasets.Dataset.from_dict(data), processing_class=tokenizer
    )
    noise = torch.Generator().manual_seed(seed)
    for parameter in trainer.model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
    trainer.model.train()
    return trainer, trainer.data_collator(list(trainer.train_dataset))


def gradient_of(model):
    found = torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])
    model.zero_grad()
    return found


def logp_of(model, ids):
    return model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)


def rows_of(trainer, inputs):
    """The columns of TRL's batch, whose first half are the chosen completions."""
    ids, mask = inputs["input_ids"], inputs["completion_mask"][:, 1:].bool()
    count = len(ids) // 2
    return Batch(
        logp=logp_of(trainer.model, ids),
        ref_logp=logp_of(trainer.ref_model, ids).detach(),
        mask=mask,
        label=[1.0] * count + [0.0] * count,
        group=torch.arange(count).repeat(2),
    )


def compare(trainer, recipe, batch, loss, theirs):
    ours, _ = recipe(batch)
    ours.backward()
    gradient = gradient_of(trainer.model)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours.detach(), torch.as_tensor(loss), rtol=1e-5, atol=2e-6, check_dtype=False)
    torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=2e-6)
    print(f"{recipe.name}: loss {abs(float(ours) - float(loss)):.1e}, gradient {(gradient - theirs).abs().max():.1e}")


def compare_dpo(folder, recipe, **config):
    trainer, inputs = open_trainer(folder, "DPO", **config)
    loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    loss.backward()
    theirs = gradient_of(trainer.model)
    compare(trainer, recipe, rows_of(trainer, inputs), loss.detach(), theirs)


def test_dpo(folder):
    compare_dpo(folder, make("dpo"))
    compare_dpo(folder, make("dpo", beta=0.5), beta=0.5)
    defaults = trl.DPOConfig(output_dir=str(folder / "out"), use_cpu=True, bf16=False)
    assert (defaults.beta, defaults.loss_type, defaults.f_divergence_type) == (0.1, ["sigmoid"], "reverse_kl")


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"alpha": 1.0}, {"f_divergence_type": "forward_kl"}),
        ({"divergence": "js"}, {"f_divergence_type": "js_divergence"}),
        ({"alpha": 0.3}, {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}),
    ],
)
def test_dpo_with_other_divergences(folder, settings, config):
    compare_dpo(folder, make("dpo", **settings), **config)


def test_ipo(folder):
    compare_dpo(folder, make("ipo"), loss_type="ipo")
    compare_dpo(folder, make("ipo", beta=0.7), loss_type="ipo", beta=0.7)


def test_rdpo(folder):
    compare_dpo(folder, make("rdpo"), loss_type="robust", label_smoothing=0.1)
    compare_dpo(folder, make("rdpo", flip_rate=0.3, beta=0.5), loss_type="robust", label_smoothing=0.3, beta=0.5)


def test_hinge(folder):
    compare_dpo(folder, make("slic_hinge@trl"), loss_type="hinge")
    compare_dpo(folder, make("slic_hinge@trl", beta=2.0), loss_type="hinge", beta=2.0)


def test_likelihood_of_the_preferred_completion(folder):
    compare_dpo(folder, make("rpo_sft@trl"), loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2])
    compare_dpo(folder, make("rpo_sft@trl", coefficient=1.5), loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.5])


def test_label_smoothing_is_in_the_aot_loss_of_one_pair(folder):
    """TRL's "sigmoid" ignores label_smoothing; "aot" sorts the pairs of a batch, which one pair alone is not changed by."""
    trainer, inputs = open_trainer(folder, "DPO", loss_type="aot", label_smoothing=0.2)
    count, total = len(PAIRS["prompt"]), 0.0
    for pair in range(count):
        one = {name: column[[pair, pair + count]] for name, column in inputs.items()}
        loss = trainer._compute_loss(trainer.model, one, return_outputs=False) / count
        loss.backward()
        total += float(loss.detach())
    theirs = gradient_of(trainer.model)
    compare(trainer, make("cdpo", smoothing=0.2), rows_of(trainer, inputs), total, theirs)


@pytest.mark.parametrize("seed", [1, 4])
def test_kto(folder, seed):
    trainer, inputs = open_trainer(
        folder, "KTO", LABELS, seed, loss_type="kto", beta=0.5, desirable_weight=1.2, undesirable_weight=0.7
    )
    loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    loss.backward()
    theirs = gradient_of(trainer.model)
    mask, other = inputs["completion_mask"][:, 1:].bool(), inputs["KL_completion_mask"][:, 1:].bool()
    columns = {}
    for name, model in (("mismatched_logp", trainer.model), ("mismatched_ref_logp", trainer.ref_model)):
        after, column = logp_of(model, inputs["KL_input_ids"]).detach(), torch.zeros(mask.shape)
        for row in range(len(mask)):
            following = (row + 1) % len(mask)  # this row's completion after that row's prompt
            column[row, mask[row]] = after[following, other[following]]
        columns[name] = column
    batch = Batch(
        logp=logp_of(trainer.model, inputs["input_ids"]),
        ref_logp=logp_of(trainer.ref_model, inputs["input_ids"]).detach(),
        mask=mask,
        label=inputs["label"].float(),
        **columns,
    )
    recipe = make("kto", beta=0.5, desirable=1.2, undesirable=0.7)
    point = float(recipe.prepare(batch).reference_point[0])
    assert point == pytest.approx(trainer._metrics["train"]["kl"][-1], abs=1e-5)
    assert (point > 0) == (seed == 1), "one seed each on the two sides of the clamp"
    compare(trainer, recipe, batch, loss.detach(), theirs)


def test_simpo(folder):
    config = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 0.75}
    trainer, inputs = open_trainer(folder, "CPO", **config)
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, inputs)
    loss.backward()
    theirs = gradient_of(trainer.model)
    sides = ("chosen", "rejected")
    width = max(inputs[f"{side}_input_ids"].shape[1] for side in sides)

    def both(name, padding):
        columns = [inputs[f"{side}_{name}"] for side in sides]
        return torch.cat([torch.nn.functional.pad(c, (0, width - c.shape[1]), value=padding) for c in columns])

    ids, labels = both("input_ids", 0), both("labels", -100)
    count = len(ids) // 2
    batch = Batch(
        logp=logp_of(trainer.model, ids),
        mask=labels[:, 1:] != -100,
        label=[1.0] * count + [0.0] * count,
        group=torch.arange(count).repeat(2),
    )
    compare(trainer, make("simpo", beta=2.5, margin=0.75), batch, loss.detach(), theirs)


@pytest.mark.parametrize("margin", [None, 0.3])
@pytest.mark.parametrize("centering", [None, 0.05])
def test_reward_model(folder, margin, centering):
    data = PAIRS if margin is None else PAIRS | {"margin": [margin] * len(PAIRS["prompt"])}
    trainer, inputs = open_trainer(folder, "Reward", data, center_rewards_coefficient=centering)
    count = len(PAIRS["prompt"])
    model = trainer.model
    loss = trainer.compute_loss(model, dict(inputs))
    loss.backward()
    theirs = gradient_of(model)
    hidden = model.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    batch = Batch(
        logp=torch.zeros(inputs["input_ids"].shape),
        value=model.score(hidden).squeeze(-1),
        mask=inputs["attention_mask"].bool(),
        label=[1.0] * count + [0.0] * count,
        group=torch.arange(count).repeat(2),
    )
    recipe = make("reward_model_bt", margin=margin or 0.0, centering=centering or 0.0)
    compare(trainer, recipe, batch, loss.detach(), theirs)
