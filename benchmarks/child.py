"""One measurement in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "PYTHONHASHSEED": "0"}
"""Threads wait as each program sets it: a benchmark's two systems by the default, the command line by its own setting."""


def measured(script: str, *arguments: object) -> dict:
    """What a script of this folder prints as its last line, in JSON. Exits with its error where it fails."""
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
