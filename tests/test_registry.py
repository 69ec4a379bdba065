"""The registry: listing without importing, finding by name or path, describing and comparing."""

import subprocess
import sys
import textwrap

import pytest

import upslope
from upslope import UsageError, find, list_methods, make
from upslope.registry import HEADINGS, read_method

PAGE = '''"""Mine: half of the advantage.

    A  (R - mean) / 2    [R]

Differs from grpo:  the factor.
Limits:  none.
Expects:  two completions.
Source:  me.
Deviations:  none.
Not this:  grpo.
"""
'''
BODY = """
from upslope.methods.rlvr.grpo import grpo
from upslope.parts.advantage import GroupBaseline
from upslope.recipe import Recipe
from upslope.registry import method, preset

@method(paper="2501.00001", title="My Own", parent="grpo")
def mine() -> Recipe:
    return grpo().replace(advantage=GroupBaseline(scale=None), regularizer=None)

@preset("home", version="1")
def mine_home() -> Recipe:
    return mine().replace(rollout=None)
"""


def write(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_listing_imports_neither_torch_nor_any_method():
    code = """
        import sys, upslope
        names = upslope.list_methods(query="policy") + upslope.list_methods(family="rlvr")
        assert "grpo" in names and upslope.find("dapo").title.startswith("DAPO")
        loaded = [m for m in sys.modules if m in ("torch", "numpy", "transformers") or m.startswith("upslope.methods")]
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_list_methods():
    names = list_methods()
    assert names == sorted(names)
    assert {"grpo", "dr_grpo", "dapo", "gspo", "cispo", "gmpo", "rloo", "reinforce", "ppo_llm", "kimi_k15_md"} <= set(
        names
    )
    assert list_methods(query="sequence policy optimization") == ["gspo"]
    assert list_methods("2503.14476") == ["dapo"]
    assert list_methods("no such thing at all") == []
    with pytest.raises(UsageError, match=r"no family 'rlvf'. There is: .*rlvr"):
        list_methods(family="rlvf")


def test_every_parent_exists_and_leads_to_a_root():
    for name in list_methods():
        seen = []
        while name:
            assert name not in seen, f"{name} is its own ancestor"
            seen.append(name)
            name = find(name).parent


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpro", r"no method 'gpro'. Did you mean .*grpo.*\?"),
        ("zzzz", r"no method 'zzzz'. `upslope methods` lists them"),
        ("grpo@tlr", r"'grpo' has no preset '@tlr'. Presets: grpo@deepseekmath, grpo@trl, grpo@verl"),
        ("dapo@nobody", r"'dapo' has no preset '@nobody'. Presets: dapo@verl"),
        ("kimi_k15_md@trl", r"Presets: none"),
    ],
)
def test_an_unknown_name(name, message):
    with pytest.raises(UsageError, match=message):
        make(name)


def test_names_may_be_written_as_the_paper_writes_them():
    assert find("Dr.GRPO").name == "dr_grpo"
    assert make("Dr-GRPO@trl").name == "dr_grpo@trl"
    assert find("Reinforce_PP").name == "reinforce_pp"


def test_facts_of_a_method():
    grpo = find("grpo")
    assert (grpo.family, grpo.parent, grpo.paper) == ("rlvr", "reinforce", "2402.03300")
    assert grpo.url == "https://arxiv.org/abs/2402.03300"
    assert find("reinforce").url is None
    assert grpo.summary.startswith("GRPO:")
    assert set(grpo.sections()) == {"Formula", *HEADINGS}
    assert grpo.section("Expects").startswith("two or more completions")
    assert grpo.section("Differs from").startswith("reinforce: ")
    assert set(grpo.presets) == {"deepseekmath", "trl", "verl"}
    assert grpo.presets["trl"] == ("grpo_trl", "1.16.0")


def test_recipes_carry_their_name():
    assert make("grpo").name == "grpo"
    assert make("dr_grpo").name == "dr_grpo"
    assert make("grpo@verl").name == "grpo@verl"


def test_a_users_own_file(tmp_path):
    path = write(tmp_path, PAGE + BODY)
    assert make(path).advantage == make("dr_grpo").advantage
    assert make(path, ratio_high=1.5).surrogate.ratio_high == 1.5
    assert make(f"{path}@home").rollout is None
    assert "My Own" in upslope.describe(path)
    assert "advantage" in upslope.diff("grpo", path)
    assert make("grpo", advantage=path).advantage == make("dr_grpo").advantage


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PAGE, r"mine.py has 0 functions marked @method"),
        (PAGE + BODY + BODY.replace("def mine()", "def more()"), r"has 2 functions marked @method"),
        (PAGE + BODY.replace("def mine()", "def other()"), r"the function marked @method is 'other'; name it 'mine'"),
        (PAGE + "def broken(:", r"cannot read a method from .*mine.py"),
        (PAGE + BODY + "\nraise RuntimeError('at import')", r"mine.py fails on import: RuntimeError: at import"),
    ],
    ids=["none", "two", "name", "syntax", "import"],
)
def test_a_users_file_that_is_wrong(tmp_path, text, message):
    read_method.cache_clear()
    with pytest.raises(UsageError, match=message):
        make(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot read a method from"):
        make(str(tmp_path / "absent.py"))


def test_describe_holds_formula_parts_paper_and_deviations():
    text = upslope.describe("grpo", ratio_high=1.28)
    for part in ("https://arxiv.org/abs/2402.03300", "max(-A r, -A clip(r, 0.8, 1.28)) + 0.04 * k3(logp, ref_logp)",
                 "mean over sequences of the mean over tokens", "r = exp(logp - old_logp)", "ratio_high=1.28",
                 "reads group, old_logp, ref_logp, reward besides logp and mask", "Expects: two or more", "Deviations:",
                 "Not this:"):  # fmt: skip
        assert part in text


def test_describe_names_the_shaped_reward_and_only_the_ratio_that_there_is():
    rloo = upslope.describe("rloo")
    assert "R = reward - sum over tokens of 0.03 (old_logp - ref_logp)" in rloo
    assert "A = R - mean of the group's others" in rloo
    assert "r = exp" not in rloo
    assert "critic loss = mean over tokens of max((V - returns)^2" in upslope.describe("ppo_llm")


@pytest.mark.parametrize("name", [n for m in list_methods() for n in (m, *(f"{m}@{s}" for s in find(m).presets))])
def test_describe_works_for_every_method(name):
    text = upslope.describe(name)
    assert text.startswith(f"{name}: ")
    assert "{" not in text.partition("parts\n")[0], "a formula with a place that was not filled"


def test_diff_holds_what_differs_and_nothing_else():
    text = upslope.diff("grpo", "dapo")
    assert "ratio_high=1.28" in text
    assert "SequenceMean" in text
    assert "grpo: None\n  dapo: OverlongPenalty" in text
    assert "advantage" not in text
    assert upslope.diff("grpo", "grpo") == ""
    assert upslope.diff("gspo", "gspo@trl").splitlines()[0] == "advantage"


def test_an_alias_is_the_method():
    assert find("entropy-mechanism") == find("clip_cov")
    assert make("entropy_mechanism").parts() == make("clip_cov").parts()
    assert make("entropy_mechanism").name == "clip_cov"
    assert not {alias for name in list_methods() for alias in find(name).aliases} & set(list_methods())
