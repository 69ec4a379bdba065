"""The loop on a small random model: it learns, resumes bit for bit, and says why where it cannot."""

import json

import pytest
import torch

from upslope import Trainer, UsageError
from upslope.methods.rlvr.remix import Reincarnation
from upslope.parts.sampling import Sample, Update
from upslope.registry import make
from upslope.rollout import Example, Outcome
from upslope.runs.metrics import read_metrics


class LettersJudge:
    """Reward: the share of a completion's characters that are lower case letters; a stand-in for any verifier."""

    def __init__(self, outcome=None):
        self.outcome = outcome or (lambda text: Outcome(sum("a" <= c <= "z" for c in text) / max(len(text), 1)))

    def score(self, examples, completions, completion_ids=None):
        return [self.outcome(text) for text in completions]


class LettersTask:
    """Prompts "p0", "p1", ..."""

    name, solved_at = "letters", 0.9

    def __init__(self, outcome=None):
        self.judge = LettersJudge(outcome)

    def examples(self, split):
        return [Example(f"{split}-{i}", f"{split[0]}{i}", {"answer": i}) for i in range(24)]

    def close(self):
        pass


SMALL = {"max_tokens": 8, "eval": {"prompts": 4, "samples": 2, "every": 0}, "prompts_per_step": 4, "threads": 1}


def trained(toy, method="grpo", task=None, **settings):
    with Trainer(method, model=toy, task=task or LettersTask(), **{**SMALL, **settings}) as trainer:
        return trainer.train()


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.parts.actors.policy.model.parameters()])


@pytest.mark.parametrize("method", ["reinforce", "rloo", "grpo", "ppo_llm"])
def test_learns(toy, method):
    trainer = trained(toy, method, steps=25, optimizer={"lr": 3e-3}, group_size=8)
    rewards = [row["reward"] for row in trainer.rows[1:]]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


def test_rows_have_the_promised_metrics(toy):
    rows = trained(toy, steps=2).rows
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert {"eval/pass@1", "eval/pass@1_low", "eval/pass@2", "eval/prompts"} <= rows[0].keys() & rows[2].keys()
    wanted = {
        "reward",
        "loss",
        "grad_norm",
        "lr",
        "kl",
        "entropy",
        "length/mean",
        "groups/zero_variance",
        "sampler_gap/max",
        "time/update",
    }
    assert wanted <= rows[1].keys()
    assert rows[1]["sampler_gap/max"] < 1e-4


@pytest.mark.parametrize("settings", [{"tokens_per_pass": 1}, {"tokens_per_pass": 60}, {"packing": "padded"}])
def test_result_does_not_depend_on_micro_batches_or_packing(toy, settings):
    whole, split = trained(toy, steps=1), trained(toy, steps=1, **settings)
    torch.testing.assert_close(weights(whole), weights(split), rtol=0, atol=2e-5)
    assert whole.rows[1]["loss"] == pytest.approx(split.rows[1]["loss"], abs=1e-5)


def test_recomputed_old_logp_is_the_samplers(toy):
    one, two = trained(toy, steps=1, old_logp="sampler"), trained(toy, steps=1, old_logp="recompute")
    torch.testing.assert_close(weights(one), weights(two), rtol=0, atol=2e-5)


def test_rows_without_advantage_are_not_computed_and_change_nothing(toy):
    """Without a regularizer only groups whose rewards differ cost a pass; a KL of weight 0 forces every row through."""

    def half(text):
        return Outcome(float(text > "M"))

    dropped = trained(toy, "dr_grpo", task=LettersTask(half), steps=2)
    whole = trained(
        toy,
        make("dr_grpo").replace(regularizer=make("grpo").regularizer.__class__(beta=0.0)),
        task=LettersTask(half),
        steps=2,
    )
    assert whole.rows[1]["rows/trained"] == 32
    torch.testing.assert_close(weights(dropped), weights(whole), rtol=0, atol=2e-5)


def test_equal_rewards_are_named_and_leave_the_weights(toy):
    trainer = trained(toy, "dr_grpo", task=LettersTask(lambda text: Outcome(1.0)), steps=2)
    fresh = trained(toy, "dr_grpo", steps=0)
    assert [row["groups/zero_variance"] for row in trainer.rows[1:]] == [1.0, 1.0]
    assert [row["rows/trained"] for row in trainer.rows[1:]] == [0.0, 0.0]
    assert torch.equal(weights(trainer), weights(fresh))


def test_every_reward_failing_stops_with_the_reason(toy):
    events = []
    task = LettersTask(lambda text: Outcome(None, failure="boom"))
    with (
        Trainer(
            "grpo",
            model=toy,
            task=task,
            steps=9,
            max_skipped=2,
            on_event=lambda s, e: events.append((s, e.kind)),
            **SMALL,
        ) as t,
        pytest.raises(
            UsageError, match=r"stopped at step 2: 2 steps in a row were skipped.*every reward failed \(boom\)"
        ),
    ):
        t.train()
    assert (1, "reward failed") in events
    assert (2, "step skipped") in events
    assert [row["rewards/failed"] for row in t.rows[1:]] == [32, 32]


def test_a_loss_that_is_not_finite_skips_the_step_and_keeps_the_weights(toy):
    trainer = Trainer("grpo", model=toy, task=LettersTask(), steps=3, max_skipped=2, **SMALL)
    before = weights(trainer).clone()
    score = trainer.parts.actors.policy.score

    def broken(rollouts, needs=frozenset({"logp"}), **options):
        columns = score(rollouts, needs, **options)
        return {**columns, "logp": columns["logp"] + torch.tensor(float("nan"))}

    trainer.parts.actors.policy.score = broken
    with pytest.raises(UsageError, match="'logp' of the model is not finite in"):
        trainer.train()
    assert torch.equal(weights(trainer), before)


def test_dynamic_sampling_draws_until_enough_groups_differ(toy):
    """Rewards differ within about half of the groups: DAPO draws more prompts than it keeps."""

    def rare(text):
        return Outcome(float("a" <= text[:1] <= "z"))

    trainer = trained(toy, "dapo", task=LettersTask(rare), steps=1, group_size=8)
    row = trainer.rows[1]
    assert row["groups/sampled"] > 4
    assert row["rows/trained"] <= 32


RESETTING = make("grpo").replace(update=Reincarnation(epochs=2, reincarnate_at=1), rollout=Sample(replay=0.9))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "ppo_llm"},
        {"lora": {"rank": 4}},
        {"minibatches": 2, "epochs": 2},
        {"method": "reinforce", "baseline": "moving_average"},
        {"method": "oblr_po"},
        {"replay": 0.6, "old_logp": "recompute"},
        {"replay": 0.6, "dtype": "bfloat16", "optimizer": {"lr": 1e-2}},
        {"method": RESETTING},
        {"method": RESETTING, "lora": {"rank": 4}},
        {"method": "remix", "replay": 0.8, "reincarnate_at": 2},
        {"method": "tempsamp_r1"},
        {"method": "aepo_arbitrary", "target": 0.1},
        {"method": "spo_single_stream", "prompts_per_step": 12, "first_look": 2},
        {"method": "hapo"},
    ],
    ids=[
        *("grpo", "critic", "lora", "minibatches", "part state", "learning rate"),
        *(
            "replay",
            "replay bfloat16",
            "resets",
            "resets lora",
            "remix",
            "references",
            "second draw",
            "trackers",
            "rollout state",
        ),
    ],
)
def test_resumed_is_bit_identical(toy, tmp_path, settings):
    method = settings.pop("method", "grpo")

    def run(folder, steps, resume=False):
        options = {**SMALL, "checkpoint_every": 1, "sinks": (), **settings}
        with Trainer(
            method, model=toy, task=LettersTask(), out=tmp_path / folder, resume=resume, steps=steps, **options
        ) as trainer:
            return trainer.train()

    straight = run("a", 4)
    run("b", 2)
    resumed = run("b", 4, resume=True)
    assert resumed.rows[0]["step"] == 3
    assert torch.equal(weights(straight), weights(resumed))
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in "ab")
    timeless = [
        [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per", "eval/"))} for row in rows]
        for rows in (one, two)
    ]
    assert timeless[0] == timeless[1]


def test_reincarnation_makes_the_policy_the_reference_and_uses_new_rollouts_once(toy):
    recipe = RESETTING.replace(update=Reincarnation(epochs=3, reincarnate_at=2))
    with Trainer(recipe, model=toy, task=LettersTask(), steps=4, optimizer={"lr": 3e-3}, **SMALL) as trainer:
        actors, taken, reference, moments = trainer.parts.actors, [], [], []

        def watch(step, row):
            taken.append(actors.learner.taken)
            reference.append(torch.cat([p.flatten() for p in actors.reference.policy.model.parameters()]).clone())
            states = actors.learner.optimizer.state.values()
            moments.append({int(one["step"]) for one in states})
            before.append(weights(trainer).clone())

        before = []
        trainer._on_row = watch
        trainer.train()
    assert taken == [0, 3, 6, 7, 8]
    assert moments == [set(), {3}, {6}, {1}, {2}]
    assert torch.equal(reference[1], before[0])
    assert torch.equal(reference[2], before[0])
    assert torch.equal(reference[3], before[2])
    assert torch.equal(reference[4], before[2])
    ages = [row.get("replay/age") for row in trainer.rows[3:]]
    assert ages == [None, None]


def test_an_optimizer_made_anew_each_step(toy):
    recipe = make("dr_grpo").replace(update=Update(epochs=2, fresh_optimizer=True))
    trainer = trained(toy, recipe, steps=3)
    assert {int(one["step"]) for one in trainer.parts.actors.learner.optimizer.state.values()} == {2}


def test_an_unknown_request_before_a_step_is_named(toy):
    class Wrong(Update):
        def before_step(self, step):
            return frozenset({"reset_all"})

    with pytest.raises(UsageError, match=r"Wrong.before_step asks for reset_all; there is reset_optimizer and"):
        trained(toy, make("grpo").replace(update=Wrong()), steps=1)


def test_a_replayed_step_shows_its_age_and_no_sampler_gap(toy):
    rows = trained(toy, "grpo", steps=8, replay=0.6, epochs=2, optimizer={"lr": 3e-3}).rows[1:]
    old = [row for row in rows if "replay/age" in row]
    assert 1 < len(old) < 7
    assert all("sampler_gap/max" not in row and row["loss"] is not None for row in old)
    assert all("sampler_gap/max" in row for row in rows if row not in old)
    assert all(abs(row["ratio/mean"] - 1) > 1e-4 for row in old)


def test_another_model_under_the_same_name_is_refused(toy, tmp_path):
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(toy, copy)
    options = {**SMALL, "sinks": (), "model": str(copy)}
    with Trainer("grpo", task=LettersTask(), out=tmp_path / "run", steps=1, **options) as trainer:
        trainer.train()
        trainer.parts.actors.policy.save(copy)
    with pytest.raises(UsageError, match="weights of the model was"):
        Trainer("grpo", task=LettersTask(), out=tmp_path / "run", resume=True, steps=2, **options)


def test_checkpoint_is_an_ordinary_hugging_face_folder(toy, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with Trainer("grpo", model=toy, task=LettersTask(), out=tmp_path / "run", steps=1, sinks=(), **SMALL) as trainer:
        trainer.train()
    folder = tmp_path / "run" / "checkpoints" / "step-000001"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (
        AutoTokenizer.from_pretrained(folder).decode(AutoTokenizer.from_pretrained(folder)("hello")["input_ids"])
        == "hello"
    )
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), weights(trainer))
    assert json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "no part of 'grpo' reads 'stepz'"),
        ({"steps": -1}, "steps is -1"),
        ({"max_tokens": 96}, "leaves no room for a prompt"),
        ({"optimizer": {"lrr": 1}}, "Did you mean lr"),
        ({"optimizer": 3}, "takes settings"),
        ({"device": "tpu"}, "tpu"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"packing": "tre"}, "'tree'"),
    ],
)
def test_wrong_settings(toy, settings, message):
    options = {**SMALL, "model": toy, "steps": 1, **settings}
    with pytest.raises(UsageError, match=message):
        Trainer("grpo", task=LettersTask(), **options)


def test_default_learning_rate_of_a_small_model_is_what_the_settings_say(toy):
    """1e-3 breaks the embedded model within ten steps."""
    assert trained(toy, steps=1).rows[1]["lr"] == pytest.approx(1e-4)


def test_without_evaluation_it_trains_all_the_same(toy):
    with Trainer("grpo", model=toy, task="chain_sum", steps=1, **{**SMALL, "eval": {"prompts": 0}}) as trainer:
        assert "reward" in trainer.train().rows[-1]
        assert not any(name.startswith("eval/") for row in trainer.rows for name in row)
