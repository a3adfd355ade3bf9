"""Which cases of a cross of everything the fast tests take this week."""

import datetime

import pytest


def rotating(items, of=3, few=40, week=None):
    """All items while they are few; else every `of`-th by calendar week, the others marked slow: `make test-slow`."""
    items = list(items)
    week = datetime.date.today().isocalendar().week if week is None else week
    return [
        pytest.param(
            *(item if isinstance(item, tuple) else (item,)),
            marks=[] if len(items) <= few or i % of == week % of else [pytest.mark.slow],
        )
        for i, item in enumerate(items)
    ]
