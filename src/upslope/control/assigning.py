"""Playing with many agents of one kind: a row of the batch is an agent, a position a step of the environment."""

from typing import Any

import numpy as np
import torch

from upslope.batch import Batch
from upslope.control.playing import Experience, Played, Player
from upslope.errors import UsageError
from upslope.parts.assignment import Assignments
from upslope.policies.assignment import PairPolicy, WorkerCritic
from upslope.tasks.environments import Environments, Episode


class AssignmentPlayer(Player):
    """Plays whole episodes and takes them apart by agents.

    Made by it: logp and old_logp of each choice, token_reward (what the agent earned by the step), reward, ended (the last step
    of the episode), mask (the agent was given an order), trajectory; with a critic old_value.
    """

    def __init__(self, environments: Environments, policy: Any, critic: Any, rollout: Assignments) -> None:
        if not isinstance(policy, PairPolicy) or not (critic is None or isinstance(critic, WorkerCritic)):
            raise UsageError("Assignments play with a policy that scores pairs: policy=PairScores().")
        super().__init__(environments, policy, critic, rollout)  # type: ignore[arg-type]
        self.pairs, self.share = policy, -(-rollout.episodes // environments.count)

    def play(self, generator: torch.Generator) -> Experience:
        """As many whole episodes of each copy: the first to end would be the short ones. Raises EnvironmentFailure."""
        environments = self.environments
        left = np.full(environments.count, self.share)
        running: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(environments.count)]
        whole, episodes = list[list[Any]](), list[Episode]()
        observation = environments.reset()
        while left.any():
            action, _ = self.pairs.act(observation, generator)
            step = environments.step(action)
            for copy in left.nonzero()[0].tolist():
                running[copy].append((observation[copy], action[copy], step.next_observation[copy]))
            for episode in step.episodes:
                if left[episode.copy]:
                    left[episode.copy] -= 1
                    episodes.append(episode)
                    whole.append(running[episode.copy])
                    running[episode.copy] = []
            observation = step.observation
        environments.skip()
        found = self._apart(whole, episodes)
        self.steps += found.steps
        self.episodes += len(episodes)
        self.recent.extend((episode.total, episode.length) for episode in episodes)
        return found

    @torch.no_grad()
    def _apart(self, whole: list[list[Any]], episodes: list[Episode]) -> Experience:
        policy, layout = self.pairs, self.pairs.layout
        width, agents = max(map(len, whole)), layout.agents
        size = policy.rivals * (layout.pair + 1) + layout.agent
        seen = np.zeros((len(whole), agents, width, size), dtype=np.float32)
        done = np.zeros((len(whole), agents, width), dtype=np.int64)
        earned = np.zeros((len(whole), agents, width), dtype=np.float32)
        mask = np.zeros((len(whole), agents, width), dtype=bool)
        ended = np.zeros_like(mask)
        for index, steps in enumerate(whole):
            observed, action, reached = (np.stack(column) for column in zip(*steps, strict=True))
            parts = policy.parts(observed)
            step, agent = action.nonzero()
            seen[index, agent, step], done[index, agent, step] = policy.choices(
                parts, (step, agent, action[step, agent] - 1)
            )
            mask[index, agent, step] = True
            earned[index, :, : len(steps)] = (policy.parts(reached)["earned"] - parts["earned"]).T
            ended[index, :, len(steps) - 1] = True
        rows = [torch.from_numpy(column.reshape(-1, *column.shape[2:])) for column in (seen, done, earned, mask, ended)]
        observation, chosen, reward, trained, last = rows
        if not trained.any():
            raise UsageError(
                f"{self.environments.name}: no agent was given an order in {len(whole)} episodes: nothing to learn from."
            )
        logp = torch.zeros_like(reward)
        logp[trained] = policy.distribution(observation[trained]).log_prob(chosen[trained])
        columns = {"token_reward": reward, "mask": trained, "ended": last, "reward": reward.sum(1)}
        columns["trajectory"] = torch.arange(len(whole)).repeat_interleave(agents)
        if self.critic is not None:
            columns["old_value"] = self.critic(observation)
        batch = Batch(logp=logp, old_logp=logp, **columns)
        return Experience(Played(observation, chosen), batch, int(trained.sum()), episodes)
