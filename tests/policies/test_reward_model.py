"""A reward model gives the numbers of transformers' own forward pass, on trees as on padded rows, and survives its folder."""

import pytest
import torch
import transformers

from upslope.errors import UsageError
from upslope.policies import loading
from upslope.policies.critic import LanguageCritic
from upslope.policies.language import LanguagePolicy
from upslope.policies.lora import LoraSettings, add_adapters
from upslope.policies.reward_model import RewardModel

from .models import COMMON, OWN, VOCABULARY, rollouts_of


def score_model(architecture="Llama", **settings):
    """A random model with a score; weights large enough that scores differ."""
    config = getattr(transformers, f"{architecture}Config")(**(COMMON | OWN.get(architecture, {}) | settings))
    config.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
    return model


def by_transformers(model, rollouts, pad, side):
    """Scores of all rows in one padded batch, by the model's own forward pass."""
    prompts = rollouts.prompt.tolist()
    rows = [
        [*rollouts.prompts[p], *rollouts.tokens[row, : rollouts.length[row]].tolist()] for row, p in enumerate(prompts)
    ]
    width = max(map(len, rows))
    fill = [[pad] * (width - len(row)) for row in rows]
    ids = torch.tensor([f + r if side == "left" else r + f for r, f in zip(rows, fill, strict=True)])
    real = torch.zeros(ids.shape, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        real[row, (width - len(tokens)) if side == "left" else 0 :][: len(tokens)] = 1
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=real).logits[:, 0]


@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX", "GPT2", "Gemma", "Qwen3", "Mistral", "Mixtral"])
@pytest.mark.parametrize("packing", ["tree", "padded"])
def test_equals_transformers(architecture, packing, make_rollouts):
    model, rollouts = score_model(architecture), make_rollouts()
    reward = RewardModel(model, None, packing=packing)
    assert reward.packing == packing
    with torch.no_grad():
        found = reward.scores(rollouts)
        torch.testing.assert_close(found, reward.by_transformers(rollouts), rtol=1e-5, atol=1e-5)
        expected = by_transformers(model, rollouts, 0, "right")
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_left_padding_too(make_rollouts):
    model, rollouts = score_model(), make_rollouts()
    found = RewardModel(model, None).scores(rollouts).detach()
    torch.testing.assert_close(found, by_transformers(model, rollouts, 0, "left"), rtol=1e-5, atol=1e-5)


def test_read_at_the_last_token_that_is_not_padding():
    """Where the padding token is the end token, transformers reads the token before it, and so does this."""
    rows = [(0, [7, 8, 2]), (0, [7, 8]), (0, [2]), (1, [9, 2, 2]), (1, [2, 9])]
    rollouts = rollouts_of([[5, 6], [4, 2]], rows)
    model = score_model(pad_token_id=2)
    reward = RewardModel(model, None)
    with torch.no_grad():
        found, expected = reward.scores(rollouts), reward.by_transformers(rollouts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0], found[1])
    alone = RewardModel(score_model(pad_token_id=None), None)
    with torch.no_grad():
        torch.testing.assert_close(alone.scores(rollouts), alone.by_transformers(rollouts), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(alone.scores(rollouts)[0], alone.scores(rollouts)[1])


def test_an_empty_completion_is_read_at_the_end_of_its_prompt():
    rollouts = rollouts_of([[5, 6], [4, 2]], [(0, []), (1, []), (0, [7])])
    for pad in (0, 2):
        reward = RewardModel(score_model(pad_token_id=pad), None)
        with torch.no_grad():
            torch.testing.assert_close(reward.scores(rollouts), reward.by_transformers(rollouts), rtol=1e-5, atol=1e-5)


def test_the_column_stands_at_the_last_trained_token(make_rollouts):
    reward, rollouts = RewardModel(score_model(), None), make_rollouts()
    rollouts.mask[2] = False
    rows = torch.tensor([5, 2, 0])
    found = reward.score(rollouts, frozenset({"value", "logp"}), rows=rows)
    scores = reward.scores(rollouts)
    assert found["value"].shape == (3, rollouts.tokens.shape[1])
    for place, row in ((0, 5), (2, 0)):
        last = int(rollouts.length[row]) - 1
        torch.testing.assert_close(found["value"][place, last], scores[row])
        assert int((found["value"][place] != 0).sum()) == 1
    assert not found["value"][1].any()
    assert not found["logp"].any()
    assert found["value"].requires_grad
    with pytest.raises(UsageError, match=r"no column entropy\. It has: logp, value"):
        reward.score(rollouts, frozenset({"entropy"}))


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}])
def test_gradients_on_trees_equal_those_of_transformers(settings, make_rollouts):
    model, rollouts = score_model(), make_rollouts()
    reward = RewardModel(model, None, packing="tree", **settings)
    weights = torch.linspace(-1, 1, len(rollouts))
    grads = [
        torch.cat([g.ravel() for g in torch.autograd.grad((scores * weights).sum(), list(model.parameters()))])
        for scores in (reward.scores(rollouts), reward.by_transformers(rollouts))
    ]
    assert (grads[0] - grads[1]).norm() <= 1e-5 * grads[1].norm()


def test_micro_batches_add_up(make_rollouts):
    reward, rollouts = RewardModel(score_model(), None), make_rollouts()
    plan = reward.plan(rollouts, tokens_per_pass=40, keep_groups=True)
    assert len(plan) > 1
    whole = reward.scores(rollouts)
    torch.testing.assert_close(torch.cat([reward.scores(rollouts, rows) for rows in plan]), whole[torch.cat(plan)])


def test_a_folder_of_transformers(tmp_path, toy, make_rollouts):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        reward = RewardModel.load(toy, new=True)
    reward.save(tmp_path / "rm")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    assert theirs.config.num_labels == 1
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "rm").eos_token == "<eos>"
    rollouts = make_rollouts()
    again = RewardModel.load(tmp_path / "rm")
    assert all(torch.equal(a, b) for a, b in zip(reward.parameters(), again.parameters(), strict=True))
    found = again.scores(rollouts).detach()
    torch.testing.assert_close(found, by_transformers(theirs, rollouts, 0, "right"), rtol=1e-5, atol=1e-5)


def test_a_new_score_depends_on_the_seed_and_the_backbone_does_not(toy):
    made = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made.append(RewardModel.load(toy, new=True))
    first, same, other = (reward.model.score.weight for reward in made)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    language = LanguagePolicy.load(toy).model
    assert torch.equal(made[0].model.model.embed_tokens.weight, language.model.embed_tokens.weight)


def test_a_reward_model_can_be_trained_further(tmp_path, toy):
    reward = RewardModel.load(toy, new=True)
    reward.save(tmp_path / "rm")
    assert torch.equal(RewardModel.load(tmp_path / "rm", new=True).model.score.weight, reward.model.score.weight)


def test_adapters(tmp_path, toy, make_rollouts):
    reward = RewardModel.load(toy, new=True, lora=LoraSettings(rank=2, alpha=4.0))
    names = list(reward.state_dict())
    assert any("lora_" in name for name in names)
    assert [name for name in names if "lora_" not in name] == ["base_model.model.score.modules_to_save.default.weight"]
    with torch.no_grad():
        for parameter in reward.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    rollouts = make_rollouts()
    reward.save(tmp_path / "rm")
    merged = RewardModel.load(tmp_path / "rm")
    torch.testing.assert_close(merged.scores(rollouts), reward.scores(rollouts), rtol=1e-4, atol=1e-5)
    assert (tmp_path / "rm" / "adapter" / "adapter_config.json").is_file()
    state = {name: value.clone() for name, value in reward.state_dict().items()}
    fresh = RewardModel.load(toy, new=True, lora=LoraSettings(rank=2, alpha=4.0))
    fresh.load_state_dict(state)
    assert torch.equal(fresh.scores(rollouts), reward.scores(rollouts))


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_refused(tmp_path, tokenizer, toy):
    with pytest.raises(UsageError, match=r"has no score \(LlamaForCausalLM\).*upslope train rm --model"):
        RewardModel.load(toy)
    with pytest.raises(UsageError, match="no folder"):
        RewardModel.load(tmp_path / "absent")
    config = transformers.LlamaConfig(**COMMON, num_labels=3)
    several = transformers.LlamaForSequenceClassification(config)
    with pytest.raises(UsageError, match="a classifier into 3 classes"):
        RewardModel.load(saved(several, tokenizer, tmp_path / "several"))
    with pytest.raises(UsageError, match=r"is a reward model.*cannot write any"):
        LanguagePolicy.load(saved(score_model(), tokenizer, tmp_path / "rm"))
    bert = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
    )
    encoder = saved(transformers.BertForSequenceClassification(bert), tokenizer, tmp_path / "bert")
    with pytest.raises(UsageError, match="does not read its score at the last token"):
        RewardModel.load(encoder)


def test_a_folder_without_the_weights_of_the_score(tmp_path, tokenizer):
    from safetensors.torch import load_file, save_file

    folder = saved(score_model(), tokenizer, tmp_path / "rm")
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if name != "score.weight"}, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"lacks 1 of the weights .* such as score\.weight"):
        RewardModel.load(folder)


def test_a_score_that_is_read_elsewhere_is_refused(monkeypatch):
    model = score_model()
    own = type(model).forward

    def first_token(self, input_ids=None, **others):
        return own(self, input_ids=input_ids[:, :1])

    monkeypatch.setattr(type(model), "forward", first_token)
    with pytest.raises(UsageError, match="reads its score elsewhere than at the last token"):
        RewardModel(model, None)


def test_a_critic_starts_from_it(make_rollouts):
    """The value before a token is the score of what stands before it, of which the critic owns a copy."""
    reward, rollouts = RewardModel(score_model(), None), make_rollouts()
    critic = LanguageCritic.from_reward_model(reward)
    value = critic.score(rollouts)["value"]
    text = rollouts_of(rollouts.prompts, [(int(rollouts.prompt[0]), rollouts.tokens[0, :2].tolist())])
    with torch.no_grad():
        torch.testing.assert_close(value[0, 2], reward.scores(text)[0], rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in critic.parameters()) == sum(p.numel() for p in reward.parameters()) + 1
    value.sum().backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert all(p.grad is None for p in reward.parameters())


def test_a_critic_of_a_model_with_adapters_has_them_merged(make_rollouts):
    reward = RewardModel(add_adapters(score_model(), LoraSettings(rank=2), score=True), None)
    critic = LanguageCritic.from_reward_model(reward)
    assert not any("lora" in name for name in critic.state_dict())
    assert critic.score(make_rollouts())["value"].requires_grad


def test_loading_knows_a_score(tmp_path, tokenizer):
    folder = saved(score_model(), tokenizer, tmp_path / "rm")
    assert loading.scores(transformers.AutoConfig.from_pretrained(folder))
