"""Rows of tokens: what is of the answer, what is padding, and that neither is lost on the way."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palaestra.data.tokens import (
    TokenRows,
    after_prompts,
    exchanged,
    joined,
    padded,
    picked,
    token_columns,
)

RAGGED = st.lists(st.integers(2, 9), min_size=1, max_size=6)


def answers_of(columns):
    """The tokens of each answer, and of what stands before it."""
    rows = zip(columns["ids"].tolist(), columns["answer"].tolist(), columns["length"].tolist(), strict=True)
    found = []
    for ids, answer, length in rows:
        assert not any(answer[length:])
        assert not any(ids[length:])
        begin = answer.index(True)
        found.append((ids[:begin], ids[begin:length]))
    return found


def test_padding_on_either_side():
    ids, there = padded([[5, 6, 7], [8]], value=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert there.tolist() == [[True] * 3, [True, False, False]]
    ids, there = padded([[5, 6, 7], [8]], left=True)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert there.tolist() == [[True] * 3, [False, False, True]]


def test_columns_of_pairs():
    columns = token_columns([[3, 4], [5]], [[[6, 1], [7, 8, 1]], [[9, 1], [2, 1]]])
    assert columns["ids"].tolist() == [[[3, 4, 6, 1, 0], [3, 4, 7, 8, 1]], [[5, 9, 1, 0, 0], [5, 2, 1, 0, 0]]]
    assert columns["length"].tolist() == [[4, 5], [3, 3]]
    assert columns["answer"][0].tolist() == [[False, False, True, True, False], [False, False, True, True, True]]


@given(st.lists(st.tuples(RAGGED, RAGGED), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_answers_after_prompts_are_rows(rows):
    """Prompts padded on the left, answers on the right: the same rows as of the lists, and nothing between them."""
    prompts, answers = [prompt for prompt, _ in rows], [answer for _, answer in rows]
    ids, attention = padded(prompts, left=True)
    said, there = padded(answers, value=1)  # what follows an answer's end is no padding of ours
    logp = torch.where(there, -said.float(), 9.0)
    found = after_prompts(ids, attention.long(), {"ids": said, "answer": there, "sampled_logp": logp})
    expected = token_columns(prompts, [[answer] for answer in answers])
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert torch.equal(found["sampled_logp"], torch.where(expected["answer"], -expected["ids"].float(), 0.0))


@given(st.lists(st.tuples(RAGGED, RAGGED), min_size=2, max_size=5))
@settings(max_examples=50, deadline=None)
def test_exchanged_answers(rows):
    columns = token_columns([prompt for prompt, _ in rows], [[answer] for _, answer in rows])
    expected = [(prompt, rows[i - 1][1]) for i, (prompt, _) in enumerate(rows)]
    assert answers_of(exchanged(columns)) == expected


@given(st.lists(st.tuples(RAGGED, RAGGED, RAGGED), min_size=2, max_size=6), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_what_is_kept_without_padding_comes_back(rows, seed):
    """Kept in two parts, of pairs and of single answers, with a column of tokens and one of rows besides."""
    for count in (1, 2):
        prompts = [row[0] for row in rows]
        columns = token_columns(prompts, [list(row[1 : 1 + count]) for row in rows])
        columns |= {"said": columns["ids"] * 0.5, "number": torch.arange(len(rows))}
        kept = TokenRows()
        for part in (picked(columns, torch.arange(1)), picked(columns, torch.arange(1, len(rows)))):
            kept.insert(part)
        assert len(kept) == len(rows)
        index = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:2]
        for name, value in picked(columns, index).items():
            assert torch.equal(kept.rows(index)[name], value), name
        assert kept.columns["ids"].dim() == 1
        assert len(kept.columns["ids"]) == int(columns["length"].sum())


def test_joined_rows_are_as_wide_as_the_longest():
    parts = [token_columns([[3]], [[[4, 1]]]), token_columns([[5, 6]], [[[7, 8, 1]]])]
    both = joined([{**part, "reward": torch.ones(1)} for part in parts])
    assert both["ids"].tolist() == [[3, 4, 1, 0, 0], [5, 6, 7, 8, 1]]
    assert answers_of(both) == [([3], [4, 1]), ([5, 6], [7, 8, 1])]
    assert both["reward"].tolist() == [1, 1]


def test_rows_are_drawn_in_passes_and_go_on_where_they_were():
    kept = TokenRows()
    kept.insert(token_columns([[3]] * 5, [[[4, 1]]] * 5))
    rng = torch.Generator().manual_seed(0)
    first = torch.cat([kept.draw(3, rng), kept.draw(2, rng)])
    assert sorted(first.tolist()) == [0, 1, 2, 3, 4]
    kept.draw(3, rng)
    again = TokenRows()
    again.insert(token_columns([[3]] * 5, [[[4, 1]]] * 5))
    again.load_state_dict(kept.state_dict())
    same = torch.Generator()
    same.set_state(rng.get_state())
    assert torch.equal(kept.draw(9, rng), again.draw(9, same))
