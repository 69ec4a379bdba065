"""Small random models of many architectures, and rollouts of random tokens."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from upslope.rollout import Rollouts

VOCABULARY = 61
COMMON = {
    "vocab_size": VOCABULARY, "max_position_embeddings": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
OWN: dict[str, dict[str, Any]] = {
    "Gemma": {"head_dim": 8},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": None},
    "GPT2": GPT2,
    "GPTNeoX": {"num_key_value_heads": 4, "attention_dropout": 0.3, "hidden_dropout": 0.3},
    "Mixtral": {"num_local_experts": 4},
    "Cohere": {"logit_scale": 0.3},
    "Mamba": {"state_size": 4},
}


def build(architecture: str, **settings: Any) -> Any:
    """A random model; weights large enough that its distributions are far from uniform."""
    config = getattr(transformers, f"{architecture}Config")(**(COMMON | OWN.get(architecture, {}) | settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
    return model


def rollouts_of(prompts: Sequence[Sequence[int]], responses: Sequence[tuple[int, Sequence[int]]]) -> Rollouts:
    """Rollouts of the given responses, each (index of its prompt, token ids), all tokens scored."""
    length = torch.tensor([len(ids) for _, ids in responses])
    tokens = torch.zeros(len(responses), max(int(length.max()), 1), dtype=torch.int64)
    for row, (_, ids) in enumerate(responses):
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    mask = torch.arange(tokens.shape[1]) < length[:, None]
    zeros = torch.zeros(tokens.shape)
    return Rollouts(
        prompts=prompts,
        prompt=torch.tensor([prompt for prompt, _ in responses]),
        tokens=tokens,
        mask=mask,
        length=length,
        logp=zeros,
        behavior_logp=zeros,
        finish=["stop"] * len(responses),
        text=[""] * len(responses),
    )


def random_rollouts(prompts: int = 3, group: int = 4, longest: int = 9, seed: int = 0) -> Rollouts:
    """Groups under prompts of 3 to 30 tokens, responses of 1 to `longest`; a group's second starts like its first."""
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        size = int(torch.randint(low, high + 1, (), generator=draw))
        return torch.randint(3, VOCABULARY, (size,), generator=draw).tolist()

    responses = [(p, ids(1, longest)) for p in range(prompts) for _ in range(group)]
    for row in range(1, len(responses), group):
        responses[row] = (responses[row][0], responses[row - 1][1][:4] + ids(1, longest - 4))
    return rollouts_of([ids(3, 30) for _ in range(prompts)], responses)
