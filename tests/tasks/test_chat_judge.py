"""A judge behind HTTP: a server in this process answers what the test says, and keeps what it was asked."""

import re
import threading

import pytest

from upslope.errors import UsageError
from upslope.rollout import Example
from upslope.tasks.chat_judge import KEY, ChatJudge
from upslope.winrate import Contest


def contests(*pairs, prompt="1+1?"):
    return [Contest(Example(f"k{n}", prompt), [ours], [theirs]) for n, (ours, theirs) in enumerate(pairs)]


def judged(chat_server, *pairs, **options):
    judge = ChatJudge(chat_server.url, "big", pause=0.01, **options)
    return [one for (one,) in judge(contests(*pairs))]


def ordered(prompt, first, second):
    a, b = len(first), len(second)
    return f"Length. [[{'A' if a > b else 'B' if b > a else 'C'}]]"


def test_both_orders_are_asked_and_the_better_wins(chat_server):
    chat_server.reply = ordered
    found = judged(chat_server, ("long", "x"), ("x", "long"), ("x", "y"))
    assert [one.preference for one in found] == [1.0, 0.0, 0.5]
    assert found[0].notes == {"verdicts": ["A", "B"], "consistent": True, "first_preferred": 0.5}
    orders = {chat_server.pair(body) for _, body, _ in chat_server.asked}
    assert orders >= {("1+1?", "long", "x"), ("1+1?", "x", "long")}
    assert len(chat_server.asked) == 6
    path, body, headers = chat_server.asked[0]
    assert (path, body["model"], body["temperature"]) == ("/v1/chat/completions", "big", 0)
    assert "Authorization" not in headers


def test_a_judge_that_always_likes_the_first_place_decides_nothing(chat_server):
    chat_server.reply = lambda *asked: "[[A]]"
    (found,) = judged(chat_server, ("long", "x"))
    assert found.preference == 0.5
    assert found.notes == {"verdicts": ["A", "A"], "consistent": False, "first_preferred": 1.0}


def test_a_win_and_a_tie_are_a_tie_and_the_last_verdict_counts(chat_server):
    chat_server.reply = lambda prompt, first, second: "[[A]]" if first == "x" else "[[A]]? No: [[C]]"
    (found,) = judged(chat_server, ("x", "y"))
    assert (found.preference, found.notes["verdicts"]) == (0.5, ["A", "C"])


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("I cannot say.", "the judge named no winner: 'I cannot say.'"),
        ("", "the judge named no winner"),
        ((200, '{"choices": [{"message": {"content": null}}]}'), "a chat completion without text"),
        ((200, "not json"), "no chat completion: 'not json'"),
        ((200, '{"choices": []}'), "no chat completion"),
        ((200, "[1]"), "no chat completion"),
        ((400, '{"error": "too long"}'), r'HTTP 400 \({"error": "too long"}\)'),
        ((503, "busy"), r"HTTP 503 \(busy\) \(after 4 tries\)"),
    ],
)
def test_a_reply_that_is_none_fails_that_pair_only(chat_server, reply, says):
    chat_server.reply = lambda prompt, first, second: (
        reply if "bad" in (first, second) else ordered(prompt, first, second)
    )
    good, bad = judged(chat_server, ("long", "x"), ("bad", "x"))
    assert good.preference == 1.0
    assert bad.preference is None
    assert re.search(says, bad.failure)


def test_a_busy_server_is_asked_again(chat_server):
    busy = iter([(429, "", ("Retry-After", "0.01")), (503, "")])
    chat_server.reply = lambda *asked: next(busy, None) or ordered(*asked)
    (found,) = judged(chat_server, ("long", "x"))
    assert found.preference == 1.0
    assert len(chat_server.asked) == 4


def test_key_question_and_messages(chat_server, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    question = (
        "<request>\n{prompt}\n</request> <answer_a>\n{first}\n</answer_a> <answer_b>\n{second}\n</answer_b> {other}"
    )
    judge = ChatJudge(chat_server.url + "/chat/completions/", "big", question=question)
    judge([Contest(Example("k", [{"role": "user", "content": "hi"}]), ["{second}"], ["b"])])
    path, _, headers = chat_server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    texts = {body["messages"][0]["content"] for _, body, _ in chat_server.asked}
    assert any("user: hi" in text and "\n{second}\n</answer_a> <answer_b>\nb\n" in text for text in texts)
    assert all(text.endswith(" {other}") for text in texts)


def test_check(chat_server):
    ChatJudge(chat_server.url, "big").check()
    chat_server.reply = lambda *asked: (401, "no key")
    with pytest.raises(UsageError, match=r"the judge big at http://.* does not answer: HTTP 401 \(no key\)"):
        ChatJudge(chat_server.url, "big").check()


def test_nobody_there(chat_server):
    url = chat_server.url
    chat_server.server_close()
    with pytest.raises(UsageError, match=r"does not answer: .*refused.* \(after 2 tries\)"):
        ChatJudge(url, "big", tries=2, pause=0.01).check()


def test_a_server_that_is_silent(chat_server):
    release = threading.Event()
    chat_server.reply = lambda *asked: (release.wait(5), "[[C]]")[1]
    (found,) = judged(chat_server, ("long", "x"), timeout=0.2, tries=1)
    release.set()
    assert "timed out" in found.failure


@pytest.mark.parametrize(
    ("url", "question", "says"),
    [
        ("localhost:8000/v1", "{prompt}{first}{second}", "it must be the URL of an API"),
        ("file:///etc/x", "{prompt}{first}{second}", "it must be the URL of an API"),
        ("http://x/v1", "{prompt}{first}", "the judge's question lacks {second}"),
    ],
)
def test_wrong_settings(url, question, says):
    with pytest.raises(UsageError, match=says):
        ChatJudge(url, "m", question=question)
