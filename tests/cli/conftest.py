"""A run that the cases find in their folder."""

import os

import pytest

from .scene import put, run_here


@pytest.fixture(scope="session")
def trained(toy, tmp_path_factory):
    """A folder with questions.jsonl and run/, which was trained for two steps with a checkpoint of each."""
    folder, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    put(folder, {}, toy)
    os.chdir(folder)
    try:
        line = (
            "train grpo --model TOY --data questions.jsonl --reward exact --out run --steps 2 --set checkpoint_every=1"
        )
        assert run_here(line, toy) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, and this process in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
