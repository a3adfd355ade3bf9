"""What a paper says, as an experiment: two arms, a world, a measure, a direction, and three sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from palaestra.comparison import Function
from palaestra.data.dataset import Dataset

SCALES = ("smoke", "cpu", "paper")
DIRECTIONS = ("larger", "smaller")


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Args:
        steps: environment steps of each seed (updates or rounds, where these are counted), or a function's budget.
        group: seeds of each arm between two looks.
        max_groups: looks at most.
        train: keywords of `pal.train` for arms that are expressions: environments, episodes, evaluate_every, ...
    """

    steps: int
    group: int = 5
    max_groups: int = 5
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One paper's main claim.

    Args:
        slug: of the method.
        says: the claim, in a sentence.
        baseline, treatment: an expression each, or a function `(seed, budget) -> {name: raw values}`.
        world: a Gymnasium id; for functions a phrase that says what they play.
        scales: "smoke" proves in seconds that it runs, "cpu" gives the verdict of the docs within half an hour on two
            cores, "paper" is the original setting.
        measure: "auc", "final" or "best" of the evaluations; for functions the name in what they give.
        direction: "larger" or "smaller": what the paper says of the treatment's score.
        dataset: makes what arms that are expressions learn from, where they do not learn in the world: the same for all
            seeds. `steps` are then updates.
        differs: from the paper, in world, networks and budgets.
        tried: what was tried where the verdict is not "confirmed", and how both arms were tuned.
    """

    slug: str
    says: str
    baseline: str | Function
    treatment: str | Function
    world: str
    scales: Mapping[str, Scale]
    measure: str = "auc"
    direction: str = "larger"
    dataset: Callable[[], Dataset] | None = None
    differs: str = ""
    tried: str = ""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"{self.slug}: direction is {self.direction!r}; it must be larger or smaller")
        if missing := [name for name in SCALES if name not in self.scales]:
            raise ValueError(f"{self.slug}: scales lacks {missing[0]!r}")
        if isinstance(self.baseline, str) != isinstance(self.treatment, str):
            raise ValueError(f"{self.slug}: baseline and treatment must both be expressions, or both functions")
        if self.dataset is not None and not isinstance(self.baseline, str):
            raise ValueError(f"{self.slug}: dataset is for expressions; functions make their own")
