"""upslope COMMAND: exit 0 on success, 2 for wrong usage with one line that helps, 1 for a failure."""

import os
import sys
import traceback


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line and returns its exit status; a traceback is shown with --debug only."""
    if arguments is None and "PYTHONHASHSEED" not in os.environ:
        # Some tasks draw from sets: without a fixed order, the same seed would give other prompts in every process.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONHASHSEED": "0"})
    if arguments is None and "UPSLOPE_PARENT" in os.environ:
        from upslope.parent import PARENT, die_with_parent

        die_with_parent(int(os.environ.pop(PARENT)))
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    # Idle threads of the maths libraries spin only briefly before they sleep. With libgomp's default two runs beside each
    # other starve; without any spinning a run alone loses a third of its speed. 1000 rounds cost neither (make bench).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    from upslope.cli import run
    from upslope.errors import UsageError

    try:
        return run([word for word in given if word != "--debug"])
    except UsageError as error:
        message, status = str(error), 2
    except KeyboardInterrupt:
        message, status = "interrupted. A run goes on from its last checkpoint with --resume.", 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from upslope.runs.files import RunError

        message, status = str(error), 1
        if not isinstance(error, RunError):  # whose message says it all
            message = f"{type(error).__name__}: {message.rstrip('.')}. Run again with --debug for the traceback."
    if debug:
        traceback.print_exc()
    print(f"upslope: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
