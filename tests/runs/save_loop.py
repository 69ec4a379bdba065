"""Run by test_kill.py: forks a process that saves as fast as it can, kills it, looks at what is left; many times.

python save_loop.py FOLDER increasing|same KILLS    prints one line of JSON per kill
python save_loop.py FOLDER increasing|same 0        only saves, and prints each step, until it is killed
"""

import json
import os
import random
import signal
import sys
import time
from itertools import count
from pathlib import Path

import torch

from upslope.runs.folder import RunFolder
from upslope.runs.metrics import read_metrics


def save_forever(folder: str, steps: str, acknowledge: int) -> None:
    """Write "STEP SERIAL" to the descriptor `acknowledge` after each save. Step "same" replaces one checkpoint."""
    with RunFolder.open(folder, {"seed": 1}, resume=True, sinks=[]) as run:
        last = run.restore()
        serial = last.tree()["serial"] + 1 if last else 0
        for step in count(last.step + 1 if last else 0) if steps == "increasing" else (0 for _ in count()):
            content = torch.full((2000,), float(serial))

            def write_policy(path: Path, serial: int = serial) -> None:
                for name in ("config.json", "model.safetensors"):
                    (path / name).write_text(str(serial) * 5000)

            run.log(step, {"reward": float(serial)})
            run.save(step, write_policy=write_policy, state={"serial": serial, "content": content}, keep=2)
            os.write(acknowledge, f"{step} {serial}\n".encode())
            serial += 1


def kill(folder: str, steps: str, seconds: float) -> list[int]:
    """[step, serial] of the last save that was acknowledged before the kill, `seconds` after the first one."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        save_forever(folder, steps, writer)
    os.close(writer)
    with open(reader, "rb") as acknowledged:
        first = acknowledged.readline()
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = (first + acknowledged.read()).split(b"\n")
    return [int(word) for word in lines[-2].split()]


def look(folder: str) -> dict[str, object]:
    """What a resumed run finds."""
    hidden = [path.name.split("-")[0] for path in (Path(folder) / "checkpoints").glob(".*")]
    with RunFolder.open(folder, {"seed": 1}, resume=True, sinks=[]) as run:
        checkpoint = run.restore()
        tree = checkpoint.tree()
        return {
            "step": checkpoint.step,
            "serial": tree["serial"],
            "tensors": bool((tree["content"] == tree["serial"]).all()),
            "policy": (checkpoint.path / "model.safetensors").read_text() == str(tree["serial"]) * 5000,
            "last_row": read_metrics(folder)[-1],
            "leftovers": hidden,
            "cleaned": not list((Path(folder) / "checkpoints").glob(".*")),
        }


if __name__ == "__main__":
    run_folder, mode, kills = sys.argv[1:]
    if kills == "0":
        save_forever(run_folder, mode, sys.stdout.fileno())
    moments = random.Random(mode)
    for _ in range(int(kills)):
        killed = kill(run_folder, mode, moments.uniform(0, 0.05))
        print(json.dumps({"acknowledged": killed, **look(run_folder)}), flush=True)
