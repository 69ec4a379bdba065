"""Pages in a real, headless browser: the script runs, charts and filters work, hostile text neither acts nor calls.

Skipped where no Chromium is installed; on Debian: apt-get install -y chromium
"""

import json
import re
import subprocess
from pathlib import Path

from report.test_page import HOSTILE, Page, poisoned
from upslope.report import page as report_page
from upslope.report import write_report

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-sync", "--disable-component-update", "--disable-default-apps", "--disable-extensions",
    "--disable-dev-shm-usage", "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,MediaRouter",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # the browser's own habits stay on this machine
    "--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=4000", "--dump-dom",
)  # fmt: skip

PROBE = """
const found = { charts: document.querySelectorAll("figure[data-chart] > svg.chart").length, tips: [] };
for (const svg of document.querySelectorAll("figure[data-chart] > svg.chart")) {
  const box = svg.getBoundingClientRect();
  const at = { clientX: box.left + box.width * 0.99, clientY: box.top + 20, bubbles: true };
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  found.tips.push(tip.textContent);
  found.cursor = svg.querySelector(".cursor") !== null;
  svg.dispatchEvent(new PointerEvent("pointerleave", at));
}
found.hidden = tip.hidden;
const shown = () => [...document.querySelectorAll("#list > .sample")].filter((sample) => !sample.hidden).length;
const set = (name, value) => {
  filters.elements[name].value = value;
  filters.dispatchEvent(new Event("input"));
  return [shown(), document.getElementById("shown").textContent];
};
if (filters) {
  found.all = shown();
  found.failed = set("level", "failed");
  set("level", "");
  found.text = set("text", "HELD-OUT-7");
}
found.width = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.body.append(Object.assign(document.createElement("pre"), { id: "probe", textContent: JSON.stringify(found) }));
"""


def browse(chromium: str, page: Path, folder: Path, *flags: str) -> tuple[str, list[str], list[str]]:
    """The page's DOM after its script ran, what the console said, and every URL that the page asked the network for."""
    log = folder / "net.json"
    command = [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=90, text=True, errors="replace")
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, console, asked_by_pages(log)


def asked_by_pages(log: Path) -> list[str]:
    """URLs of the requests in a network log that a page began; the browser's own have "not an origin"."""
    asked = []
    for line in log.read_text(errors="replace").splitlines():
        initiator, url = (re.search(rf'"{name}":"([^"]*)"', line) for name in ("initiator", "url"))
        if initiator and url and initiator[1] != "not an origin" and not url[1].startswith(("file:", "data:")):
            asked.append(url[1])
    return asked


def probed(monkeypatch, folder: Path) -> None:
    """Pages written from now on carry PROBE too; their policy allows it as it allows their own script."""
    (folder / "probe.js").write_text(PROBE)
    monkeypatch.setattr(report_page, "SCRIPTS", ("page.js", str(folder / "probe.js")))


def probe_of(dom: str) -> dict:
    return json.loads(Page(dom).pre[-1])


def test_charts_answer_the_pointer_and_filters_filter(tmp_path, make_run, chromium, monkeypatch):
    samples = [
        {"step": s, "split": "eval", "key": f"held-out-{s}", "prompt": "p", "completion": "c", "reward": None if s % 2 else 1.0,
         "parts": {}, "failure": "timed out" if s % 2 else None, "finish": "stop"}
        for s in range(10)
    ]  # fmt: skip
    probed(monkeypatch, tmp_path)
    page = write_report([make_run(tmp_path / "run", samples=samples)], tmp_path / "page.html")
    dom, console, asked = browse(chromium, page, tmp_path, "--window-size=500,900")
    found = probe_of(dom)
    assert (console, asked) == ([], [])
    assert found["charts"] == len(found["tips"]) == page.read_text("utf-8").count("data-chart=") > 10
    assert found["cursor"]
    assert found["hidden"]
    tip = next(text for text in found["tips"] if "eval/pass@1" in text)
    last = make_run.metrics()[-1]
    assert tip == "step 60eval/pass@1{:#.4g} [{:#.4g}, {:#.4g}]".format(
        *(last[f"eval/pass@1{end}"] for end in ("", "_low", "_high"))
    )
    assert found["all"] == 10
    assert found["failed"] == [5, "5 of 10 shown"]
    assert found["text"] == [1, "1 of 10 shown"]
    assert found["width"] <= 0  # nothing sticks out of a narrow window


def test_hostile_text_is_inert(tmp_path, make_run, chromium, monkeypatch):
    probed(monkeypatch, tmp_path)
    page = write_report(
        [poisoned(make_run, tmp_path / "run", " ".join(HOSTILE))], tmp_path / "page.html", title=HOSTILE[0]
    )
    dom, console, asked = browse(chromium, page, tmp_path)
    assert (console, asked) == ([], [])
    parsed = Page(dom)
    assert "img" not in [tag for tag, _ in parsed.elements]
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    assert "document.title='owned'" in "".join(parsed.pre)
    assert any("onerror" in tip for tip in probe_of(dom)["tips"])  # shown in a chart's tip, as text


def test_even_markup_that_slipped_through_could_do_nothing(tmp_path, make_run, chromium):
    """The second line of defence, and the proof that the tests above would see what they look for."""
    page = write_report([make_run(tmp_path / "run", samples=[])], tmp_path / "page.html")
    injected = "<main><script>document.title='owned'</script><img src='http://127.0.0.1:9/x' onerror=\"document.title='owned'\">"
    page.write_text(page.read_text("utf-8").replace("<main>", injected, 1), encoding="utf-8")
    dom, console, asked = browse(chromium, page, tmp_path)
    assert "<title>owned" not in dom
    assert sum("Content Security Policy" in line for line in console) >= 2
    assert asked == []
    page.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8")), encoding="utf-8"
    )
    dom, console, asked = browse(chromium, page, tmp_path)
    assert "<title>owned" in dom
    assert asked == ["http://127.0.0.1:9/x"]
