"""Where steps end, and what is said of them."""

import pytest
import torch
from torch import tensor

from palaestra.algorithm import same
from palaestra.envs.text.chain import chain_sum, step_scores
from palaestra.factories.language import tokenizer_of
from palaestra.faults import RewardFailed
from palaestra.rollout.steps import StepsScored, spelling, step_ends
from palaestra.rollout.texts import Texts

END, SEP, BLANK = 2, 7, 8
ROW = {"prompt": "3+8-5=", "terms": [3, 8, -5], "answer": "+8=1;-5=6"}


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        ([5, 6, SEP, 5, END], [0, 0, 1, 0, 1]),  # the last step ends with the answer
        ([5, 6, SEP, 5, 6], [0, 0, 1, 0, 1]),  # which was cut off
        ([5, 6, 5, SEP, END], [0, 0, 0, 1, 0]),  # nothing but the end behind the last separator
        ([5, SEP, BLANK, END], [0, 1, 0, 0]),
        ([5, 6, SEP], [0, 0, 1]),
        ([SEP, SEP, END], [1, 1, 0]),  # empty steps
        ([END], [0]),  # no step
        ([BLANK, 5, END], [0, 0, 1]),
    ],
)
def test_where_steps_end(answer, ends):
    ids = tensor([[SEP, 5, *answer, SEP]])  # a separator in the prompt and one in the padding are none of its own
    mask = tensor([[False, False, *[True] * len(answer), False]])
    found = step_ends(ids, mask, tensor([SEP]), tensor([END, BLANK]))
    assert found[0, 2:-1].int().tolist() == ends
    assert not found[0, :2].any()
    assert not found[0, -1]


def collected(answers, scores, separator=";"):
    """What is said of answers of one token a letter, each behind its prompt."""
    tokenizer = tokenizer_of(chain_sum())
    whole = [[*tokenizer(f"{ROW['prompt']}{answer}").input_ids, tokenizer.eos_token_id] for answer in answers]
    width = max(map(len, whole))
    place = torch.arange(width)
    ids = tensor([row + [0] * (width - len(row)) for row in whole])
    answer = torch.stack([(place >= len(ROW["prompt"])) & (place < len(row)) for row in whole])
    columns = {"ids": ids, "answer": answer, "length": tensor([len(row) for row in whole])}
    notes = [{"row": ROW, "answer": text} for text in answers]
    source = type("Source", (), {"tokenizer": tokenizer})()
    collect = StepsScored(lambda *given: Texts(columns, notes), scores, separator)
    return collect(None, None, source, len(answers), torch.Generator())


def test_scores_stand_where_steps_end():
    found = collected(["+8=1;-5=6", "+8=2;=1;-5=6;", ""], step_scores)
    score, ends = (found.columns[name][:, len(ROW["prompt"]) :] for name in ("step_score", "step_end"))
    # "+8=1;-5=6." and "+8=2;=1;-5=6;.": the number 2 is wrong
    assert ends.nonzero().tolist() == [[0, 4], [0, 9], [1, 4], [1, 7], [1, 12]]
    assert score[ends].tolist() == [1, 1, 0, 1, 1]
    assert not score[~ends].any()
    assert [note["steps"] for note in found.notes] == [2, 3, 0]
    assert [note["step_score"] for note in found.notes] == pytest.approx([1, 2 / 3, 0])


def test_tokens_of_several_letters():
    class Words:
        def decode(self, ids, skip_special_tokens):
            return {4: "so", 5: ".\n\n", 6: " \n", 7: " ", 2: ""}[ids[0]]

    ends, blank = spelling(Words(), tensor([4, 5, 6, 7, 2]), "\n")
    assert (ends.tolist(), blank.tolist()) == ([5, 6], [7, 2])


@pytest.mark.parametrize("scores", [lambda row, answer: [1.0], lambda row, answer: [1.0, float("nan")]])
def test_what_is_no_score(scores):
    with pytest.raises(RewardFailed, match=r"for the 2 steps of '\+8=1;-5=6', which end with ';': let it return a fin"):
        collected(["+8=1;-5=6"], scores)


def test_names(tmp_path):
    named = StepsScored(None, "palaestra.envs.text.chain:step_scores", ";")
    assert named.scorer is step_scores
    file = tmp_path / "mine.py"
    file.write_text("def judge(row, answer):\n    return [0.5] * len(answer.split(';'))\n")
    found = collected(["+8=1;-5=6"], f"{file}:judge")
    assert [note["step_score"] for note in found.notes] == [0.5]
    assert same(StepsScored(None, f"{file}:judge", ";"), StepsScored(None, f"{file}:judge", ";"))
    with pytest.raises(ValueError, match=r"chain has no function 'step_score'; did you mean step_scores\?"):
        StepsScored(None, "palaestra.envs.text.chain:step_score", ";")
    with pytest.raises(ValueError, match="the step scorer 'step_scores' names no function: give module:function"):
        StepsScored(None, "step_scores", ";")
