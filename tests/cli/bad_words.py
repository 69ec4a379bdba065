"""Wrong words on the command line and in --config files."""

from .scene import Case

OWN = "train grpo --model TOY --data questions.jsonl --reward exact --out run --steps 1"

TWO_BETAS = '''"""Mine: a penalty in the loss and one in the reward."""

from upslope.methods.rlvr.grpo import grpo
from upslope.parts.kl import KLInReward
from upslope.registry import method


@method(paper="0000.00000", title="Mine", parent="grpo")
def mine():
    return grpo().replace(reward=KLInReward())
'''

CASES = [
    Case("unknown command", "trian grpo", 2, ("no command 'trian'", "Did you mean train?")),
    Case(
        "unknown option",
        "train grpo --task chain_sum --stepz 3",
        2,
        ("does not take --stepz", "Did you mean --steps?", "train --help"),
    ),
    Case(
        "unknown command beside none",
        "frobnicate",
        2,
        ("no command 'frobnicate'", "train, eval, certify, data, compare"),
    ),
    Case("unknown method", "train gpro --task chain_sum", 2, ("no method 'gpro'", "Did you mean", "grpo")),
    Case("no method", "train --task chain_sum", 2, ("which method?", "upslope methods")),
    Case("unknown method, show", "show gpro", 2, ("no method 'gpro'", "Did you mean", "grpo")),
    Case(
        "method for images",
        "train grpo_guard --model TOY --data questions.jsonl --reward exact --out run",
        2,
        ("'grpo_guard' reads 'mean' (mean of a Gaussian action", "neither sampling, nor the policy, nor the verifier"),
    ),
    Case("unknown preset", "show grpo@tlr", 2, ("no preset '@tlr'", "grpo@trl")),
    Case("unknown method, diff", "diff grpo drgpo", 2, ("no method 'drgpo'", "Did you mean dr_grpo")),
    Case("unknown family", "methods --family rlvrr", 2, ("no family 'rlvrr'", "rlvr")),
    Case("unknown task", "train grpo --task chian_sum", 2, ("no task 'chian_sum'", "Did you mean chain_sum")),
    Case(
        "unknown task setting",
        "train grpo --task chain_sum --set task_settings.min_termz=2",
        2,
        ("min_termz", "min_terms"),
    ),
    Case(
        "bad task setting",
        "train grpo --task chain_sum --set task_settings.min_terms=many",
        2,
        ("min_terms", "chain_sum"),
    ),
    Case(
        "unknown setting",
        "train grpo --task chain_sum --set ratio_hihg=1.3",
        2,
        ("'grpo' reads 'ratio_hihg'", "Did you mean ratio_high?"),
    ),
    Case(
        "unknown setting, show",
        "show grpo ratio_hihg=1.3",
        2,
        ("'grpo' reads 'ratio_hihg'", "Did you mean ratio_high?"),
    ),
    Case(
        "unknown part name",
        "train grpo --task chain_sum --set advantage=rlo",
        2,
        ("no method 'rlo'", "Did you mean rloo"),
    ),
    Case(
        "ambiguous setting",
        "show mine.py beta=0.1",
        2,
        ("several parts", "'beta'", "Say which: reward.beta, regularizer.beta"),
        {"mine.py": TWO_BETAS},
    ),
    Case(
        "setting without =",
        "train grpo --task chain_sum --set ratio_high",
        2,
        ("--set takes path=value", "'ratio_high'"),
    ),
    Case(
        "setting of no section",
        "train grpo --task chain_sum --set optimizer.lrr=1",
        2,
        ("optimizer", "'lrr'", "Did you mean lr?"),
    ),
    Case("section as a value", "train grpo --task chain_sum --set optimizer=3", 2, ("optimizer takes settings",)),
    Case("steps is no number", "train grpo --task chain_sum --steps x", 2, ("--steps takes a whole number, not 'x'",)),
    Case("steps is negative", "train grpo --task chain_sum --steps -1", 2, ("steps", "at least 0")),
    Case(
        "seed is no integer", "train grpo --task chain_sum --seed 1.5", 2, ("--seed takes a whole number, not '1.5'",)
    ),
    Case("seed is negative", "train grpo --task chain_sum --seed -1", 2, ("seed", "at least 0")),
    Case("rate is no number", "train grpo --task chain_sum --set optimizer.lr=abc", 2, ("lr takes float", "'abc'")),
    Case("steps is half", "train grpo --task chain_sum --set steps=2.5", 2, ("steps takes int", "2.5")),
    Case(
        "no prompts per step",
        "train grpo --task chain_sum --set prompts_per_step=0",
        2,
        ("prompts_per_step is 0", "at least 1"),
    ),
    Case("no group", "train grpo --task chain_sum --set rollout.group_size=0", 2, ("group_size", "at least 1")),
    Case("no threads", "train grpo --task chain_sum --set threads=0", 2, ("threads", "at least 1")),
    Case("no samples", "train grpo --task chain_sum --set eval.samples=0", 2, ("samples", "at least 1")),
    Case("negative evaluation", "train grpo --task chain_sum --set eval.every=-1", 2, ("every", "at least 0")),
    Case("negative temperature", "train grpo --task chain_sum --set rollout.temperature=-1", 2, ("temperature",)),
    Case("top_p beyond 1", "train grpo --task chain_sum --set top_p=2", 2, ("top_p",)),
    Case("negative rate", "train grpo --task chain_sum --set optimizer.lr=-1", 2, ("lr",)),
    Case("unknown device", "train grpo --task chain_sum --set device=gpu0", 2, ("no device 'gpu0'", "cpu")),
    Case("unknown dtype", "train grpo --task chain_sum --set dtype=float8", 2, ("dtype", "float32")),
    Case("unknown sink", OWN + " --set sinks=[tensorbored]", 2, ("tensorbored", "tensorboard")),
    Case("sink not installed", OWN + " --set sinks=[wandb]", 2, ("wandb", "pip install")),
    Case("neither task nor data", "train grpo --steps 1", 2, ("no task", "--task", "--data")),
    Case("task and data", OWN + " --task chain_sum", 2, ("both task 'chain_sum' and data 'questions.jsonl'",)),
    Case("config is missing", "train --config absent.yaml", 2, ("absent.yaml", "No such file")),
    Case("config is no YAML", "train --config c.yaml", 2, ("c.yaml", "not YAML"), {"c.yaml": "steps: [1\n  : }"}),
    Case("config is no mapping", "train --config c.yaml", 2, ("c.yaml", "list", "steps: 100"), {"c.yaml": "- 1\n"}),
    Case(
        "config has an unknown key",
        "train --config c.yaml",
        2,
        ("c.yaml", "'stepz'", "Did you mean steps?"),
        {"c.yaml": "method: grpo\nstepz: 3\n"},
    ),
    Case("config is not UTF-8", "train --config c.yaml", 2, ("c.yaml",), {"c.yaml": b"method: \xff\xfe\n"}),
    Case(
        "config has a key that is no text",
        "train --config c.yaml",
        2,
        ("c.yaml", "3"),
        {"c.yaml": "method: grpo\n3: 4\n"},
    ),
    Case("resume without a folder", "train grpo --task chain_sum --resume", 2, ("--resume needs", "--out DIR")),
    Case(
        "k beyond the samples",
        "eval tiny --task chain_sum -k 8 --samples 4",
        2,
        ("pass@8", "between 1 and the 4", "raise --samples"),
    ),
    Case("eval without task", "eval tiny", 2, ("no task", "--task")),
    Case("eval of no model", "eval nowhere/ --task chain_sum", 2, ("no folder", "nowhere")),
    Case("eval of no prompts", "eval TOY --task chain_sum --prompts 0", 2, ("prompts", "at least 1")),
    Case("compare nothing", "compare --out c --task chain_sum", 2, ("at least one method",)),
    Case("compare with an unknown method", "compare grpo gpro --out c --task chain_sum", 2, ("no method 'gpro'",)),
    Case("compare with itself", "compare grpo grpo --out c --task chain_sum", 2, ("named twice",)),
    Case(
        "compare with a bad setting",
        "compare grpo:ratio_hihg=1 --out c --task chain_sum",
        2,
        ("'ratio_hihg'", "ratio_high"),
    ),
    Case("compare without task", "compare grpo dr_grpo --out c", 2, ("no task", "--task")),
    Case(
        "compare over no seed",
        "compare grpo dr_grpo --task chain_sum --out c --seeds 0",
        2,
        ("--seeds is 0", "at least 1"),
    ),
    Case(
        "compare, none at once",
        "compare grpo --task chain_sum --out c --seeds 1 --parallel -1",
        2,
        ("parallel", "at least 1"),
    ),
    Case("report on nothing", "report", 2, ("name a run folder",)),
    Case("report on a missing folder", "report nowhere", 2, ("nowhere is no folder",)),
    Case(
        "report on another folder", "report other", 2, ("other is not a run folder", "config.yaml"), {"other/file": "x"}
    ),
    Case("new with a bad name", "new rlvr Dr.GRPO", 2, ("'Dr.GRPO'", "lower case")),
    Case("new with a taken name", "new rlvr grpo", 2, ("a method 'grpo' already",)),
    Case(
        "new over a file",
        "new rlvr mine",
        2,
        ("mine.py exists already", "nothing was written"),
        {"rlvr/mine.py": "x = 1\n"},
    ),
    Case("new with an unknown parent", "new rlvr mine --parent gpro", 2, ("no method 'gpro'",)),
    Case("new where a file is", "new rlvr mine", 2, ("cannot write", "rlvr"), {"rlvr": "a file"}),
    Case("doctor on no model", "doctor --model nowhere/ --task chain_sum", 2, ("no folder", "nowhere")),
    Case("method file is missing", "train mine.py --task chain_sum", 2, ("mine.py", "No such file")),
    Case("method file has no method", "show mine.py", 2, ("mine.py", "@method"), {"mine.py": "x = 1\n"}),
    Case("method file is no Python", "show mine.py", 2, ("mine.py", "line 1"), {"mine.py": "def (:\n"}),
    Case(
        "method file with a computed title",
        "show mine.py",
        2,
        ("mine.py", "title", "text"),
        {"mine.py": TWO_BETAS.replace('title="Mine"', 'title="Mi" + str(1)')},
    ),
    Case(
        "method file without a title",
        "show mine.py",
        2,
        ("mine.py", "@method", "title"),
        {"mine.py": TWO_BETAS.replace(', title="Mine"', "")},
    ),
    Case(
        "method file that fails",
        "show mine.py",
        2,
        ("mine.py fails on import", "ModuleNotFoundError", "absent"),
        {"mine.py": TWO_BETAS.replace("from upslope.parts.kl", "from upslope.absent")},
    ),
    Case(
        "method file with another name",
        "show other.py",
        2,
        ("other.py", "'mine'", "name it 'other'"),
        {"other.py": TWO_BETAS},
    ),
]
