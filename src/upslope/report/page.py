"""Templates, style and script put together into one self-contained file that asks the network for nothing."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from upslope.errors import UsageError
from upslope.report.catalog import LEARNING, Metric
from upslope.report.chart import Chart, color_class, draw, hover_data, svg_markup
from upslope.report.text import cut, format_duration, format_number, format_share, format_short, plural, visible
from upslope.runs.files import write_atomic

HERE = Path(__file__).parent
STYLES = ("chart.css", "page.css")
SCRIPTS = ("page.js",)


class Figures:
    """The charts of a page: each is drawn where the template asks for it, and its values are kept for the script."""

    def __init__(self) -> None:
        self.data: list[dict[str, Any]] = []

    def place(self, charts: Sequence[tuple[Metric, Chart]]) -> dict[str, list[dict[str, Any]]]:
        """The charts of a page by their place: "large", "small", and "other", which is folded away."""
        places: dict[str, list[dict[str, Any]]] = {"large": [], "small": [], "other": []}
        for metric, chart in charts:
            name = "large" if metric in LEARNING else "other" if metric.other else "small"
            places[name].append(self.add(chart))
        return places

    def add(self, chart: Chart) -> dict[str, Any]:
        """What the template shows of a chart: number, title, help, legend, SVG."""
        self.data.append(hover_data(chart))
        named = [line for line in chart.lines if not line.raw]
        legend = [(line.name.removesuffix(", smoothed"), color_class(line.color)) for line in named]
        return {
            "number": len(self.data) - 1,
            "title": chart.title,
            "help": chart.help,
            "legend": legend if len(legend) > 1 else [],
            "svg": svg_markup(draw(chart)),
        }


def write_page(out: Path, template: str, **context: Any) -> Path:
    """Render `template` with `context` to the file `out`, or to report.html in the folder `out`, atomically.

    Raises:
        UsageError: there can be no folder where the file should go.
        RunError: the disk refuses.
    """
    out = page_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"cannot write {out}: {out.parent} is a file, not a folder. Give another path.") from error
    style, script = (
        Markup("\n".join((HERE / name).read_text("utf-8") for name in names)) for names in (STYLES, SCRIPTS)
    )
    page = (
        _environment()
        .get_template(template)
        .render(style=style, script=script, style_hash=_hash(style), script_hash=_hash(script), **context)
    )
    write_atomic(out, page.encode("utf-8", "replace"))
    return out


def page_path(out: Path) -> Path:
    """The file that a page goes to: `out`, or report.html in the folder `out`."""
    return out / "report.html" if out.is_dir() else out


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        visible=visible, cut=cut, amount=format_number, short=format_short, share=format_share, duration=format_duration
    )
    environment.globals.update(plural=plural)
    return environment


def _hash(content: str) -> str:
    """The content's source expression for a Content-Security-Policy: nothing but this very text may run, or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
