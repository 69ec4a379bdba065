"""Where the prompt of a whole conversation ends: a completion is what the assistant says last."""

from collections.abc import Sequence

from upslope.rollout import Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
Text = str | list[Message]


class UnusableRowError(Exception):
    """A row that is left out and counted; its text says why, in words that fit other rows too."""


def split_conversation(conversations: Sequence[Text]) -> tuple[Text, list[Text]]:
    """The prompt of one conversation, or of two that begin alike, and the assistant's last turn in each.

    Messages: the prompt is what all share, without assistant messages at its end. A text as in HH ("\\n\\nHuman: ...
    \\n\\nAssistant: ..."): the prompt is what all share, up to and with the last "\\n\\nAssistant:" of that.
    Raises UnusableRowError if there is no prompt, or something that the assistant did not say follows it.
    """
    texts = [one for one in conversations if isinstance(one, str)]
    end = (
        prompt_end_of_texts(texts) if texts else prompt_end([one for one in conversations if not isinstance(one, str)])
    )
    if end == 0:
        start = "chosen and rejected share" if len(conversations) > 1 else "there is"
        raise UnusableRowError(f"{start} no prompt before the assistant's turn")
    completions = [conversation[end:] for conversation in conversations]
    if not all(map(is_assistant, completions)):
        if len(conversations) > 1:
            raise UnusableRowError("chosen and rejected part before the assistant's last turn")
        raise UnusableRowError("the last turn is not the assistant's")
    return conversations[0][:end], completions


def prompt_end(conversations: Sequence[Sequence[Message]]) -> int:
    end = 0
    for turns in zip(*conversations, strict=False):
        if any(turn != turns[0] for turn in turns):
            break
        end += 1
    while end and conversations[0][end - 1]["role"] == "assistant":
        end -= 1
    return end


def prompt_end_of_texts(conversations: Sequence[str]) -> int:
    first = conversations[0]
    at = first.rfind(ASSISTANT)
    while at >= 0 and not all(other.startswith(first[: at + len(ASSISTANT)]) for other in conversations):
        at = first.rfind(ASSISTANT, 0, at)
    return at + len(ASSISTANT) if first[: max(at, 0)].strip() else 0


def is_assistant(completion: Text) -> bool:
    """Whether all of it is the assistant's, and it is not without any message."""
    if isinstance(completion, str):
        return HUMAN not in completion
    return bool(completion) and all(message["role"] == "assistant" for message in completion)


def is_conversation(value: Text) -> bool:
    """Whether messages begin with another's turn, or a text has turns as in HH."""
    if isinstance(value, str):
        return ASSISTANT in value
    return bool(value) and value[0]["role"] != "assistant"


def is_blank(completion: Text) -> bool:
    if isinstance(completion, str):
        return not completion.strip()
    return not any(message["content"].strip() for message in completion)
