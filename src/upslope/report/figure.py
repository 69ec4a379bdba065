"""A run's learning curve as a standalone SVG picture, for a README or a paper."""

from pathlib import Path
from xml.etree import ElementTree as ET

from upslope.errors import UsageError
from upslope.report.catalog import LEARNING, charts_of
from upslope.report.chart import HEIGHT, WIDTH, Chart, draw, frame_of, text
from upslope.report.groups import run_name
from upslope.report.read import read_run
from upslope.runs.files import write_atomic

TOP = 46.0  # room for a title above each chart
GAP = 28.0


def write_figure(run_dir: Path, out: Path) -> Path:
    """Write held-out pass@1 with its interval and the training reward, side by side to the SVG file `out`; its path.

    Of a run on given completions: held-out loss, and pair accuracy where there are pairs.

    The picture follows the reader's light or dark scheme and needs no script.

    Raises:
        UsageError: `run_dir` is no run folder, or has recorded none of these.
        RunError: the disk refuses.
    """
    run = read_run(Path(run_dir))
    charts = [chart for metric, chart in charts_of({run_name(run): [run]}) if metric in LEARNING]
    if not charts:
        raise UsageError(
            f"{run_dir} has recorded neither eval/pass@1 nor reward nor eval/loss: there is no curve to draw."
        )
    style = (Path(__file__).parent / "chart.css").read_text(encoding="utf-8")
    write_atomic(Path(out), ET.tostring(draw_figure(charts, style), encoding="unicode") + "\n")
    return Path(out)


def draw_figure(charts: list[Chart], style: str) -> ET.Element:
    """The charts side by side, each under its title, with their style inside."""
    width, height = len(charts) * (WIDTH + GAP) - GAP + 16, HEIGHT + TOP
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}"})
    svg.attrib |= {"width": f"{width:g}", "height": f"{height:g}", "class": "chart", "role": "img"}
    ET.SubElement(svg, "style").text = style
    ET.SubElement(svg, "rect", {"width": "100%", "height": "100%", "rx": "6", "class": "background"})
    labels = []
    for index, chart in enumerate(charts):
        place = ET.SubElement(svg, "g", {"transform": f"translate({8 + index * (WIDTH + GAP):g} {TOP - 8:g})"})
        panel = draw(chart, frame_of(chart))
        labels.append(panel.get("aria-label", ""))
        text(place, 8, -14, chart.title, "title", "start")
        place.extend(panel)
    svg.set("aria-label", "; ".join(labels))
    return svg
