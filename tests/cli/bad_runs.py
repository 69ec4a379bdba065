"""Run folders that cannot be used, or are damaged. Each case finds run/, trained for two steps, damaged by `damage`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .scene import Case

BEGIN = "train grpo --model TOY --data questions.jsonl --reward exact --steps 3 --set checkpoint_every=1 "
RESUME = BEGIN + "--out run --resume "
NEWEST = "run/checkpoints/step-000002"


@dataclass(frozen=True)
class RunCase(Case):
    damage: Callable[[Path], object] = lambda folder: None


def flip(*files: str) -> Callable[[Path], None]:
    """Changes one byte in the middle of each file."""

    def damage(folder: Path) -> None:
        for name in files:
            content = bytearray((folder / name).read_bytes())
            content[len(content) // 2] ^= 1
            (folder / name).write_bytes(content)

    return damage


def replaced(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


ALL_WEIGHTS = [f"run/checkpoints/step-00000{step}/model.safetensors" for step in (1, 2)]

RUNS = [
    RunCase("run is there already", BEGIN + "--out run", 2, ("run already has a run", "--resume", "--out")),
    RunCase("out is a file", BEGIN + "--out questions.jsonl", 2, ("questions.jsonl", "no folder", "--out")),
    RunCase("out is under a file", BEGIN + "--out questions.jsonl/run", 2, ("questions.jsonl is no folder", "--out")),
    RunCase("out cannot be made", BEGIN + "--out /proc/upslope", 2, ("/proc/upslope", "cannot be made", "--out")),
    RunCase(
        "out holds another's metrics",
        BEGIN + "--out other",
        2,
        ("other already has a run (metrics.jsonl)",),
        damage=lambda folder: ((folder / "other").mkdir(), (folder / "other/metrics.jsonl").write_text("{}")),
    ),
    RunCase(
        "resumed with another rate",
        RESUME + "--set optimizer.lr=0.5",
        2,
        ("started with other settings", "optimizer.lr was None, now 0.5"),
    ),
    RunCase(
        "resumed with another method",
        RESUME.replace("grpo", "rloo"),
        2,
        ("started with other settings", "method was 'grpo', now 'rloo'"),
    ),
    RunCase(
        "resumed on other data",
        RESUME,
        2,
        ("has changed", "training examples was"),
        damage=replaced("questions.jsonl", '{"question": "a", "answer": "1"}\n{"question": "b", "answer": "1"}\n'),
    ),
    RunCase(
        "resumed without settings",
        RESUME,
        2,
        ("no config.yaml", "cannot be resumed"),
        damage=removed("run/config.yaml"),
    ),
    RunCase(
        "resumed with broken settings",
        RESUME,
        2,
        ("run/config.yaml is not YAML",),
        damage=replaced("run/config.yaml", "steps: ["),
    ),
    RunCase(
        "every checkpoint is damaged",
        RESUME,
        2,
        ("no checkpoint", "step 2: model.safetensors", "step 1: model.safetensors"),
        damage=flip(*ALL_WEIGHTS),
    ),
    RunCase(
        "newest weights are damaged",
        RESUME,
        0,
        ("damaged and passed over", "step 2: model.safetensors", "step 1 is used"),
        damage=flip(ALL_WEIGHTS[1]),
    ),
    RunCase(
        "newest state is damaged",
        RESUME,
        0,
        ("damaged and passed over", "trainer/tensors.safetensors", "step 1 is used"),
        damage=flip(NEWEST + "/trainer/tensors.safetensors"),
    ),
    RunCase(
        "newest checkpoint lacks a file",
        RESUME,
        0,
        ("passed over", "config.json is missing", "step 1 is used"),
        damage=removed(NEWEST + "/config.json"),
    ),
    RunCase(
        "newest manifest is damaged",
        RESUME,
        0,
        ("passed over", "manifest.json is not what was written", "step 1 is used"),
        damage=replaced(NEWEST + "/manifest.json", "{"),
    ),
    RunCase(
        "last line of the metrics is torn",
        RESUME,
        0,
        ("finished",),
        damage=lambda folder: (folder / "run/metrics.jsonl").open("a").write('{"step": 3, "rew'),
    ),
    RunCase("nothing to resume", BEGIN + "--out new --resume", 0, ("no run to resume in new", "a new one starts")),
    RunCase(
        "all steps are done",
        RESUME.replace("--steps 3", "--steps 2"),
        0,
        ("already been trained for 2 steps", "--steps"),
    ),
    RunCase(
        "eval of a damaged checkpoint",
        f"eval {NEWEST} --data questions.jsonl --reward exact",
        2,
        ("weights of", "step-000002"),
        damage=lambda folder: (folder / ALL_WEIGHTS[1]).write_bytes(b"x" * 100),
    ),
    RunCase("report over nothing to show", "report run", 0, ("report.html",), damage=replaced("run/metrics.jsonl", "")),
]
