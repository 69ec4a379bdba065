"""Training from scratch on weighted demonstrations: one forward pass per question, all its demonstrators as branches."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.masking_utils import sdpa_mask

from tiny.demonstrators import TASKS, Demonstrator, Entry, with_right_share
from tiny.tokenizer import CONTEXT
from upslope.tasks.holdout import is_held_out

# Far from the seeds that anybody counts up from zero; the rule of the held-out questions does not rely on it.
TRAINING_SEED = 10**9
LEARNING_RATE = 0.004


@dataclass(frozen=True)
class Size:
    """Width and depth of a model; heads are 32 wide, the MLP three times as wide as the model."""

    hidden: int
    layers: int


@dataclass(frozen=True)
class Question:
    """A tokenized question and its distinct demonstrated answers (end token included), with their shares."""

    prompt: list[int]
    answers: list[list[int]]
    shares: list[float]


@dataclass(frozen=True)
class TreeBatch:
    """B questions, each a row of a prompt and its answers as branches that see the prompt and themselves only.

    ids, positions     [B, L] int64, padded with 0
    mask               [B, 1, L, L] float32, 0 where a token may look, a large negative number elsewhere
    source             [N] int64, flat index in [B * L] of the token that predicts target n
    target, weight     [N] int64 and [N] float32: the predicted token and its demonstration's share
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    source: Tensor
    target: Tensor
    weight: Tensor


def entries(task: str, seed: int, held_out: bool) -> Iterator[Entry]:
    """Endless instances of a task on one side of the held-out rule."""
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(task, seed=seed, size=10**9, **TASKS[task].settings)
    for index in range(10**9):
        entry = dataset[index]
        if is_held_out(entry["question"]) == held_out:
            yield entry


def question_of(entry: Entry, demonstrators: Sequence[Demonstrator], tokenizer: PreTrainedTokenizerFast) -> Question:
    shares: dict[str, float] = {}
    for demonstrator in demonstrators:
        answer = demonstrator.answer(entry)
        shares[answer] = shares.get(answer, 0.0) + demonstrator.share
    answers = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in shares]
    return Question(tokenizer.encode(entry["question"]), answers, list(shares.values()))


def questions(task: str, tokenizer: PreTrainedTokenizerFast, plan: "Plan") -> Iterator[Question]:
    """Endless training questions of a task, never a held-out one."""
    demonstrators = plan.demonstrators(task)
    for entry in entries(task, TRAINING_SEED + plan.seed * 10**7, held_out=False):
        yield question_of(entry, demonstrators, tokenizer)


def collate(batch: Sequence[Question]) -> TreeBatch:
    """Pack every question with its answers; an answer's last token is only a target, so it is not fed."""
    width = max(len(q.prompt) + sum(len(answer) - 1 for answer in q.answers) for q in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    positions = torch.zeros_like(ids)
    mask = torch.full((len(batch), 1, width, width), torch.finfo(torch.float32).min)
    # Padding looks at itself, so that no row of the attention is empty.
    mask.diagonal(dim1=-2, dim2=-1).zero_()
    source, target, weight = [], [], []
    for row, question in enumerate(batch):
        start = end = len(question.prompt)
        ids[row, :end] = torch.tensor(question.prompt)
        positions[row, :end] = torch.arange(end)
        mask[row, 0, :end, :end].masked_fill_(torch.ones(end, end).tril().bool(), 0.0)
        for answer, share in zip(question.answers, question.shares, strict=True):
            size = len(answer) - 1
            branch = slice(end, end + size)
            ids[row, branch] = torch.tensor(answer[:-1])
            positions[row, branch] = torch.arange(start, start + size)
            mask[row, 0, branch, :start] = 0.0
            mask[row, 0, branch, branch].masked_fill_(torch.ones(size, size).tril().bool(), 0.0)
            source += [row * width + start - 1, *range(row * width + end, row * width + end + size)]
            target += answer
            weight += [share] * len(answer)
            end += size
    return TreeBatch(ids, positions, mask, torch.tensor(source), torch.tensor(target), torch.tensor(weight))


def float32_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **settings: object
) -> tuple[Tensor, None]:
    """Attention outside of autocast: its bfloat16 backward pass is eight times slower than float32 on a CPU."""
    with torch.autocast("cpu", enabled=False):
        attended = torch.nn.functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=mask
        )
    return attended.transpose(1, 2).contiguous(), None


def target_logp(model: LlamaForCausalLM, batch: TreeBatch, autocast: bool = True) -> Tensor:
    """Log-probs of the targets [N]; `autocast` multiplies matrices in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = model.model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[batch.source])
    return -torch.nn.functional.cross_entropy(logits.float(), batch.target, reduction="none")


AttentionInterface.register("float32_sdpa", float32_attention)
AttentionMaskInterface.register("float32_sdpa", sdpa_mask)


def new_model(tokenizer: PreTrainedTokenizerFast, size: Size) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 32,
        num_key_value_heads=size.hidden // 32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("float32_sdpa")
    return model


def optimizers_of(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which needs about half the steps of AdamW here; AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """Learning-rate factor: 100 steps up, then down along a half cosine to 2 %."""
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@dataclass(frozen=True)
class Plan:
    """What to train and for how long: optimizer steps, questions per step over all tasks, the seed of weights and questions.

    right   the share of the right demonstrator in every task
    """

    steps: int
    batch: int
    seed: int
    size: Size
    right: float

    def sizes(self) -> dict[str, int]:
        """Questions of each task in a step."""
        return {task: max(1, round(self.batch * recipe.part)) for task, recipe in TASKS.items()}

    def demonstrators(self, task: str) -> tuple[Demonstrator, ...]:
        return with_right_share(TASKS[task].demonstrators, self.right)


def train(
    tokenizer: PreTrainedTokenizerFast, plan: Plan, report: Callable[[int, float, dict[str, float]], None]
) -> tuple[LlamaForCausalLM, float]:
    """A new model after `plan.steps` steps, and the seconds they took.

    `report(step, seconds, losses)` is called every 50 steps and after the last, with the mean loss of each task since
    the last report, in nats per question. It stays above the entropy of the demonstrators, about 1.2 where 32 % are right.
    """
    torch.manual_seed(plan.seed)
    model = new_model(tokenizer, plan.size)
    optimizers = optimizers_of(model)
    sizes = plan.sizes()
    streams = {task: questions(task, tokenizer, plan) for task in sizes}
    losses: dict[str, list[float]] = {task: [] for task in sizes}
    start = time.monotonic()
    for step in range(plan.steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * schedule(step, plan.steps)
        for task, size in sizes.items():
            batch = collate([next(streams[task]) for _ in range(size)])
            loss = -(target_logp(model, batch) * batch.weight).sum()
            (loss / sum(sizes.values())).backward()
            losses[task].append(float(loss.detach()) / size)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == plan.steps:
            means = {task: sum(values) / len(values) for task, values in losses.items()}
            report(step + 1, time.monotonic() - start, means)
            losses = {task: [] for task in sizes}
    return model, time.monotonic() - start
