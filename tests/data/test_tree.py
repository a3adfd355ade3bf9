"""The nearest row to a key: by hand, within a map, in copies, and what it refuses."""

import copy
import sys

import pytest
import torch

from palaestra.data.dataset import DatasetError
from palaestra.data.tree import Tree

ROWS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.1, 7.7]])


def planted(rows: torch.Tensor = ROWS) -> Tree:
    tree = Tree()
    tree.plant(rows)
    return tree


def test_by_hand() -> None:
    tree = planted()
    # from (1, 1): squared distances 2, 5, 10 and more; from (0, 7): 49, 58, 9 and 0.5
    keys = torch.tensor([[1.0, 1.0], [0.0, 7.0]])
    assert torch.equal(tree.nearest(keys), ROWS[[0, 3]])
    assert torch.equal(tree.nearest(keys, 2), ROWS[[1, 2]])
    assert torch.equal(tree.nearest(keys, 4), ROWS[[3, 1]])
    assert tree.nearest(keys).dtype == torch.float32  # the tree's own numbers are float64
    assert torch.equal(tree.nearest(keys.double()), ROWS[[0, 3]].double())


def test_is_what_looking_at_all_rows_finds() -> None:
    rng = torch.Generator().manual_seed(0)
    rows, keys = torch.randn(500, 5, generator=rng), torch.randn(40, 5, generator=rng)
    order = torch.cdist(keys.double(), rows.double()).argsort(1)
    for which in (1, 3):
        assert torch.equal(planted(rows).nearest(keys, which), rows[order[:, which - 1]])


@pytest.mark.parametrize("dim", [0, 1])
def test_a_map_is_one_query(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    tree, keys = planted(torch.randn(50, 2, generator=rng)), torch.randn(3, 7, 2, generator=rng)
    asked = []

    class Counting:
        data = tree.index.data

        def query(self, keys, **how):
            asked.append(keys.shape)
            return real.query(keys, **how)

    real = tree.index
    monkeypatch.setattr(tree, "index", Counting())
    mapped = torch.vmap(tree.nearest, in_dims=dim, out_dims=dim)(keys.movedim(0, dim))
    assert asked == [(21, 2)]
    assert torch.equal(mapped.movedim(dim, 0), torch.stack([tree.nearest(own) for own in keys]))


def test_copies_share_the_rows_and_can_be_planted_apart() -> None:
    tree = planted()
    other, again = copy.deepcopy([tree, tree])
    assert other is again
    assert other is not tree
    assert other.index is tree.index
    other.plant(ROWS[:1])
    assert (len(tree), len(other)) == (4, 1)
    assert not Tree()
    assert tree


def test_there_is_no_gradient() -> None:
    keys = ROWS.clone().requires_grad_()
    assert not planted().nearest(keys).requires_grad


def test_numbers_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite: leave such rows out"):
        planted(ROWS / 0)
    # A policy that has become nan gets some row: it is the loss that is reported.
    assert planted().nearest(torch.full((1, 2), torch.nan)).isfinite().all()


def test_scipy_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(DatasetError, match=r"pip install 'palaestra\[datasets\]'"):
        planted()
