"""upslope report DIR ..."""

from pathlib import Path

import tyro

from upslope.errors import UsageError


def command(runs: tyro.conf.Positional[tuple[Path, ...]], *, out: Path | None = None) -> None:
    """Write a self-contained HTML report of one run, several runs, or a comparison's folder.

    Args:
        runs: run folders, or the folder that `upslope compare` wrote.
        out: the file to write; report.html in the first folder where not given.
    """
    from upslope.report import write_compare_report, write_report

    if not runs:
        raise UsageError("report: name a run folder. Example: upslope report runs/demo")
    for run in runs:
        if not run.is_dir():
            raise UsageError(f"report: {run} is no folder. Name the --out folder of a run.")
    out = out or runs[0] / "report.html"
    if len(runs) == 1 and (runs[0] / "results.json").exists():
        written = write_compare_report(runs[0], out)
    else:
        written = write_report(runs, out)
    print(written)
