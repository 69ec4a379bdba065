"""Rewards that cannot be loaded, and rewards that fail while they judge."""

from .scene import Case

TRAIN = "train grpo --model TOY --data questions.jsonl --out run --steps 2 --set reward_timeout=0.5 --set max_skipped=1 --reward "
MINE = TRAIN + "mine.py:score"
TRL = "def score(prompts, completions, **columns):\n    "
VERL = "def score(data_source, solution_str, ground_truth, extra_info=None):\n    "

REFUSED = [
    Case("unknown reward", TRAIN + "exactly", 2, ("no reward 'exactly'", "exact", "FILE.py:FUNCTION")),
    Case("reward file is missing", MINE, 2, ("mine.py", "No such file")),
    Case(
        "reward names no function",
        TRAIN + "mine.py",
        2,
        ("names no function", "mine.py:FUNCTION", "score"),
        {"mine.py": TRL + "return []"},
    ),
    Case(
        "reward has a syntax error",
        MINE,
        2,
        ("mine.py", "syntax error at line 2", "return ["),
        {"mine.py": TRL + "return [\n"},
    ),
    Case(
        "reward has no such function",
        TRAIN + "mine.py:grade",
        2,
        ("no function 'grade'", "score"),
        {"mine.py": TRL + "return []"},
    ),
    Case(
        "reward raises on import",
        MINE,
        2,
        ("mine.py", "cannot be imported", "ZeroDivisionError", "mine.py:1"),
        {"mine.py": "x = 1 / 0\n" + TRL + "return []"},
    ),
    Case(
        "reward exits on import",
        MINE,
        2,
        ("cannot be imported", "code 3"),
        {"mine.py": "import os\nos._exit(3)\n" + TRL + "return []"},
    ),
    Case(
        "reward of an unknown signature",
        MINE,
        2,
        ("mine.py", "score(text, truth)", "completions", "solution_str"),
        {"mine.py": "def score(text, truth):\n    return 1.0\n"},
    ),
    Case(
        "reward reads an absent column",
        MINE,
        2,
        ("needs 'grade'", "question, answer"),
        {"mine.py": "def score(completions, grade):\n    return [1.0] * len(completions)\n"},
    ),
    Case("weight is no number", TRAIN + "exact*x", 2, ("weight", "'x'")),
    Case("pattern does not compile", TRAIN + "'regex:('", 2, ("regex:(", "does not compile")),
    Case("no time for rewards", TRAIN + "exact --set reward_timeout=0", 2, ("reward_timeout", "above 0")),
    Case("no workers for rewards", TRAIN + "exact --set reward_workers=0", 2, ("reward_workers", "at least 1")),
]

FAILED = [
    Case(
        "reward raises",
        MINE,
        1,
        ("every reward failed", "ValueError", "mine.py:2", "step 1", "last good"),
        {"mine.py": TRL + "raise ValueError('no luck')"},
    ),
    Case(
        "reward raises, one by one",
        MINE,
        1,
        ("every reward failed", "KeyError", "mine.py:2"),
        {"mine.py": VERL + "return extra_info['absent']"},
    ),
    Case(
        "reward hangs",
        MINE,
        1,
        ("every reward failed", "timed out after 0.5 s"),
        {"mine.py": "import time\n" + TRL + "time.sleep(60)"},
    ),
    Case(
        "reward is NaN",
        MINE,
        1,
        ("every reward failed", "nan"),
        {"mine.py": TRL + "return [float('nan')] * len(completions)"},
    ),
    Case("reward is infinite", MINE, 1, ("every reward failed", "inf"), {"mine.py": VERL + "return float('inf')"}),
    Case(
        "rewards are too few",
        MINE,
        1,
        ("every reward failed", "returned 1 rewards for 8 completions"),
        {"mine.py": TRL + "return [1.0]"},
    ),
    Case(
        "reward is one number for all",
        MINE,
        1,
        ("every reward failed", "returned float, not a list of 8 rewards"),
        {"mine.py": TRL + "return 1.0"},
    ),
    Case(
        "reward is a text",
        MINE,
        1,
        ("every reward failed", "returned str, not a number"),
        {"mine.py": VERL + "return 'good'"},
    ),
    Case("reward is None", MINE, 1, ("every reward failed", "returned None"), {"mine.py": VERL + "return None"}),
    Case(
        "reward ends its process",
        MINE,
        1,
        ("every reward failed", "exited with code 7"),
        {"mine.py": "import os\n" + TRL + "os._exit(7)"},
    ),
    Case(
        "reward calls sys.exit",
        MINE,
        1,
        ("every reward failed", "SystemExit"),
        {"mine.py": "import sys\n" + VERL + "sys.exit('done')"},
    ),
    Case(
        "reward raises for some",
        MINE,
        0,
        ("reward failed: ValueError", "verifier failed on"),
        {
            "mine.py": VERL
            + "if int(ground_truth) % 2:\n        raise ValueError('odd')\n    return float(len(solution_str) % 3)"
        },
    ),
    Case(
        "all rewards are equal",
        MINE,
        0,
        ("No group had any reward variance in 2 of 2 steps", "finer grades"),
        {"mine.py": TRL + "return [1.0] * len(completions)"},
    ),
    Case(
        "reward prints hundreds of megabytes",
        MINE,
        0,
        ("the reward printed: aaa", "bytes in all, the rest was thrown away"),
        {"mine.py": TRL + "print('a' * 150_000_000)\n    return [float(len(one) % 3) for one in completions]"},
    ),
]
