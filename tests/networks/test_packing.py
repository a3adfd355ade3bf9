"""Which tokens are passed, and where they stand."""

import torch

from palaestra.networks.packing import packing


def test_what_texts_begin_with_is_passed_once():
    """By hand: of 1 2 3 4, 7, 1 2 5 and 1 2 six tokens differ in themselves or in what is before them."""
    ids = torch.tensor([[1, 2, 3, 4], [7, 0, 0, 0], [1, 2, 5, 0], [1, 2, 0, 0]])
    length = torch.tensor([4, 1, 3, 2])
    pack = packing(ids, length)
    row = pack.packed(ids)
    assert row.tolist() == [[1, 2, 3, 4, 5, 7]]  # in the order of texts in a dictionary
    assert pack.position.tolist() == [[0, 1, 2, 3, 2, 0]]
    assert pack.before[[1, 2, 3, 4]].tolist() == [0, 1, 2, 1]
    there = torch.arange(4) < length[:, None]
    assert torch.equal(pack.spread(row)[there], ids[there])
    assert [places[:n].tolist() for places, n in zip(pack.place, length, strict=True)] == [
        [0, 1, 2, 3],
        [5],
        [0, 1, 4],
        [0, 1],
    ]


def test_padding_is_no_token():
    """The second text's 0 is one of its tokens, what looks like it in the first is not."""
    pack = packing(torch.tensor([[1, 0, 0], [1, 0, 2]]), torch.tensor([1, 3]))
    assert len(pack.first) == 3
    assert pack.place[0, 0] == 0
    assert pack.place[1].tolist() == [0, 1, 2]


def test_a_text_may_be_empty():
    pack = packing(torch.tensor([[1, 2], [0, 0]]), torch.tensor([2, 0]))
    assert pack.first.tolist() == [0, 1]
    assert pack.place[0].tolist() == [0, 1]
    assert pack.place[1].min() >= 0


def test_what_follows_unlike_tokens_is_not_shared():
    pack = packing(torch.tensor([[1, 5, 5], [2, 5, 5]]), torch.tensor([3, 3]))
    assert len(pack.first) == 6
