"""Which arms differ? A group-sequential permutation test with a controlled family-wise error.

At look k of at most K every arm that is still needed has given k blocks of n scores, one score a seed. For a comparison
c = (left, right)

    S_c(k) = sum over blocks b <= k of (mean of left's block b - mean of right's block b)
    T_c(k) = |S_c(k)| / s_c(k)

where s_c(k) is the standard deviation of S_c(k) when the 2n scores of each block are dealt anew to the two arms. If the
arms do not differ, every such dealing was as likely as the one that was seen. The boundary of look k is the smallest
value such that at most a share alpha k / K of all dealings have crossed a boundary at look k or before. If the largest
T_c crosses it, c is decided by the sign of S_c, and the boundary is computed anew for the comparisons that are left
(step-down), until none crosses.

Paper: Mathieu, Della Vecchia, Shilova, Centa de Medeiros, Kohler, Maillard and Preux, "AdaStop: adaptive statistical
testing for sound comparisons of Deep RL agents" (2023).

Differs from the paper: statistics are studentised. With more than two arms, one dealing shared by overlapping pairs is
not a dealing of all arms at once, and the plain maximum errs a little more often than alpha.

Traps: one score a seed, never one an episode. Group, most groups and alpha are fixed before the first score is seen.

What is proven, and what was measured. Two arms: the error is at most alpha whatever the scores' distribution, since the
dealings of a block form a group. More than two: there is no theorem, and simulations at alpha 0.05 gave 0.035 to 0.053
(docs/statistics.md; the largest, 0.0528 with a standard error of 0.0012, is of four equal arms with bimodal scores).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import combinations
from math import ceil, comb, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOST_ENUMERATED = 100_000  # tuples of dealings, one for each block: beyond them, random ones
# Two dealings may have one and the same statistic and yet differ in their last bits, by the order in which scores are
# added. What is larger by less than this share of itself is a tie, and ties do not cross.
TIE = 1e-9


@dataclass(frozen=True)
class Decision:
    """What is known about `left` against `right`.

    Args:
        decision: "larger" or "smaller" (left against right), or "undecided", which is not "equal".
        groups: after how many groups it fell; None while undecided.
    """

    left: str
    right: str
    decision: str = "undecided"
    groups: int | None = None


class SequentialComparator:
    """Compares arms by groups of seeds, until each comparison is decided or `max_groups` have been seen.

    `while comparator.needs: comparator.update({arm: scores of new seeds for arm in comparator.needs})`.

    Args:
        arms: their names, at least two.
        comparisons: pairs of names; all pairs when None.
        group: scores of an arm in each group, n.
        max_groups: K.
        alpha: the probability, at most, of deciding any comparison between arms that do not differ.
        permutations: random tuples of dealings where more than 100,000 would have to be enumerated.
        seed: of the random tuples.

    Raises:
        ValueError: an argument is outside of its range.

    Warns:
        UserWarning: so few scores that nothing could be decided.
    """

    def __init__(
        self,
        arms: Sequence[str],
        *,
        comparisons: Sequence[tuple[str, str]] | None = None,
        group: int = 5,
        max_groups: int = 5,
        alpha: float = 0.05,
        permutations: int = 10_000,
        seed: int = 0,
    ) -> None:
        self.arms = tuple(arms)
        pairs = combinations(self.arms, 2) if comparisons is None else map(tuple, comparisons)
        self.comparisons = tuple((left, right) for left, right in pairs)
        self.group, self.max_groups, self.alpha = group, max_groups, alpha
        self.permutations, self.seed = permutations, seed
        self._check()
        self._restart()

    @property
    def groups(self) -> int:
        """How many groups have been seen."""
        return len(self._scores)

    @property
    def needs(self) -> tuple[str, ...]:
        """The arms of which the next group is made; none: finished."""
        if self.groups == self.max_groups:
            return ()
        undecided = {arm for pair, one in self.decisions.items() if one.groups is None for arm in pair}
        return tuple(arm for arm in self.arms if arm in undecided)

    def update(self, scores: Mapping[str, Sequence[float]]) -> None:
        """Look at one more group: `group` finite scores of each arm in `needs`, and of no other.

        Raises:
            ValueError: other arms, another number of scores, a score that is not finite, or already finished.
        """
        needs = self.needs
        if not needs:
            raise ValueError(f"scores of group {self.groups + 1}: the comparison is finished; start a new one")
        if set(scores) != set(needs):
            raise ValueError(f"scores are of {sorted(scores)}: this group is made of {sorted(needs)}, see `needs`")
        group = {arm: [float(score) for score in scores[arm]] for arm in needs}
        for arm, own in group.items():
            if len(own) != self.group:
                raise ValueError(f"scores[{arm!r}] holds {len(own)} scores: give {self.group}, one a seed")
            for place, score in enumerate(own):
                if not np.isfinite(score):
                    raise ValueError(
                        f"scores[{arm!r}][{place}] is {score}: decide before the test what a failed run is worth, "
                        "for example the worst possible score"
                    )
        self._scores.append(group)
        self._extend()
        self._step_down()

    def state_dict(self) -> dict[str, Any]:
        """The settings and the scores seen, for JSON; everything else follows from them."""
        return {**self._settings(), "scores": [dict(group) for group in self._scores]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Look again at the groups of `state`, forgetting those seen here.

        Raises:
            ValueError: the state is of a comparator with other settings.
        """
        for name, own in self._settings().items():
            if state[name] != own:
                raise ValueError(f"{name} is {state[name]!r} in the state and {own!r} here: build it with the state's")
        self._restart()
        for group in state["scores"]:
            self.update(group)

    def _settings(self) -> dict[str, Any]:
        return {
            "arms": list(self.arms),
            "comparisons": [list(pair) for pair in self.comparisons],
            **{name: getattr(self, name) for name in ("group", "max_groups", "alpha", "permutations", "seed")},
        }

    def _check(self) -> None:
        if len(self.arms) < 2 or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms is {self.arms}: give at least two different names")
        for pair in self.comparisons:
            if not set(pair) <= set(self.arms) or len(set(pair)) < 2:
                raise ValueError(f"comparisons has {pair}: give pairs of two of {self.arms}")
        if not self.comparisons or len({frozenset(pair) for pair in self.comparisons}) < len(self.comparisons):
            raise ValueError(f"comparisons is {self.comparisons}: give at least one pair, and none twice")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}: give a probability between 0 and 1")
        for name in ("group", "max_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.permutations * self.alpha < self.max_groups:
            raise ValueError(
                f"permutations is {self.permutations}: give at least max_groups / alpha, "
                f"{ceil(self.max_groups / self.alpha)}"
            )
        if self.alpha * comb(2 * self.group, self.group) ** self.max_groups < 2:
            # Not refused: a rehearsal of an experiment may have so few.
            warnings.warn(
                f"group is {self.group}, max_groups {self.max_groups}: so few scores cannot decide anything at "
                f"alpha={self.alpha}",
                stacklevel=3,
            )

    def _restart(self) -> None:
        self.decisions = {pair: Decision(*pair) for pair in self.comparisons}
        self._scores: list[dict[str, list[float]]] = []
        self._boundaries: list[float] = []
        self._enumerated = _Dealings(len(self.comparisons))
        self._drawn = _Dealings(len(self.comparisons))

    def _extend(self) -> None:
        """Deal the new block anew: every way where that is feasible, else as drawn."""
        if comb(2 * self.group, self.group) ** self.groups <= MOST_ENUMERATED:
            self._enumerated.combine(self._pooled(-1), every_dealing(self.group, half=self.groups == 1))
        else:
            for look in range(self._drawn.looks, self.groups):  # from the first block on, at the first such look
                self._drawn.append(self._pooled(look), random_dealings(self.group, self.permutations, self.seed, look))

    def _pooled(self, look: int) -> Array:
        """The scores of each comparison's two arms in a block [C, 2 n]; NaN where an arm is not needed any more."""
        none = [np.nan] * self.group
        scores = self._scores[look]
        return np.array([scores.get(left, none) + scores.get(right, none) for left, right in self.comparisons])

    def _step_down(self) -> None:
        """Decide what crosses the boundary of this look, and keep the boundary of those that do not."""
        now = self._drawn if self._drawn.looks else self._enumerated
        active = [i for i, one in enumerate(self.decisions.values()) if one.groups is None]
        while active:
            spent, left = self._past(active)
            largest = now.largest(active)[-1]
            remaining = largest[left]
            crossing = floor((self.alpha * self.groups / self.max_groups - spent) * largest.size + TIE)
            crossing = min(max(crossing, 0), remaining.size - 1)  # random tuples may have spent a little too much
            boundary = np.partition(remaining, -1 - crossing)[-1 - crossing] * (1 + TIE)
            strongest = max(active, key=lambda i: now.statistics[-1][i, 0])
            if now.statistics[-1][strongest, 0] <= boundary:
                break
            pair = self.comparisons[strongest]
            sign = "larger" if now.total[strongest, 0] > 0 else "smaller"
            self.decisions[pair] = Decision(*pair, sign, self.groups)
            active.remove(strongest)
        self._boundaries.append(float(boundary))

    def _past(self, active: Sequence[int]) -> tuple[float, NDArray[np.bool_]]:
        """The share of dealings that crossed before this look, and which of the present ones have not."""
        # Each look's share is that among the tuples in use at that look, also after enumeration has given way to random
        # tuples. This keeps the level provable: what was observed is as likely to be any of the tuples of a look, so
        # it crosses first at that look with the expected share of those that do, and the shares add up to at most
        # alpha k / K. Were the share of the enumerated looks estimated anew among the random tuples, the sum could
        # exceed it by chance.
        spent, first = 0.0, 0
        for dealings in (self._enumerated, self._drawn):
            left = np.ones(dealings.total.shape[1], dtype=bool)
            past = zip(dealings.largest(active), self._boundaries, strict=False)  # the present look has no boundary
            for look, (largest, boundary) in enumerate(past):
                crosses = left & (largest > boundary)
                left &= ~crosses
                if look >= first:
                    spent += crosses.mean()
            first = dealings.looks
            if not self._drawn.looks:
                break
        return spent, left


class _Dealings:
    """Statistics of all comparisons [C] for tuples of dealings [N], one dealing a block; column 0 is what was observed.

    `total` [C, N] are the differences summed over the blocks; `statistics` are their absolute values in standard
    deviations at each look [C, as many tuples as there were then].
    """

    def __init__(self, comparisons: int) -> None:
        self.total = np.zeros((comparisons, 1))
        self.variance = np.zeros((comparisons, 1))
        self.statistics: list[Array] = []
        self._largest: dict[tuple[int, ...], list[Array]] = {}

    @property
    def looks(self) -> int:
        return len(self.statistics)

    def combine(self, pooled: Array, weights: Array) -> None:
        """Follow every tuple by every dealing of a new block; `pooled` [C, 2 n], `weights` [M, 2 n]."""
        change = _centred(pooled) @ weights.T
        self.total = (self.total[:, :, None] + change[:, None, :]).reshape(len(change), -1)
        self._largest = {}
        self._look(pooled)

    def append(self, pooled: Array, weights: Array) -> None:
        """Follow each tuple by one dealing of a new block; `pooled` [C, 2 n], `weights` [N, 2 n]."""
        self.total = self.total + _centred(pooled) @ weights.T
        self._look(pooled)

    def largest(self, active: Sequence[int]) -> list[Array]:
        """At each look, the largest statistic of the comparisons `active` [N]."""
        known = self._largest.setdefault(tuple(active), [])
        for statistics in self.statistics[len(known) :]:
            largest = reduce(np.maximum, (statistics[i] for i in active))
            known.append(np.repeat(largest, self.total.shape[1] // largest.size))  # of dealings that were followed up
        return known

    def _look(self, pooled: Array) -> None:
        # n of 2 n values drawn without replacement: the difference of the two means has variance 4 var / (2 n - 1).
        # A spread that is nothing but rounding is none: arms whose scores are all the same do not differ.
        spread = pooled.std(axis=1, keepdims=True)
        spread[spread <= TIE * np.abs(pooled).max(axis=1, keepdims=True)] = 0
        self.variance = self.variance + 4 * spread**2 / (pooled.shape[1] - 1)
        statistics = np.abs(self.total)
        statistics /= np.sqrt(np.where(self.variance == 0, np.inf, self.variance))
        self.statistics.append(statistics)


def _centred(pooled: Array) -> Array:
    return pooled - pooled.mean(axis=1, keepdims=True)


@lru_cache(maxsize=8)
def every_dealing(group: int, half: bool) -> Array:
    """Weights [M, 2 group] that turn pooled scores into differences of means; the first row is the identity.

    `half` of them, those where the first score stays with the left arm, stand for all where signs do not matter: giving
    the arms each other's scores in every block changes nothing but the sign.
    """
    chosen = np.array(list(combinations(range(2 * group), group)))
    return _weights(chosen[: len(chosen) // 2] if half else chosen)


@lru_cache(maxsize=64)
def random_dealings(group: int, count: int, seed: int, block: int) -> Array:
    """Weights as of `every_dealing` [count, 2 group]: the identity, then random ones, each block's its own."""
    order = np.random.default_rng([seed, block]).random((count, 2 * group)).argsort(axis=1)
    order[0] = np.arange(2 * group)
    return _weights(order[:, :group])


def _weights(chosen: NDArray[np.integer]) -> Array:
    group = chosen.shape[1]
    weights = np.full((len(chosen), 2 * group), -1 / group)
    np.put_along_axis(weights, chosen, 1 / group, axis=1)
    weights.setflags(write=False)
    return weights
