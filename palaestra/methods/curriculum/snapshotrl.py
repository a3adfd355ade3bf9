"""SnapshotRL: for the first steps of a run, episodes start in states that a teacher has been through.

    until `steps`:   episode = (s_k, s_{k+1}, ...), at most `length` steps,   s_k a snapshot of a teacher's episodes
    uniform:         P(snapshot) = 1 / snapshots
    classified:      P(snapshot) = 1 / (classes * snapshots of its class),    classes = k-means of v on the line
    v(snapshot) =    sum_i gamma^i r_{k+i} along the teacher's episode

Paper: Zhao et al., "Snapshot Reinforcement Learning: Leveraging Prior Trajectories for Efficiency" (2024). `snapshotrl`
is S3RL, the form that it recommends; its parts alone are `snapshotrl_classified` (+SC), `snapshotrl_truncated` (+STT)
and `snapshotrl_uniform` (neither). `steps` is T_snap, `length` L, `every` f, `episodes` E and `classes` k.

The teacher plays before the student's first step, in the student's environment, which is then put back as it was: the
student draws the same random numbers as without. The steps that this took are the `teacher_steps` of the run's
"prepared" row; they are not among the student's.

Traps: an episode that is cut off after `length` steps is truncated and bootstraps. A snapshot holds neither the random
stream of the environment (every visit would see the same noise) nor the teacher's return so far. The student's random
actions at the beginning are part of the phase: `steps` should be well above its `start`.

Differs from the paper: v is what the teacher's episode went on to pay, not what its critic expected, so that a teacher
needs no critic; towards an episode's time limit it falls. A policy acts most likely; the authors sample those of SAC
and PPO. Classes are the best ones, found exactly. At the end of the phase the episodes are truncated, rather than
dropped. The environment's own time limit holds from the snapshot on. All of the teacher's episodes are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from palaestra.algorithm import Algorithm, Start, above, between, expressed, first_state
from palaestra.functional.clusters import clusters
from palaestra.functional.returns import discounted_so_far
from palaestra.teachers.episodes import Episode


def return_to_go(reward: Tensor, gamma: float) -> Tensor:
    """`v_t = sum_i gamma^i r_{t+i}`, [T]: what the episode, read backwards, has paid so far."""
    backwards = reward.flip(0)
    never = torch.zeros_like(backwards, dtype=torch.bool)
    return discounted_so_far(backwards, never, torch.zeros_like(backwards[0]), gamma).flip(0)


def probabilities(values: Tensor, classes: int) -> Tensor:
    """How likely each snapshot of value `values` [M] is drawn: a class is, then one of its snapshots."""
    own = clusters(values, classes)
    sizes = own.bincount()
    return 1.0 / (len(sizes) * sizes[own].to(values.dtype))


@dataclass(eq=False)
class Snapshots:
    """Initial states from a teacher's episodes, for the first `steps` environment steps. One class is no classes."""

    teacher: str
    steps: int
    length: int
    episodes: int
    every: int
    classes: int = 1
    gamma: float = 0.99
    states: list[Any] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    until: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))  # sums of probabilities, [M]

    def __post_init__(self) -> None:
        above(0, length=self.length, episodes=self.episodes, every=self.every, classes=self.classes)
        between(0, float("inf"), steps=self.steps)
        between(0, 1, gamma=self.gamma)

    def prepare(self, play: Callable[[str, int, int], list[Episode]]) -> dict[str, float]:
        """Watch the teacher."""
        if self.steps == 0:
            return {}
        watched = play(self.teacher, self.episodes, self.every)
        paid = [torch.tensor(episode.rewards, dtype=torch.float64) for episode in watched]
        values = torch.cat([return_to_go(reward, self.gamma)[:: self.every] for reward in paid])
        self.until = probabilities(values, self.classes).cumsum(0)
        self.states = [state for episode in watched for state in episode.states]
        self.seen = [obs for episode in watched for obs in episode.seen]
        return {"teacher_steps": sum(map(len, paid))}

    def sample(self, task: Any, env_steps: int, rng: Generator) -> Start | None:
        """A snapshot while the phase lasts."""
        if env_steps >= self.steps:
            return None
        drawn = torch.rand((), dtype=torch.float64, generator=rng) * self.until[-1]
        i = int(torch.searchsorted(self.until, drawn, right=True))
        return Start(self.states[i], self.length, until=self.steps, obs=self.seen[i])

    def observe(self, episode: dict[str, float]) -> None:
        """Episodes teach it nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {"states": self.states, "seen": self.seen, "until": self.until}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.states, self.seen, self.until = state["states"], state["seen"], state["until"]


@expressed
def snapshotrl(
    algorithm: Algorithm,
    teacher: str = "controller",
    steps: int = 100_000,
    length: int = 100,
    episodes: int = 10,
    every: int = 10,
    classes: int = 6,
    gamma: float = 0.99,
) -> Algorithm:
    """At first, short episodes start in states that a teacher has been through, in rare ones more often.

    Args:
        teacher: "controller", the scripted one of our own worlds; or the folder of a run.
        steps: environment steps that this lasts for; 0 for none.
        length: most steps of an episode that starts so.
        episodes: that the teacher plays.
        every: steps of the teacher from one state that is kept to the next.
        classes: of states, by what followed for the teacher; a class is drawn first, then one of its states. There are
            fewer where there are fewer values.
        gamma: discount factor of what followed, in [0, 1].
    """
    return first_state(algorithm, Snapshots(teacher, steps, length, episodes, every, classes, gamma))


@expressed
def snapshotrl_classified(
    algorithm: Algorithm,
    teacher: str = "controller",
    steps: int = 100_000,
    length: int = 1_000,
    episodes: int = 10,
    every: int = 10,
    classes: int = 6,
    gamma: float = 0.99,
) -> Algorithm:
    """As `snapshotrl`, with episodes as long as others.

    Args:
        teacher, steps, length, episodes, every, classes, gamma: as for `snapshotrl`.
    """
    return first_state(algorithm, Snapshots(teacher, steps, length, episodes, every, classes, gamma))


@expressed
def snapshotrl_truncated(
    algorithm: Algorithm,
    teacher: str = "controller",
    steps: int = 100_000,
    length: int = 100,
    episodes: int = 10,
    every: int = 10,
) -> Algorithm:
    """As `snapshotrl`, with all states as likely.

    Args:
        teacher, steps, length, episodes, every: as for `snapshotrl`.
    """
    return first_state(algorithm, Snapshots(teacher, steps, length, episodes, every))


@expressed
def snapshotrl_uniform(
    algorithm: Algorithm,
    teacher: str = "controller",
    steps: int = 100_000,
    length: int = 1_000,
    episodes: int = 10,
    every: int = 10,
) -> Algorithm:
    """As `snapshotrl`, with all states as likely and episodes as long as others.

    Args:
        teacher, steps, length, episodes, every: as for `snapshotrl`.
    """
    return first_state(algorithm, Snapshots(teacher, steps, length, episodes, every))
