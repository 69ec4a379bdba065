"""Reward models end to end: trained on pairs, saved, resumed, and then what a policy is trained on."""

import json
import math
import random

import pytest
import torch
import transformers

from upslope import Trainer, UsageError, make
from upslope.config import Config
from upslope.parts.aggregate import TokenMean
from upslope.parts.likelihood import NegativeLogLikelihood
from upslope.policies.language import LanguagePolicy
from upslope.policies.reward_model import RewardModel
from upslope.progress import PlainView
from upslope.recipe import Term
from upslope.rollout import Example, Outcome
from upslope.runs.metrics import read_metrics
from upslope.session import run_session
from upslope.tasks.reward_model import RewardModelJudge

SMALL = {"max_tokens": 8, "eval": {"prompts": 16, "every": 0, "samples": 2}, "prompts_per_step": 8, "threads": 1}
EXAMPLES = [Example(f"k{i}", prompt, {"answer": "1"}) for i, prompt in enumerate(["q1", "q1", "longer q", "q1", "q3"])]
LETTERS = (("chosen", "abcd"), ("rejected", "wxyz"))
TEXTS = ["aaa", "b", "", "zzzz", "aaa"]


@pytest.fixture
def pairs(tmp_path):
    """Completions of the letters a to d are preferred to those of w to z, whatever their length."""
    path, draw = tmp_path / "pairs.jsonl", random.Random(0)
    rows = [
        {"prompt": f"p{i}", **{key: "".join(draw.choices(letters, k=draw.randint(1, 4))) for key, letters in LETTERS}}
        for i in range(120)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="session")
def reward_folder(toy, tmp_path_factory):
    """A reward model made of the toy, with random weights so large that texts differ in their score."""
    folder = tmp_path_factory.mktemp("reward-model")
    model = RewardModel.load(toy, new=True)
    with torch.no_grad():
        model.model.score.weight.normal_(generator=torch.Generator().manual_seed(5))
    model.save(folder)
    return folder


def trained(toy, data, **settings):
    with Trainer("rm", model=toy, data=str(data), **{**SMALL, "optimizer": {"lr": 1e-3}, **settings}) as trainer:
        return trainer.train()


def by_transformers(folder, prompt, text):
    """The score of a text after a prompt, with the end token, by the folder opened with transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer(prompt + text)["input_ids"] + [tokenizer.eos_token_id]])
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])


def test_it_learns_to_order_pairs(toy, pairs, tmp_path):
    trainer = trained(toy, pairs, steps=25, out=tmp_path / "run")
    first, last = trainer.rows[0], trainer.rows[-1]
    assert last["eval/pairs/accuracy"] == pytest.approx(1.0)
    assert first["eval/pairs/accuracy"] < 0.95
    assert last["eval/loss"] < 0.3 * first["eval/loss"]
    assert isinstance(trainer.parts.actors.policy, RewardModel)
    folder = tmp_path / "run" / "checkpoints" / "step-000025"
    good, bad = by_transformers(folder, "p5", "aa"), by_transformers(folder, "p5", "zz")
    assert good > bad + 1
    judge = RewardModelJudge(RewardModel.load(folder), str(folder))
    found = [outcome.value for outcome in judge.score([Example("k", "p5")] * 2, ["aa", "zz"])]
    assert found == pytest.approx([good, bad], abs=1e-5)


def test_loss_and_gradient_do_not_depend_on_the_passes(toy, pairs):
    rows = [trained(toy, pairs, steps=3, tokens_per_pass=size).rows[-1] for size in (1, 4096)]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)
    assert rows[0]["eval/loss"] == pytest.approx(rows[1]["eval/loss"], rel=1e-5)


@pytest.mark.parametrize("lora", [{"rank": 0}, {"rank": 2}])
def test_resumed_bit_for_bit(toy, pairs, tmp_path, lora):
    whole = trained(toy, pairs, steps=6, out=tmp_path / "whole", lora=lora)
    trained(toy, pairs, steps=3, out=tmp_path / "parts", lora=lora)
    again = trained(toy, pairs, steps=6, out=tmp_path / "parts", lora=lora, resume=True)
    for one, other in zip(whole.parts.actors.policy.parameters(), again.parts.actors.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(read_metrics(tmp_path / "parts" / "metrics.jsonl")) == 7


def test_adapters_alone_are_trained(toy, pairs):
    trainer = trained(toy, pairs, steps=10, lora={"rank": 4, "alpha": 8.0})
    assert trainer.rows[-1]["eval/loss"] < trainer.rows[0]["eval/loss"]
    names = trainer.parts.actors.policy.state_dict()
    assert all("lora_" in name or "score" in name for name in names)


def test_a_session_with_its_checks_and_report(toy, pairs, tmp_path, capsys):
    config = Config(method="rm", model=toy, data=str(pairs), steps=3, prompts_per_step=4, threads=1, sinks=())
    summary = run_session(config, tmp_path / "run", resume=False, view=PlainView(config))
    assert summary.ok
    checks = json.loads((tmp_path / "run" / "self_checks.json").read_text())
    assert [check["name"] for check in checks] == [
        "tokens round-trip", "mask coverage", "micro-batches add up", "save and load",
    ]  # fmt: skip
    assert all(check["ok"] for check in checks)
    assert "Of the pairs, it orders" in summary.lines[1]
    assert "self-checks: 4 of 4 passed" in capsys.readouterr().out


def test_training_goes_on_from_a_reward_model(pairs, reward_folder):
    trainer = trained(str(reward_folder), pairs, steps=0)
    score = RewardModel.load(reward_folder).model.score.weight
    assert torch.equal(trainer.parts.actors.policy.model.score.weight, score)


def test_refused_in_training(toy, pairs, reward_folder):
    with pytest.raises(UsageError, match=r"writes nothing, so it cannot be evaluated on --task chain_sum"):
        trained(toy, pairs, task="chain_sum")
    with pytest.raises(UsageError, match="no vocabulary: leave vocab_chunk out"):
        trained(toy, pairs, vocab_chunk=10)
    with pytest.raises(UsageError, match="--reward-model would not be read"):
        trained(toy, pairs, reward_model=str(reward_folder))
    with pytest.raises(UsageError, match="trains a RewardModel, but model is a LanguagePolicy"):
        trained(LanguagePolicy.load(toy), pairs)
    with pytest.raises(UsageError, match="trains a LanguagePolicy, but model is a RewardModel"):
        Trainer("grpo", model=RewardModel.load(reward_folder), task="chain_sum", **SMALL)
    mixed = make("rm").replace(terms=(Term(NegativeLogLikelihood(), TokenMean()),))
    with pytest.raises(UsageError, match="has no log-probs, but NegativeLogLikelihood does not read its score"):
        Trainer(mixed, model=toy, data=str(pairs), **SMALL)


def test_scores_are_those_of_transformers(reward_folder):
    """Whatever is scored together, and however it is packed."""
    expected = [by_transformers(reward_folder, e.prompt, text) for e, text in zip(EXAMPLES, TEXTS, strict=True)]
    for packing in ("tree", "padded"):
        for tokens_per_pass in (1, 4096):
            model = RewardModel.load(reward_folder, packing=packing)
            judge = RewardModelJudge(model, "rm", tokens_per_pass=tokens_per_pass)
            outcomes = judge.score(EXAMPLES, TEXTS)
            assert [outcome.value for outcome in outcomes] == pytest.approx(expected, abs=1e-5)
            assert outcomes[0].parts == {"reward_model": outcomes[0].value}


def test_messages_go_through_its_own_chat_template(reward_folder, tmp_path):
    model = RewardModel.load(reward_folder)
    model.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model.save(tmp_path / "rm")
    prompt = [{"role": "user", "content": "hi"}]
    (outcome,) = RewardModelJudge(RewardModel.load(tmp_path / "rm"), "rm").score([Example("k", prompt)], ["yes"])
    assert outcome.value == pytest.approx(by_transformers(tmp_path / "rm", "[user]hi[assistant]", "yes"), abs=1e-5)
    plain = RewardModelJudge(RewardModel.load(reward_folder), "rm")
    (failed,) = plain.score([Example("k", prompt)], ["yes"])
    assert failed.value is None
    assert "cannot read it" in failed.failure
    assert "chat template" in failed.failure


class Verifier:
    """A judge that knows one answer and fails on another."""

    step = 0
    closed = False

    def score(self, examples, completions, completion_ids=None):
        known = {"aaa": Outcome(1.0, columns={"answer": "a"}), "b": Outcome(None, failure="broke")}
        return [known.get(text, Outcome(0.0)) for text in completions]

    def reference(self, example):
        return "reference"

    def take_metrics(self):
        return {"logged": 3.0}

    def take_notes(self):
        return ["said"]

    def close(self):
        self.closed = True


def test_failures_have_reasons_and_the_verifier_only_measures(reward_folder, monkeypatch):
    model, verifier = RewardModel.load(reward_folder), Verifier()
    judge = RewardModelJudge(model, "rm", verifier)
    whole = model.scores

    def broken(rollouts, rows=None):
        found = whole(rollouts, rows)
        lengths = rollouts.length if rows is None else rollouts.length[rows]
        return torch.where(lengths == 5, torch.tensor(math.nan), found)

    monkeypatch.setattr(model, "scores", broken)
    texts = ["aaa", "b", "", "zzzz", "x" * 200]
    found = judge.score(EXAMPLES, texts, [[1]] * 5)
    assert [outcome.failure for outcome in found] == [
        None, None, None, "the reward model's score is nan",
        "prompt and completion are longer than the 96 tokens of the reward model's context",
    ]  # fmt: skip
    assert set(found[0].parts) == {"reward_model", "verifier"}
    assert (found[0].parts["verifier"], found[2].parts["verifier"]) == (1.0, 0.0)
    assert found[0].value == found[0].parts["reward_model"]
    assert found[0].columns == {"answer": "a"}
    assert set(found[1].parts) == {"reward_model"}, "a verifier that fails takes nothing from the score"
    assert judge.take_failures().failed == 2
    notes = judge.take_notes()
    assert notes[1] == "said"
    assert "failed on 1 of 5 completions: broke" in notes[0]
    assert judge.take_notes() == ["said"]
    assert (judge.take_metrics(), judge.reference(EXAMPLES[0])) == ({"logged": 3.0}, "reference")
    judge.step = 7
    judge.close()
    assert (verifier.step, judge.step, verifier.closed) == (7, 7, True)


def test_an_empty_prompt_and_nothing_at_all(reward_folder):
    judge = RewardModelJudge(RewardModel.load(reward_folder), "rm")
    found = judge.score([Example("k", ""), Example("l", "q")], ["ab", "ab"])
    assert found[0].value == pytest.approx(by_transformers(reward_folder, "", "ab"), abs=1e-5)
    assert judge.score([], []) == []
    with pytest.raises(ValueError, match="1 examples, but 0"):
        judge.score(EXAMPLES[:1], [])


def test_a_policy_is_trained_on_it_and_measured_by_the_verifier(toy, questions, reward_folder):
    """Both rewards are in every row, and the advantages are of the learned one."""
    settings = {**SMALL, "reward": "exact", "reward_model": str(reward_folder), "steps": 2, "rollout.group_size": 4}
    with Trainer("grpo", model=toy, data=str(questions), **settings) as trainer:
        rows = trainer.train().rows
        assert isinstance(trainer.parts.judge, RewardModelJudge)
        assert trainer.parts.judge.verifier is trainer.parts.task.judge
    assert rows[-1]["reward"] == pytest.approx(rows[-1]["rewards/reward_model/mean"])
    assert 0 <= rows[-1]["rewards/verifier/mean"] <= 1
    assert rows[-1]["reward_std"] > 0 == rows[-1]["rewards/failed"]
    assert {"eval/pass@1", "eval/reward_model"} <= rows[-1].keys()


def test_without_a_verifier_it_is_the_evaluation_too(toy, questions, reward_folder, tmp_path):
    config = Config(
        method="rlhf_ppo", model=toy, data=str(questions), reward_model=str(reward_folder), steps=1, max_tokens=8,
        prompts_per_step=4, threads=1, sinks=(),
    )  # fmt: skip
    summary = run_session(config, tmp_path / "run", resume=False, view=PlainView(config))
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert not any(name.startswith("eval/pass@") for name in rows[-1])
    assert rows[-1]["eval/reward_low"] <= rows[-1]["eval/reward"] <= rows[-1]["eval/reward_high"]
    assert summary.lines[1].startswith("Held-out reward ")


def test_the_reward_rises(toy, questions, reward_folder):
    settings = {**SMALL, "reward_model": str(reward_folder), "steps": 25, "rollout.group_size": 8}
    with Trainer("rloo", model=toy, data=str(questions), optimizer={"lr": 3e-3}, **settings) as trainer:
        rows = trainer.train().rows
    rewards = [row["reward"] for row in rows[1:]]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.5


@pytest.mark.parametrize("critic_from", ["policy", "reward_model"])
def test_ppo_resumed_bit_for_bit(toy, questions, reward_folder, tmp_path, critic_from):
    settings = {**SMALL, "reward_model": str(reward_folder), "critic_from": critic_from}

    def run(steps, out, resume=False):
        with Trainer("ppo_max", model=toy, data=str(questions), out=out, steps=steps, resume=resume, **settings) as t:
            return t.train()

    whole = run(4, tmp_path / "whole")
    run(2, tmp_path / "parts")
    again = run(4, tmp_path / "parts", resume=True)
    for actor in ("policy", "critic"):
        one, other = (getattr(trainer.parts.actors, actor) for trainer in (whole, again))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert whole.rows[-1]["reward"] == again.rows[-1]["reward"]


def test_another_reward_model_cannot_take_its_place(toy, questions, reward_folder, tmp_path):
    settings = {**SMALL, "data": str(questions), "out": tmp_path / "run"}
    folder = tmp_path / "rm"
    RewardModel.load(reward_folder).save(folder)
    with Trainer("grpo", model=toy, steps=1, reward_model=str(folder), **settings) as trainer:
        trainer.train()
    other = RewardModel.load(reward_folder)
    with torch.no_grad():
        other.model.score.weight.add_(1.0)
    other.save(folder)
    with pytest.raises(UsageError, match="weights of the reward model was"):
        Trainer("grpo", model=toy, steps=2, reward_model=str(folder), resume=True, **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"reward_model": "./nowhere"}, "--reward-model: There is no folder"),
        ({"reward_model": "TOY"}, r"--reward-model: .* has no score \(LlamaForCausalLM\)"),
        ({"critic_from": "reward_model"}, "'grpo' has no critic"),
        ({"critic_from": "reward_model", "method": "rlhf_ppo"}, "'rlhf_ppo' is given no --reward-model"),
        ({"critic_from": "actor"}, "takes 'policy' or 'reward_model', not 'actor'"),
    ],
)
def test_refused(toy, questions, settings, says):
    settings = {name: toy if value == "TOY" else value for name, value in settings.items()}
    with pytest.raises(UsageError, match=says):
        Trainer(settings.pop("method", "grpo"), model=toy, data=str(questions), **SMALL, **settings)


def test_a_critic_needs_the_policys_tokens_and_context(toy, questions, reward_folder, tmp_path):
    def start(folder):
        settings = {**SMALL, "reward_model": str(folder), "critic_from": "reward_model", "steps": 1}
        Trainer("rlhf_ppo", model=toy, data=str(questions), **settings)

    other = RewardModel.load(reward_folder)
    other.tokenizer.add_tokens(["new"])
    other.model.resize_token_embeddings(len(other.tokenizer), mean_resizing=False)
    other.save(tmp_path / "words")
    with pytest.raises(
        UsageError, match=r"has another vocabulary .*: 1 words differ, e\.g\. 'new'.*critic_from=policy"
    ):
        start(tmp_path / "words")
    short = RewardModel.load(reward_folder)
    short.model.config.max_position_embeddings = 50
    short.save(tmp_path / "short")
    with pytest.raises(UsageError, match=r"a context of 50 tokens.*one of 96"):
        start(tmp_path / "short")
