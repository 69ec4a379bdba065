"""What methods may ask of a whole log: some episodes, weights of draws, columns made anew, columns of what is to come."""

import dataclasses

import numpy as np
import pytest
import torch

from upslope import Trainer, UsageError, make
from upslope.actor_critic import setup
from upslope.actor_critic import trainer as loop
from upslope.actor_critic.contract import learner_of
from upslope.actor_critic.data import Affine
from upslope.actor_critic.log import Log, run_log
from upslope.actor_critic.relabel import relabel_log
from upslope.actor_critic.replay import Layout, Replay
from upslope.actor_critic.unfinished import Unfinished
from upslope.runs.metrics import read_metrics

from . import line

SMALL = {"policy.hidden": [8], "critic.hidden": [8], "batch_size": 16, "rollout.steps": 12}
RUN = {"eval": {"every": 2, "episodes": 2}, "checkpoint_every": 1, "threads": 1, "sinks": []}


class Line(line.Line):
    """Short episodes: seven steps at most."""

    goal, limit, speed, failure = 2.0, 7, 0.5, "out of fuel"


def train(method, steps, out=None, **settings):
    options = {"task": Line, **RUN, **SMALL, **settings}
    recipe = make(method)
    if recipe.critic is None:
        options.pop("critic.hidden")
    for stage in ("value", "proposer"):
        if getattr(recipe, stage) is not None:
            options[f"{stage}.hidden"] = [8]
    if "cal_ql" in method or "cql" in method:
        options["samples"] = 2
    with Trainer(method, steps=steps, out=out, **options) as trainer:
        return trainer.train()


def same(one, other):
    for name, flat in one.parts.learner.flats.items():
        assert torch.equal(flat.values, other.parts.learner.flats[name].values), name
    a, b = one.parts.replay, other.parts.replay
    assert a.added == b.added
    assert torch.equal(a.rows[: len(a)], b.rows[: len(b)])
    assert one.parts.learner.state == other.parts.learner.state


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A run whose stored transitions serve as a log."""
    folder = tmp_path_factory.mktemp("log") / "run"
    train("sac", 4, folder, **{"rollout.warmup": 60, "rollout.steps": 30})
    return folder


NEW = ["percent_bc", "harness_tw", "awr", "cal_ql", "prdc", "a2pr"]


@pytest.mark.parametrize("method", NEW)
def test_offline_and_resumed(tmp_path, played, method):
    settings = {"data": str(played)}
    if method == "awr":
        settings["relabel.every"] = 5
    whole = train(method, 3, tmp_path / "whole", **settings)
    train(method, 1, tmp_path / "parts", **settings)
    same(whole, train(method, 3, tmp_path / "parts", resume=True, **settings))
    assert whole.parts.learner.updates == 36
    assert whole.rows[-1]["eval/episodes"] == 2


@pytest.mark.parametrize(
    ("method", "limit", "settings"),
    [
        ("percent_bc", "bc", {"share": 1.0}),
        ("harness_tw", "td3_bc", {"selection.alpha": float("inf")}),
        ("cal_ql", "cql", {"penalty": "cql"}),
    ],
)
def test_runs_in_the_limits_are_the_parents_to_the_bit(played, method, limit, settings):
    same(train(method, 2, data=str(played), **settings), train(limit, 2, data=str(played)))


def test_what_is_left_out_is_read_nowhere(played):
    trainer = train("percent_bc", 1, data=str(played), share=0.2)
    log, whole = trainer.parts.log, run_log(played)
    returns = whole.return_to_go(0.99)[whole.first]
    best = np.sort(np.argsort(-returns, kind="stable")[: int(0.2 * len(returns))])
    kept = np.isin(whole.episode, best)
    np.testing.assert_array_equal(log.observation, whole.observation[kept])
    assert len(trainer.parts.logged) == kept.sum() < len(whole)
    offset, factor = trainer.parts.learner.scale
    seen = trainer.parts.logged.rows * factor + offset
    np.testing.assert_allclose(seen[:, 0].mean(), 0, atol=1e-5)  # standardized by what is kept
    assert trainer.parts.shares is None


def test_the_limit_of_trajectory_weighting_is_the_best_episode(played):
    """Weights that vanish leave the log as %BC with one episode does; as a choice of bc it is the same run."""
    settings = {"data": str(played), "selection": "harness_tw", "selection.by": "return", "selection.alpha": 1e-5}
    one = train("bc", 2, **settings)
    whole = run_log(played)
    best = whole.returns().argmax()
    np.testing.assert_array_equal(one.parts.log.observation, whole.observation[whole.episode == best])
    share = 1.01 / len(whole.returns())
    same(one, train("percent_bc", 2, data=str(played), share=share, **{"selection.discount": 1.0}))


def test_draws_have_the_chances():
    layout = Layout(1, 1)
    replay = Replay(4, layout)
    replay.add(torch.arange(4.0)[:, None].expand(4, layout.width))
    chances = np.array([0.1, 0.0, 0.6, 0.3])
    shares = torch.from_numpy(np.cumsum(chances))
    drawn = replay.draw(40_000, torch.Generator().manual_seed(0), shares)[:, 0]
    counts = np.bincount(drawn.int().numpy(), minlength=4) / 40_000
    np.testing.assert_allclose(counts, chances, atol=0.01)
    assert counts[1] == 0


def test_chances_stay_with_their_transitions_where_some_are_left_out(played):
    """rebrac leaves out steps without a next action: the shares are of the rows that remain."""
    settings = {"selection": "harness_tw", "selection.by": "return", "selection.alpha": 0.5}
    trainer = train("rebrac", 1, data=str(played), **settings)
    log, layout, shares = trainer.parts.log, trainer.parts.layout, trainer.parts.shares
    assert len(shares) == len(trainer.parts.logged) == log.kept(layout).sum() < len(log)
    returns = log.returns()
    x = (returns - returns.min()) / np.ptp(returns)
    weight = np.exp(x / 0.5)[log.episode][log.kept(layout)]
    np.testing.assert_allclose(np.diff(shares, prepend=0), weight / weight.sum(), rtol=1e-6)


def test_a_choice_of_episodes_needs_a_log():
    with pytest.raises(UsageError, match="'sac' chooses among the episodes of a log: give --data"):
        train("sac", 2, selection="percent_bc", **{"rollout.warmup": 5})


def random_log(seed=0, rows=30, size=4, actions=2):
    rng = np.random.default_rng(seed)
    ended = rng.random(rows) < 0.2
    terminated = (ended & (rng.random(rows) < 0.5)).astype(np.float32)
    truncated = (ended & (terminated == 0)).astype(np.float32)
    observation = rng.normal(size=(rows, size)).astype(np.float32)
    following = np.concatenate([observation[1:], observation[:1]])
    following[ended] = rng.normal(size=(int(ended.sum()), size))
    action = rng.uniform(-1, 1, (rows, actions)).astype(np.float32)
    return Log(observation, action, rng.normal(size=rows).astype(np.float32), terminated, truncated, following)


@pytest.mark.parametrize("scaled", [False, True])
def test_columns_are_made_anew_of_v_as_it_is(scaled, monkeypatch):
    monkeypatch.setattr("upslope.actor_critic.relabel.CHUNK", 7)
    learner, log = learner_of(make("awr")), random_log()
    if scaled:
        learner.scale = (torch.full((learner.layout.width,), 0.3), torch.full((learner.layout.width,), 2.0))
    replay = Replay(len(log), learner.layout)
    replay.add(log.rows(learner.layout, 0.99))
    before = replay.rows.clone()
    relabel_log(learner.recipe.relabel, learner, replay)

    def see(x):
        return x * 2.0 + 0.3 if scaled else x

    def v(x):
        return learner.networks.value(torch.from_numpy(see(x)).float())[0].detach().numpy()

    value, following = v(log.observation), v(log.next_observation) * (1 - log.terminated)
    returns = np.zeros(len(log))
    for t in range(len(log) - 1, -1, -1):
        onward = following[t] if log.last[t] else 0.05 * value[t + 1] + 0.95 * returns[t + 1]
        returns[t] = see(log.reward[t]) + 0.99 * onward
    place = learner.columns["lambda_return"][0]
    np.testing.assert_allclose(replay.rows[:, place], returns, rtol=1e-4, atol=1e-5)
    raw = returns - value
    expected = (raw - raw.mean()) / (raw.std() + 1e-5)
    np.testing.assert_allclose(replay.rows[:, learner.columns["advantage"][0]], expected, rtol=1e-3, atol=1e-4)
    others = [
        i for name, (i, j) in learner.columns.items() if name not in ("lambda_return", "advantage") for i in range(i, j)
    ]
    assert torch.equal(replay.rows[:, others], before[:, others])


def test_columns_are_made_anew_as_often_as_said(played, monkeypatch):
    seen = []
    real = loop.relabel_log
    monkeypatch.setattr(
        loop, "relabel_log", lambda part, learner, log: (seen.append(learner.updates), real(part, learner, log))
    )
    train("awr", 2, data=str(played), **{"relabel.every": 5})
    assert seen == [0, 5, 10, 12, 17, 22]  # and at the start of each step, from where a resumed run goes on


def test_columns_of_the_whole_log_are_for_logs_alone(played):
    with pytest.raises(
        UsageError, match=r"'awr' reads advantage, lambda_return, which only a log has. Set rollout.offline"
    ):
        train("awr", 2, data=str(played), offline_steps=1)


@pytest.mark.parametrize("reward", [(1.0, 0.0), (10.0, -5.0)])
def test_episodes_wait_until_they_end(reward):
    """Steps of two copies in lockstep become the rows of their episodes, as of a log."""
    layout, log = Layout(4, 2, ("next_action", "return_to_go")), random_log(rows=40)
    halves = [log.at(np.arange(40) < 20), log.at(np.arange(40) >= 20)]  # each is one copy's
    waiting = Unfinished(2, layout, 0.9, reward)
    replay = Replay(100, layout)
    names = ("observation", "action", "reward", "terminated", "truncated", "next_observation")
    for t in range(20):
        if t == 9:
            again = Unfinished(2, layout, 0.9, reward)
            again.restore(waiting.state())
            waiting = again
        for rows in waiting.add([np.stack([getattr(half, name)[t] for half in halves]) for name in names], None):
            replay.add(rows)
    assert waiting.played == 40
    for rows in waiting.cut():
        replay.add(rows)
    expected = torch.cat([half.rows(layout, 0.9, reward) for half in halves])
    found = replay.rows[: len(replay)]
    assert len(found) == len(expected)

    def ordered(rows):
        return rows[rows[:, 0].argsort()]

    columns = layout.columns()
    one, other = ordered(found), ordered(expected)
    one[:, columns["truncated"][0]] = other[:, columns["truncated"][0]] = 0.0  # an episode that was cut is marked so
    ended = one[:, columns["terminated"][0]] > 0  # no next action is read there
    first, last = columns["next_action"]
    one[ended, first:last] = other[ended, first:last] = 0.0
    torch.testing.assert_close(one, other)


def test_copies_that_only_reset_are_no_step():
    waiting = Unfinished(2, Layout(1, 1, ("return_to_go",)), 0.9, (1.0, 0.0))
    columns = [np.zeros((2, 1)), np.zeros((2, 1)), np.ones(2), np.ones(2), np.zeros(2), np.zeros((2, 1))]
    assert len(waiting.add(columns, np.array([True, False]))) == 1
    assert waiting.played == 1


ONLINE = {"offline_steps": 1, "environments": 2}


def test_calibrated_learning_plays_on_and_is_resumed(tmp_path, played):
    settings = {"data": str(played), **ONLINE}
    whole = train("cal_ql", 4, tmp_path / "whole", **settings)
    train("cal_ql", 3, tmp_path / "parts", **settings)
    parts = train("cal_ql", 4, tmp_path / "parts", resume=True, **settings)
    same(whole, parts)
    assert whole.rows[-1]["env_steps"] == 3 * 12 * 2
    assert whole.parts.unfinished.played == 72
    assert 0 < whole.parts.replay.added < 72  # the rest is of episodes that run
    np.testing.assert_array_equal(whole.parts.unfinished.state()["steps"], parts.parts.unfinished.state()["steps"])
    found = run_log(tmp_path / "whole")
    place = whole.parts.layout.columns()["return_to_go"][0]
    stored = whole.parts.replay.rows[: len(found), place]
    np.testing.assert_allclose(stored, found.return_to_go(0.99), rtol=1e-5)
    going_on = ~found.last[:-1]
    np.testing.assert_array_equal(found.next_observation[:-1][going_on], found.observation[1:][going_on])


def test_returns_to_go_are_of_the_rewards_that_are_learned_from(played):
    recipe = make("cal_ql", samples=2, **{"policy.hidden": [8], "critic.hidden": [8], "rollout.steps": 2})
    recipe = recipe.replace(reward=Affine(scale=10.0, shift=-5.0))
    with Trainer(recipe, task=Line, steps=1, data=str(played), **RUN) as trainer:
        rows, log = trainer.parts.logged.rows, trainer.parts.log
        m = trainer.parts.learner.minibatch(rows)
    at = log.last.nonzero()[0][0]  # an episode's first reward is worth what follows
    rewards = 10.0 * log.reward[: at + 1] - 5.0
    expected = (0.99 ** np.arange(at + 1) * rewards).sum()
    np.testing.assert_allclose(m.reward[: at + 1], rewards, rtol=1e-5)
    np.testing.assert_allclose(m.column("return_to_go")[0], expected, rtol=1e-5)


def test_the_first_batches_of_playing_are_from_the_log(played):
    trainer = train("cal_ql", 1, data=str(played), offline_steps=1)
    assert len(trainer.parts.replay) == 0
    assert trainer._draw(torch.Generator()).shape == (16, trainer.parts.layout.width)


def test_a_failing_environment_leaves_what_was_played(tmp_path, played):
    out = tmp_path / "run"
    settings = {"data": str(played), "offline_steps": 1, "self_checks": False, "eval": {"every": 0, "episodes": 0}}
    with pytest.raises(UsageError, match="out of fuel"):
        train("cal_ql", 3, out, task=lambda: Line(fails_at=18), **settings)
    assert read_metrics(out / "metrics.jsonl")[-1]["env_steps"] == 17
    assert len(run_log(out)) == 17
    trainer = train("cal_ql", 4, out, task=lambda: Line(), resume=True, **settings)
    assert trainer.rows[-1]["env_steps"] > 17


@pytest.mark.parametrize("method", ["awr", "percent_bc", "cal_ql"])
def test_a_log_without_rewards_is_refused_by_whatever_reads_them(method, played, monkeypatch):
    plain = setup.open_log
    monkeypatch.setattr(
        setup, "open_log", lambda path, actions: dataclasses.replace(plain(path, actions), rewarded=False)
    )
    with pytest.raises(UsageError, match=r"has no rewards, which .* learns from. Imitate it: upslope train bc"):
        train(method, 1, data=str(played))
    train("bc", 1, data=str(played))


@pytest.mark.parametrize("method", ["prdc", "a2pr", "awr", "cal_ql"])
def test_divergence_is_named(method, played):
    with pytest.raises(UsageError, match=r"weights of the \w+ are not finite: training has diverged"):
        train(method, 2, data=str(played), critic_lr=1e30, actor_lr=1e30)


@pytest.mark.parametrize("settings", [{}, {"log_share": 0.5}])
def test_weighted_draws_end_or_stay_with_the_log_once_it_plays(played, settings):
    settings |= {"data": str(played), "offline_steps": 1, "selection.by": "return", "selection.alpha": 0.02}
    trainer = train("harness_tw", 2, **settings)
    parts = trainer.parts
    source = parts.replay if parts.logged is None else parts.logged
    chance = np.diff(parts.shares, prepend=0)
    often = chance > 2 / len(chance)
    place = parts.layout.columns()["truncated"][0]  # marked in a column that no update reads
    parts.replay.rows[:, place] = 0.0
    source.rows[: len(chance), place] = torch.from_numpy(often).float()
    drawn = torch.cat([trainer._draw(torch.Generator().manual_seed(seed)) for seed in range(100)])[:, place]
    expected = often.sum() / len(parts.replay) if parts.logged is None else 0.5 * chance[often].sum()
    assert abs(0.5 * chance[often].sum() - often.sum() / len(chance)) > 0.2
    assert float(drawn.mean()) == pytest.approx(expected, abs=0.05)


def test_a_log_without_any_next_action_is_named(tmp_path):
    rows, cut = np.zeros((6, 1), np.float32), np.ones(6, bool)
    arrays = {"observations": rows, "next_observations": rows, "actions": rows, "rewards": rows[:, 0]}
    np.savez(tmp_path / "log.npz", **arrays, terminals=~cut, timeouts=cut)
    with pytest.raises(UsageError, match=r"no step of the log .*log.npz has a next action, which 'rebrac' reads"):
        train("rebrac", 1, data=str(tmp_path / "log.npz"))
    train("td3_bc", 1, data=str(tmp_path / "log.npz"))
