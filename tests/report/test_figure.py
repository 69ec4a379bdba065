from xml.etree import ElementTree as ET

import pytest

from upslope.errors import UsageError
from upslope.report import write_figure

SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_stands_alone(tmp_path, make_run):
    out = write_figure(make_run(tmp_path / "run"), tmp_path / "curve.svg")
    root = ET.parse(out).getroot()
    assert root.tag == f"{SVG}svg"
    titles = [e.text for e in root.iter(f"{SVG}text") if e.get("class") == "title"]
    assert titles == ["Held-out pass@1", "Training reward"]
    assert "prefers-color-scheme: dark" in root.find(f"{SVG}style").text
    assert not list(root.iter(f"{SVG}script"))
    assert not [e for e in root.iter() if any("href" in name for name in e.attrib)]
    assert sum("band" in e.get("class", "") for e in root.iter(f"{SVG}path")) == 1
    assert out.stat().st_size < 40_000


def test_without_a_curve_it_says_so(tmp_path, make_run):
    with pytest.raises(UsageError, match=r"neither eval/pass@1 nor reward"):
        write_figure(make_run(tmp_path / "run", metrics=[{"step": 1, "kl": 1.0}]), tmp_path / "curve.svg")


def test_the_picture_of_a_run_on_given_pairs(tmp_path, make_run):
    rows = [{"step": s, "eval/loss": 0.7 - s / 50, "eval/pairs/accuracy": 0.5 + s / 50} for s in range(3)]
    root = ET.parse(write_figure(make_run(tmp_path / "run", metrics=rows), tmp_path / "curve.svg")).getroot()
    titles = [e.text for e in root.iter(f"{SVG}text") if e.get("class") == "title"]
    assert titles == ["Held-out loss", "Held-out pair accuracy"]
