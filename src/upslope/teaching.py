"""What a teacher says of a step's rows: its log-probs, how far the policy is from it, and what it reads beside the prompt.

A recipe's part asks for more than the column teacher_logp by having some of these:

    compares()   divergences of whole next-token distributions, as columns (Compares)
    context()    a text that the teacher reads beside the prompt, and the policy does not (Informs)
    rewrite()    other completions in the place of those that were verified (Rewrites)
    teacher      whose weights the teacher has where the run names none: "frozen", "live" or "ema" (Informs)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from upslope.batch import Batch
from upslope.errors import UsageError
from upslope.policies.heads import LogitFinish
from upslope.policies.logprobs import Comparison, compared_columns
from upslope.recipe import Recipe, State
from upslope.rollout import Rollouts

MARK = "\u0001"  # a message that no chat template has in it


@runtime_checkable
class Compares(Protocol):
    """A part that reads functions of the policy's and the teacher's next-token distributions, as columns [R, T] by name.

    Each maps log-probs of the whole vocabulary, the policy's [m, V] and the teacher's [m, V], to [m]. They have a gradient where
    the surrogate or a regularizer reads them, and are those before the update where an advantage or a weight does.
    """

    def compares(self) -> Mapping[str, Comparison]: ...


@runtime_checkable
class Informs(Protocol):
    """A part that tells the teacher something.

    teacher   where the run names no teacher, it is the policy: as it was at first ("frozen"), is now ("live"), or a moving
              average of it ("ema"), of which `rate` is the newest's share in every step
    context   the text for each row ("" for none), and what the part remembers for the next step; `state` is never changed

    Its text may depend on rewards; where it does not, `reads_reward` False says so.
    """

    teacher: str
    rate: float

    def context(self, rollouts: Rollouts, batch: Batch, state: State) -> tuple[list[str], State]: ...


@runtime_checkable
class Rewrites(Protocol):
    """A part that changes completions after their verification and before anything is made of their tokens.

    It gives, for each row, the body and the tail of its new text, or None to leave it; and metrics. Where the model's context
    has no room for both, the body is cut. Such rows have no log-probs of the policy that sampled them. `reads_reward` as Informs.
    """

    def rewrite(self, rollouts: Rollouts, batch: Batch) -> tuple[list[tuple[str, str] | None], dict[str, float]]: ...


def comparisons(recipe: Recipe) -> dict[str, Comparison]:
    """The functions of both distributions that the parts ask for, by column. UsageError where two are of the same name."""
    found: dict[str, Comparison] = {}
    for _, part in recipe.stages():
        for name, function in part.compares().items() if isinstance(part, Compares) else ():
            if name in found:
                raise UsageError(
                    f"two parts of '{recipe.name}' compare with the teacher into the column '{name}'. Keep one of them."
                )
            found[name] = function
    return found


def informing(recipe: Recipe) -> tuple[str, Any] | None:
    """The part that tells the teacher something, and its key among the recipe's parts."""
    found = [(key, part) for key, part in recipe.parts().items() if isinstance(part, Informs)]
    if len(found) > 1:
        raise UsageError(f"{len(found)} parts of '{recipe.name}' tell the teacher something. Keep one of them.")
    return found[0] if found else None


def reads_teacher(recipe: Recipe) -> bool:
    """Whether a run by this recipe needs a teacher."""
    return "teacher_logp" in recipe.needs or bool(comparisons(recipe))


@dataclass
class Teaching:
    """The teacher of a run, as the updater asks it. `policy` is who learns."""

    recipe: Recipe
    policy: Any
    teacher: Any
    compared: dict[str, Comparison] = field(init=False)
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.compared = comparisons(self.recipe)

    @property
    def rewrites(self) -> list[Rewrites]:
        """The parts that rewrite completions."""
        return [part for _, part in self.recipe.stages() if isinstance(part, Rewrites)]

    def rewritten(self, rollouts: Rollouts, batch: Batch) -> tuple[Rollouts, Batch]:
        """The rows as the parts rewrite them; the batch then has its columns of rows, and tokens and mask."""
        self.metrics = {}
        for part in self.rewrites:
            texts, self.metrics = part.rewrite(rollouts, batch)
            rollouts = replaced(rollouts, texts, self.policy.tokenizer, self.policy.context_length)
            kept = {name: getattr(batch, name) for name in batch if getattr(batch, name).ndim == 1}
            zeros = torch.zeros_like(rollouts.tokens)
            batch = Batch(**kept, logp=rollouts.logp, mask=rollouts.mask, tokens=rollouts.tokens, turn=zeros)
        return rollouts, batch

    @torch.no_grad()
    def rollouts(self, rollouts: Rollouts, batch: Batch, states: State) -> tuple[Rollouts, State]:
        """The same completions after the prompts as the teacher reads them, and the parts' next states."""
        found = informing(self.recipe)
        if found is None:
            return rollouts, states
        key, part = found
        texts, after = part.context(rollouts, batch, states.get(key, {}))
        limit = min(self.policy.context_length, self.teacher.policy.context_length)
        told, cut = informed(rollouts, texts, self.policy.tokenizer, limit)
        told_rows = [bool(text) for text in texts]
        self.metrics |= {"teacher/informed": sum(told_rows) / max(len(texts), 1), "teacher/context_cut": float(cut)}
        return told, {**states, key: after} if key in states else states

    @torch.no_grad()
    def before(self, recipe: Recipe, rollouts: Rollouts, told: Rollouts, tokens_per_pass: int) -> dict[str, Tensor]:
        """What the recipe reads of the teacher before the update, of all rows and on the CPU, in one pass of each model.

        {} without a teacher: where one is needed, the data has its log-probs.
        """
        if self.teacher is None:
            return {}
        said = recipe.needs & {"teacher_logp"}
        compared = recipe.needs_before & self.compared.keys()
        if not said | compared:
            return {}
        plan = list(self.policy.plan(rollouts, tokens_per_pass=tokens_per_pass))
        if compared:
            parts = [self.compare(rollouts, told, rows, None, said | compared) for rows in plan]
        else:
            parts = [
                {"teacher_logp": self.teacher.score(told, frozenset({"logp"}), rows=rows)["logp"]} for rows in plan
            ]
        back = torch.cat(plan).argsort()
        return {name: torch.cat([part[name].cpu() for part in parts])[back] for name in sorted(said | compared)}

    def compare(
        self, rollouts: Rollouts, told: Rollouts, rows: Tensor, hidden: Tensor | None, names: frozenset[str]
    ) -> dict[str, Tensor]:
        """The columns [r, T] of these names: compared ones, and "logp" and "teacher_logp", which then cost nothing more.

        `hidden` [r, T, H] are the policy's states, asked for where None.
        """
        if hidden is None:
            hidden = self.policy.score(rollouts, frozenset({"hidden"}), rows=rows)["hidden"]
        theirs = self.teacher.score(told, frozenset({"hidden"}), rows=rows)["hidden"]
        mask = rollouts.mask[rows]
        if not mask.any():
            return {name: torch.zeros(mask.shape) for name in names}
        one, other = self.policy, self.teacher.policy
        where, target = mask.to(one.device), rollouts.tokens[rows][mask].to(one.device)
        head, finish = one.model.get_output_embeddings(), LogitFinish.of(one.model.config)
        values = compared_columns(
            hidden[mask].to(one.device), head, finish, theirs[mask].to(other.device), logits_of(other), target,
            self.compared, sorted(names),
        )  # fmt: skip
        return {
            name: torch.zeros(mask.shape, device=one.device, dtype=v.dtype).masked_scatter(where, v)
            for name, v in values.items()
        }

    def follow(self, states: State) -> State:
        """After a step: a moving average moves on. Its weights are in the states, from which a resumed run takes them."""
        if not hasattr(self.teacher, "follow"):
            return states
        self.teacher.follow(self.policy)
        return {**states, "teacher": self.teacher.state_dict()}

    def restore(self, states: State) -> None:
        """Before a step: a moving average that is not the states' becomes it."""
        if hasattr(self.teacher, "follow") and "teacher" in states:
            self.teacher.load_state_dict(states["teacher"])


def logits_of(policy: Any) -> Any:
    """What makes logits [m, V] of a policy's hidden states [m, H]."""
    head, finish = policy.model.get_output_embeddings(), LogitFinish.of(policy.model.config)
    return lambda states: finish(head(states))


def informed(rollouts: Rollouts, texts: list[str], tokenizer: Any, limit: int) -> tuple[Rollouts, int]:
    """The rollouts with each row's text in its prompt, and how many texts were cut to what `limit` tokens leave."""
    prompts: list[list[int]] = []
    places: dict[tuple[int, str, int], int] = {}
    rows, cut = [], 0
    for prompt, text, length in zip(rollouts.prompt.tolist(), texts, rollouts.length.tolist(), strict=True):
        ids = list(rollouts.prompts[prompt])
        said = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        room = max(limit - len(ids) - length, 0)
        cut += len(said) > room
        key = (prompt, text, min(len(said), room))
        if key not in places:
            places[key] = len(prompts)
            prompts.append(with_context(ids, said[:room], tokenizer))
        rows.append(places[key])
    return replace(rollouts, prompts=prompts, prompt=torch.tensor(rows)), cut


def replaced(rollouts: Rollouts, texts: list[tuple[str, str] | None], tokenizer: Any, limit: int) -> Rollouts:
    """The rollouts with these texts, each with its end token, as far as `limit` tokens leave room; log-probs 0."""

    def ids_of(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows: list[list[int]] = []
    for row, text in enumerate(texts):
        if text is None:
            rows.append(rollouts.tokens[row, : rollouts.length[row]].tolist())
            continue
        tail = ids_of(text[1]) + end
        rows.append(
            ids_of(text[0])[: max(limit - len(rollouts.prompts[int(rollouts.prompt[row])]) - len(tail), 0)] + tail
        )
    length = torch.tensor([len(ids) for ids in rows])
    width = max(int(length.max()), rollouts.tokens.shape[1])
    inside = torch.arange(width) < length[:, None]
    tokens = torch.zeros(inside.shape, dtype=torch.int64)
    tokens[inside] = torch.tensor([token for ids in rows for token in ids], dtype=torch.int64)
    pad = (0, width - rollouts.mask.shape[1])
    left = torch.tensor([text is None for text in texts]).unsqueeze(1)
    mask = torch.where(left, torch.nn.functional.pad(rollouts.mask, pad), inside)
    said = [old if text is None else "".join(text) for old, text in zip(rollouts.text, texts, strict=True)]
    none = torch.zeros(inside.shape)
    return replace(
        rollouts, tokens=tokens, mask=mask, length=length, logp=none, behavior_logp=none, text=said, observed={}
    )


def with_context(ids: list[int], said: list[int], tokenizer: Any) -> list[int]:
    """The prompt with further tokens where its last message ends; before a prompt that no chat template wrote."""
    end = _message_end(tokenizer)
    if end and ids[-len(end) :] == end:
        return ids[: -len(end)] + said + end
    start = 1 if ids and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else 0
    return ids[:start] + said + ids[start:]


def _message_end(tokenizer: Any) -> list[int]:
    """What the chat template puts between a user's message and the answer; nothing without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": MARK}], add_generation_prompt=True, tokenize=False
    )
    ids: list[int] = tokenizer(text.rpartition(MARK)[2], add_special_tokens=False)["input_ids"]
    return ids
