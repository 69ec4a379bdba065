"""Whole pages, read back with a parser: what they say, and that nothing from a run becomes markup."""

import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upslope.errors import UsageError
from upslope.report import write_report
from upslope.report.text import cut

HOSTILE = [
    "<script>document.title='owned'</script>",
    "</script><script>alert(1)</script>",
    '"><img src=http://example.invalid/x onerror=alert(1)>',
    "</pre></details></main><h1>owned</h1>",
    "<!-- <script> --!> ]]>",
    "{{ 7 * 7 }} {% raw %}",
    "\x1b[31mred\x1b[0m \x00 \u202eltr \ud800",
    "&lt;b&gt; &amp; 👩‍👩‍👧",
]


class Page(HTMLParser):
    """Elements with their attributes' names, the text, and the text of every <pre>."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.pre: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._open.append(tag)
        if tag == "pre":
            self.pre.append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self._open or "style" in self._open:
            return
        self.text += data
        if "pre" in self._open:
            self.pre[-1] += data


def page_of(folder, out, **options) -> Page:
    return Page(write_report([folder], out, **options).read_text(encoding="utf-8"))


def poisoned(make_run, path, text):
    """A small run with `text` in every place that a run can put text."""
    sample = {
        "split": "eval",
        "key": text,
        "prompt": text,
        "completion": text,
        "parts": {text: 1.0},
        "failure": None,
        "finish": text,
    }
    samples = [{**sample, "step": 0, "reward": 0.0}, {**sample, "step": 2, "reward": 1.0}]
    samples += [{**sample, "step": 2, "split": text, "reward": None, "failure": text}]
    metrics = [
        {"step": s, "reward": s / 2, f"z{text}": 1.0, "time/rollout": 1.0, f"time/z{text}": 1.0} for s in range(3)
    ]
    metrics[1]["nonfinite"] = {text: text}
    files = {
        "describe.txt": f"z{text}",
        "status.json": json.dumps({"state": text, "message": f"z{text}"}),
        "self_checks.json": json.dumps([{"name": text, "ok": False, "value": text, "limit": text, "message": text}]),
        "events.jsonl": json.dumps({"step": 1, "kind": text, "message": text, "count": text}),
        "config.yaml": yaml.safe_dump({"method": text, "task": text, f"z{text}": text, "model": f"z{text}"}),
    }
    return make_run(path, metrics=metrics, samples=samples, complete=False, files=files)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(tmp_path, make_run, text):
    plain = page_of(poisoned(make_run, tmp_path / "plain", "benign"), tmp_path / "plain.html", title="benign")
    page = page_of(poisoned(make_run, tmp_path / "run", text), tmp_path / "page.html", title=text)
    assert page.elements == plain.elements
    assert page.pre.count(cut(text)) == plain.pre.count("benign") > 4


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None, exclude_characters="\n"), min_size=1, max_size=60))
def test_any_text_is_text(tmp_path_factory, make_run, text):
    folder = tmp_path_factory.mktemp("run")
    plain = page_of(poisoned(make_run, folder / "plain", "benign"), folder / "plain.html", title="benign")
    page = page_of(poisoned(make_run, folder / "run", text), folder / "page.html", title=text)
    assert page.elements == plain.elements
    assert page.pre.count(cut(text)) >= plain.pre.count("benign")


def test_the_page_loads_nothing_and_forbids_what_is_not_its_own(tmp_path, make_run):
    page = page_of(poisoned(make_run, tmp_path / "run", HOSTILE[2]), tmp_path / "page.html")
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "style"
        if name in ("src", "href", "action", "xlink:href"):
            assert re.fullmatch(r"#[a-z-]+|data:,", value), (tag, name, value)
    (policy,) = (value for tag, name, value in page.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_a_full_run_says_everything(tmp_path, make_run):
    out = write_report([make_run(tmp_path / "run")], tmp_path / "page.html")
    page = Page(out.read_text(encoding="utf-8"))
    for part in (
        "grpo on countdown",
        "Held-out pass@1 rose from 0.41 [0.35, 0.47] to 0.89 [0.85, 0.92] in 60 steps, on 256 instances never trained on.",
        "Group Relative Policy Optimization", "Held-out pass@k", "Gradient norm", "KL to the reference", "Of 24 held-out prompts",
        "timed out after 5 s", "micro-batch invariance", "✗ failed", "zero-variance groups", "gradient norm is not finite",
        "rollout", "optimizer.lr", "3e-05",
    ):  # fmt: skip
        assert part in page.text, part
    assert "could not read" not in page.text
    assert out.stat().st_size < 1_000_000


def test_a_run_with_nothing_in_it_names_what_is_missing(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    page = page_of(tmp_path / "run", tmp_path / "page.html")
    for name in ("metrics.jsonl", "samples.jsonl", "describe.txt", "self_checks.json"):
        assert f"{name} is missing." in page.text
    for part in ("No metrics were recorded", "No samples", "No times", "No self-checks", "No held-out evaluation"):
        assert part in page.text


def test_a_run_in_an_environment_has_no_empty_sections_for_texts(tmp_path, make_run):
    rows = [{"step": step, "env_steps": 512.0 * step, "return": 10.0 + step, "reward": 1.0} for step in range(4)]
    page = page_of(make_run(tmp_path / "run", metrics=rows, samples=[]), tmp_path / "r.html")
    assert "1,536" in page.text
    for word in ("Before and after", "Samples", "completions that"):
        assert word not in page.text
    assert "Failures and notable events" in page.text
    spoken = page_of(make_run(tmp_path / "spoken", samples=[]), tmp_path / "s.html")
    assert "No samples were recorded" in spoken.text


def test_long_texts_and_many_samples_keep_the_page_small(tmp_path, make_run):
    sample = {
        "split": "train",
        "key": "k",
        "prompt": "p" * 10_000,
        "reward": 0.5,
        "parts": {},
        "failure": None,
        "finish": "stop",
    }
    rows = [{**sample, "step": s, "completion": "x" * (1_000_000 if s == 99 else 20_000)} for s in range(100)]
    out = write_report(
        [make_run(tmp_path / "run", samples=rows, metrics=make_run.metrics(5000))], tmp_path / "page.html"
    )
    assert out.stat().st_size < 1_000_000
    assert "996,000 of 1,000,000 characters not shown" in out.read_text(encoding="utf-8")


def test_where_a_page_may_go(tmp_path, make_run):
    run = make_run(tmp_path / "run", samples=[])
    assert write_report([run], run) == run / "report.html"
    assert write_report([run], tmp_path / "new" / "page.html").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        write_report([run], tmp_path / "file" / "page.html")
    with pytest.raises(UsageError, match="at least one run folder"):
        write_report([], tmp_path / "page.html")
