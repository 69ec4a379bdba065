"""Columns made a few positions at a time: the process's memory does not grow with the number of parts."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch
from pathlib import Path
from upslope.policies import logprobs

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

def columns(count):
    hidden = torch.randn(count, 8, requires_grad=True)
    target = torch.randint(0, 32768, (count,))
    teacher = torch.nn.Linear(8, 32768)
    found = logprobs.compared_columns(
        hidden, head, lambda x: x, hidden.detach(), teacher, target,
        {"kl": lambda p, q: (p.exp() * (p - q)).sum(-1)}, ["kl", "logp", "teacher_logp"],
    )
    (found["kl"] + found["logp"]).sum().backward()

torch.set_num_threads(1)
logprobs.ENTRIES = 1 << 18
head = torch.nn.Linear(8, 32768)
columns(8)
before = peak()
columns(1024)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux")
def test_many_parts_take_no_more_memory_than_a_few():
    """256 parts of 1 MB each: what they compute must not stay between them."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 48
