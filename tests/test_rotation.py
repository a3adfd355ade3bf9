"""Within three weeks every case was among the fast tests."""

from tests.rotation import rotating


def test_the_rotation_reaches_all():
    few, many = rotating(range(40)), rotating(range(100), week=1)
    assert not any(case.marks for case in few)
    assert 30 <= sum(not case.marks for case in many) <= 35
    weeks = [{case.values for case in rotating(range(100), week=week) if not case.marks} for week in (51, 52, 53)]
    assert set.union(*weeks) == {(i,) for i in range(100)}
