"""The report: one self-contained HTML file that shows what a run, or a comparison of runs, did.

    write_report([run], out)            one run: verdict, curves, objective, samples, failures, timing, settings
    write_report([run, run, ...], out)  several: grouped by method and settings, over their seeds
    write_compare_report(folder, out)   what `upslope compare` wrote
    write_figure(run, out)              the learning curve alone, as an SVG picture

Model outputs and user data are untrusted: they are escaped, and the page's Content-Security-Policy runs nothing but
its own script and lets nothing reach the network.
"""

from collections.abc import Sequence
from pathlib import Path

from upslope.errors import UsageError
from upslope.report.compare import write_compare_report, write_runs_report
from upslope.report.figure import write_figure
from upslope.report.read import read_run
from upslope.report.single import write_single_report

__all__ = ["write_compare_report", "write_figure", "write_report"]


def write_report(run_dirs: Sequence[Path], out: Path, *, title: str | None = None) -> Path:
    """Write one HTML file about the given run folders to `out` (a file, or a folder: report.html in it); its path.

    Files that are missing or damaged are named in the page; what can be read is shown.

    Raises:
        UsageError: no folder is given, one is no run folder, or `out` cannot be a file.
        RunError: the disk refuses.
    """
    if not run_dirs:
        raise UsageError("a report needs at least one run folder: `upslope report runs/demo`.")
    runs = [read_run(Path(path)) for path in run_dirs]
    if len(runs) == 1:
        return write_single_report(runs[0], Path(out), title)
    return write_runs_report(runs, Path(out), title)
