"""A reward model as judge: what a policy is trained on is its score; the task's own verifier, if any, goes on measuring.

The reward model reads text: it tokenizes prompt and completion itself, by its own chat template where the prompt is messages, and
adds its end token, as it did when it was trained. A completion that hit the length limit is scored as if it had ended there;
what is to be paid for that is up to the method (rlhf_ppo's reward.MissingEnd.penalty).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from upslope.errors import UsageError
from upslope.rollout import Example, Outcome, Rollouts
from upslope.tasks.failures import FailureCounts

if TYPE_CHECKING:
    from upslope.policies.reward_model import RewardModel

NOT_READ = "prompt and completion are empty for the reward model"


class RewardModelJudge:
    """Outcomes whose value is the reward model's score.

    model             the reward model, which nobody trains
    name              where it was loaded from
    verifier          the task's own judge, or None: its value stands beside the score as the part "verifier"; it decides nothing
    tokens_per_pass   bound of one forward pass

    An outcome is a failure, with its reason, where the score is not finite or the text does not fit into the model's context. A
    verifier that fails leaves only its part out; how often is among the notes.
    """

    def __init__(self, model: "RewardModel", name: str, verifier: Any = None, *, tokens_per_pass: int = 16384) -> None:
        self.model, self.name, self.verifier, self.tokens_per_pass = model, name, verifier, tokens_per_pass
        self.failures = FailureCounts()
        self._notes: list[str] = []

    @property
    def step(self) -> int:
        """The trainer's step, which the verifier may read."""
        return self.verifier.step if self.verifier is not None else 0

    @step.setter
    def step(self, step: int) -> None:
        if self.verifier is not None:
            self.verifier.step = step

    def reference(self, example: Example) -> Any:
        """The verifier's reference answer of an example, or None."""
        return None if self.verifier is None else self.verifier.reference(example)

    def score(
        self,
        examples: Sequence[Example],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[Outcome]:
        """One outcome per completion, in their order. `completion_ids` are the policy's tokens, for the verifier alone."""
        learned = self.learned(examples, completions)
        if self.verifier is None:
            outcomes = learned
        else:
            verified = self.verifier.score(examples, completions, completion_ids)
            outcomes = [joined(*pair) for pair in zip(learned, verified, strict=True)]
            self._note_failures(verified)
        self.failures.add(examples, completions, outcomes)
        return outcomes

    def learned(self, examples: Sequence[Example], completions: Sequence[str]) -> list[Outcome]:
        """The reward model's outcomes alone, with the part "reward_model"."""
        if len(examples) != len(completions):
            raise ValueError(f"{len(examples)} examples, but {len(completions)} completions")
        outcomes: list[Outcome] = [Outcome(None, failure=NOT_READ)] * len(completions)
        places: dict[str, int] = {}
        prompts: list[list[int]] = []
        rows: list[tuple[int, int, list[int]]] = []
        for row, (example, completion) in enumerate(zip(examples, completions, strict=True)):
            try:
                ids = self._prompt(example, places, prompts)
                tokens, _ = self.model.encode_completion(example.prompt, completion)
            except UsageError as error:
                outcomes[row] = Outcome(None, failure=f"the reward model cannot read it: {error}")
                continue
            size = len(prompts[ids]) + len(tokens)
            if size > self.model.context_length:
                limit = self.model.context_length
                outcomes[row] = Outcome(
                    None,
                    failure=f"prompt and completion are longer than the {limit} tokens of the reward model's context",
                )
            elif prompts[ids]:
                rows.append((row, ids, tokens))
            elif size:  # without a prompt, the completion's first token stands in its place
                prompts.append(tokens[:1])
                rows.append((row, len(prompts) - 1, tokens[1:]))
        if rows:
            for (row, _, _), value in zip(rows, self._values(prompts, rows), strict=True):
                outcomes[row] = (
                    Outcome(value, {"reward_model": value})
                    if math.isfinite(value)
                    else Outcome(None, failure=f"the reward model's score is {value}")
                )
        return outcomes

    def _prompt(self, example: Example, places: dict[str, int], prompts: list[list[int]]) -> int:
        """Where the tokens of the example's prompt stand in `prompts`."""
        key = repr(example.prompt)
        if key not in places:
            prompts.append(self.model.encode(example.prompt))
            places[key] = len(prompts) - 1
        return places[key]

    @torch.no_grad()
    def _values(self, prompts: list[list[int]], rows: Sequence[tuple[int, int, list[int]]]) -> list[float]:
        tokens = [ids for _, _, ids in rows]
        rollouts = Rollouts.given(
            prompts, torch.tensor([prompt for _, prompt, _ in rows]), tokens, ["stop"] * len(rows), [""] * len(rows)
        )
        plan = self.model.plan(rollouts, tokens_per_pass=self.tokens_per_pass)
        found = torch.cat([self.model.scores(rollouts, part).cpu() for part in plan])
        values: list[float] = found[torch.cat(plan).argsort()].tolist()
        return values

    def _note_failures(self, verified: Sequence[Outcome]) -> None:
        failed = [outcome.failure for outcome in verified if outcome.failure]
        if failed:
            self._notes.append(
                f"the verifier, which only measures here, failed on {len(failed)} of {len(verified)} completions: {failed[0]}"
            )

    def take_failures(self) -> FailureCounts:
        """The failures since they were last taken."""
        taken, self.failures = self.failures, FailureCounts()
        return taken

    def take_metrics(self) -> dict[str, float]:
        """What the verifier's rewards logged beside the score."""
        return {} if self.verifier is None else dict(self.verifier.take_metrics())

    def take_notes(self) -> list[str]:
        """The verifier's notes, and how often it failed, since last taken."""
        taken, self._notes = self._notes, []
        return taken if self.verifier is None else [*taken, *self.verifier.take_notes()]

    def describe(self) -> str:
        return f"reward model {self.name}"

    def close(self) -> None:
        """End the verifier's workers."""
        if self.verifier is not None:
            self.verifier.close()


def joined(learned: Outcome, verified: Outcome) -> Outcome:
    """The learned outcome, with what the verifier says as the part "verifier" and as columns."""
    if learned.value is None:
        return learned
    parts = dict(learned.parts)
    if verified.value is not None:
        parts["verifier"] = verified.value
    return Outcome(learned.value, parts, columns=verified.columns)


def mean_score(judge: Any, verifier: Any, examples: Sequence[Example], completions: Sequence[str]) -> dict[str, float]:
    """{"eval/reward_model": mean score} of evaluated completions, where a reward model is trained on beside a verifier."""
    if judge is verifier or not isinstance(judge, RewardModelJudge):
        return {}
    values = [outcome.value for outcome in judge.learned(examples, completions) if outcome.value is not None]
    return {"eval/reward_model": sum(values) / len(values)} if values else {}
