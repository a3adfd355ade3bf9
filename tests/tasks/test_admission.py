"""Which groups are admitted, by numbers worked out by hand."""

import pytest
from torch import tensor

from palaestra.tasks.admission import in_band, unmixed

# 5: three of four succeed, 2: one of two, 9: none
B = {"reward": tensor([1.0, 0.5, 1.0, 1.0, 0.0, 0.5, 0.0]), "group": tensor([5, 2, 5, 5, 5, 9, 2])}
B["reward"][5] = 0.0


def test_how_far_a_share_is_from_the_band():
    assert in_band(0.5, 0.75)(B).tolist() == [0, 0, 0, 0, 0, 0.5, 0]
    assert in_band(0.25, 0.5)(B).tolist() == [0.25, 0, 0.25, 0.25, 0.25, 0.25, 0]
    assert in_band(0.0, 0.0, success=0.5)(B).tolist() == [0.75, 0, 0.75, 0.75, 0.75, 0, 0]  # 0.5 is not more
    assert in_band(0.0, 1.0)(B).tolist() == [0] * 7


def test_the_ends_belong_to_the_band():
    """0.2 and 0.8 of five, whose nearest floats are to be equal to those of the settings."""
    rows = {"reward": tensor([1.0, 0, 0, 0, 0, 0, 1, 1, 1, 1]), "group": tensor([0] * 5 + [1] * 5)}
    assert in_band(0.2, 0.8)(rows).tolist() == [0] * 10


def test_unmixed():
    assert unmixed(B).tolist() == [0, 0, 0, 0, 0, 1, 0]
    same = {"reward": tensor([0.1, 0.1, 0.1]), "group": tensor([0, 0, 0])}
    assert unmixed(same).tolist() == [1, 1, 1]  # though their mean is rounded


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.5), (0.5, 1.1), (0.6, 0.4)])
def test_no_band(low, high):
    with pytest.raises(ValueError, match="give 0 <= low <= high <= 1"):
        in_band(low, high)
