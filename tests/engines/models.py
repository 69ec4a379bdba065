"""Small models, a tokenizer and a stand-in for the policy, for the tests of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from upslope.rollout import Rollouts

VOCABULARY = 40
CPU = torch.device("cpu")
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 4},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": 4},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "GPTNeoX": {"num_key_value_heads": 4},
    "Mamba": {"state_size": 4},
}
SHARED = ("Llama", "Qwen2", "Qwen3", "GPTNeoX", "Gemma", "GPT2")
OWN_CACHE = ("Mistral", "Gemma2", "Mamba")


@dataclass
class Policy:
    """What the engine reads of a policy."""

    model: Any
    tokenizer: Any = None
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    context_length: int = 96

    def __post_init__(self) -> None:
        self.tokenizer = self.tokenizer or tokenizer_of([f"w{index}" for index in range(3, VOCABULARY)])


def build(architecture: str, **settings: Any) -> Any:
    """A random model whose distributions are far from uniform."""
    config = getattr(transformers, f"{architecture}Config")(**(COMMON | OWN.get(architecture, {}) | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.15)
    return model


def markov(table: Tensor) -> Any:
    """A Llama whose logits for the next token are row `token` of `table` [V, V], V even, whatever came before it."""
    size = len(table)
    one = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    sizes = {"vocab_size": size, "hidden_size": size, "head_dim": size}
    model = build("Llama", **one, **sizes, rms_norm_eps=1e-12, tie_word_embeddings=False)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(size**-0.5)
        model.lm_head.weight.copy_(table.T)
    return model


def chain(*tokens: int, size: int = VOCABULARY) -> Any:
    """A model that, decoded greedily, continues each of these tokens with the next one, and the last with itself."""
    table = torch.zeros(size, size)
    for token, following in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        table[token, following] = 30.0
    return markov(table)


def tokenizer_of(words: Sequence[str], special: Sequence[str] = ()) -> Any:
    """A tokenizer with <pad> 0, <bos> 1, <eos> 2, then the words; text is the words without anything between them."""
    vocabulary = {word: index for index, word in enumerate(("<pad>", "<bos>", "<eos>", *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        extra_special_tokens=list(special),
    )  # fmt: skip


@torch.no_grad()
def plain_logits(model: Any, rollouts: Rollouts, row: int) -> Tensor:
    """Logits that predict the tokens of a row, from one forward pass over prompt and completion; [length, V] float32."""
    prompt = list(rollouts.prompts[int(rollouts.prompt[row])])
    ids = [*prompt, *rollouts.tokens[row, : rollouts.length[row]].tolist()]
    return model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0, len(prompt) - 1 : -1].float()


def plain_logp(model: Any, rollouts: Rollouts) -> Tensor:
    """Log-probs of all tokens from one forward pass per row, [R, T]."""
    logp = torch.zeros(rollouts.logp.shape)
    for row in range(len(rollouts)):
        length = int(rollouts.length[row])
        logits = plain_logits(model, rollouts, row)
        logp[row, :length] = logits.log_softmax(-1).gather(1, rollouts.tokens[row, :length, None])[:, 0]
    return logp
