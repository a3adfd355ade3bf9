"""Ids of prompts and completions, on a tokenizer of ten words: what is added, what is kept, and what is refused."""

from typing import Any

import pytest

from palaestra.data.dataset import DatasetError
from palaestra.data.tokenising import (
    Encoded,
    check_tokenizer,
    completion_ids,
    decoded,
    encoded,
    fitting,
    prompt_ids,
)

pytest.importorskip("transformers")

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "user:", "assistant:", "a", "b", "c", "."]
PAD, EOS, BOS, UNK, USER, ASSISTANT, A, B, C, STOP = range(10)
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{{ message.role }}: {{ message.content }} {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
ASKED = [{"role": "user", "content": "a b"}]
ROWS = {
    "prompts": {"prompt": "a b"},
    "demonstrations": {"prompt": "a b", "completion": "c"},
    "pairs": {"prompt": "a b", "chosen": "c", "rejected": "b a"},
    "labelled": {"prompt": "a b", "completion": "c", "label": False},
}


def tokenizer(*, begins: bool = False, template: str | None = None, **special: str) -> Any:
    """Of words between spaces; with `begins` it puts <bos> before whatever is encoded with special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begins:
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
        special["bos_token"] = "<bos>"
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"} | special
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **{key: word for key, word in special.items() if word})
    made.chat_template = template
    return made


def refused(what: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(DatasetError) as raised:
        what(*arguments, **named)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ------------------------------------------------------------------------------------------------------ tokenizers


def test_a_tokenizer_fits_a_model_with_as_many_embeddings_or_more() -> None:
    check_tokenizer(tokenizer(), 10)
    check_tokenizer(tokenizer(), 64)
    check_tokenizer(tokenizer(pad_token="<eos>"), 10)


def test_a_tokenizer_and_a_model_that_do_not_match() -> None:
    assert refused(check_tokenizer, tokenizer(), 9) == (
        "the tokenizer: it does not match the model, since its token '.' has the id 9, and the model has 9 embeddings; "
        "load both from one folder"
    )


def test_a_tokenizer_without_its_tokens() -> None:
    nameless = tokenizer(pad_token="")
    nameless.name_or_path = "models/tiny"
    assert refused(check_tokenizer, nameless, 10) == (
        'models/tiny: it has no padding token; name one in its tokenizer_config.json, "pad_token": "...": a token that '
        "no text has, or, where the vocabulary has none, '<eos>', which does no harm here, where masks go by length"
    )
    assert refused(check_tokenizer, tokenizer(eos_token=""), 10) == (
        "the tokenizer: it has no end-of-text token; name the one the model ends answers with in its "
        'tokenizer_config.json, "eos_token": "..."'
    )


# --------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_is_encoded_as_it_is() -> None:
    assert prompt_ids(tokenizer(), "a b") == [A, B]
    assert prompt_ids(tokenizer(bos_token="<bos>"), "a b") == [A, B], "this one has a <bos>, and does not put it"


@pytest.mark.parametrize("text", ["a b", "<bos> a b"])
def test_the_beginning_of_text_is_there_once_if_the_tokenizer_puts_it(text: str) -> None:
    assert prompt_ids(tokenizer(begins=True), text) == [BOS, A, B]


def test_messages_go_through_the_template_up_to_where_the_assistant_speaks() -> None:
    assert prompt_ids(tokenizer(template=TEMPLATE), ASKED) == [USER, A, B, ASSISTANT]
    talk = [*ASKED, {"role": "assistant", "content": "c"}, *ASKED]
    assert prompt_ids(tokenizer(template=TEMPLATE), talk) == [USER, A, B, ASSISTANT, C, USER, A, B, ASSISTANT]


def test_a_template_that_spells_the_beginning_of_text_has_it_once() -> None:
    both = tokenizer(begins=True, template="{{ bos_token }} " + TEMPLATE)
    assert prompt_ids(both, ASKED) == [BOS, USER, A, B, ASSISTANT]
    assert prompt_ids(tokenizer(begins=True, template=TEMPLATE), ASKED) == [USER, A, B, ASSISTANT]


def test_prompts_that_are_refused() -> None:
    system = [{"role": "system", "content": "a"}]
    for own, prompt, message in [
        (None, ASKED, "messages need a chat template, and the tokenizer has none; give text, or a chat model"),
        (TEMPLATE, system, "the chat template refuses it (no system here); change its messages"),
        (TEMPLATE, " ", "the tokenizer knows nothing of it; give text in the tokenizer's alphabet"),
    ]:
        assert refused(prompt_ids, tokenizer(template=own), prompt) == message


# ----------------------------------------------------------------------------------------------------- completions


@pytest.mark.parametrize("text", ["c a", "c a <eos>", "c a <eos> <eos>"])
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
@pytest.mark.parametrize("begins", [False, True])
def test_a_completion_ends_with_one_end_of_text_whatever_pads_or_begins(text: str, pad: str, begins: bool) -> None:
    assert completion_ids(tokenizer(begins=begins, pad_token=pad), text) == [C, A, EOS]


def test_a_completion_that_goes_on_after_its_end() -> None:
    assert refused(completion_ids, tokenizer(), "c <eos> a") == (
        "it goes on after the end-of-text token '<eos>'; remove that, or the rest"
    )


def test_prompt_and_completion_are_never_merged() -> None:
    """A tokenizer of letters that has "ab" too: of one text "ab" it makes one token, of the two sides two."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "<eos>": 3}, merges=[("a", "b")]))
    letters = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    assert prompt_ids(letters, "ab") == [2]
    found = encoded(letters, [{"prompt": "a", "completion": "b"}], "demonstrations", limit=3, file="file")
    assert found == Encoded([[0]], [[[1, 3]]])


# ------------------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("kind", "completions"),
    [("prompts", []), ("demonstrations", [[C, EOS]]), ("pairs", [[C, EOS], [B, A, EOS]]), ("labelled", [[C, EOS]])],
)
def test_rows_have_a_prompt_and_the_completions_of_their_kind(kind: str, completions: list[list[int]]) -> None:
    length = 2 + max(map(len, completions), default=0)
    found = encoded(tokenizer(), [ROWS[kind]] * 2, kind, limit=length, file="file")
    assert found == Encoded([[A, B]] * 2, [completions] * 2)
    assert found.lengths == [length] * 2


@pytest.mark.parametrize(("kind", "takes"), [("prompts", 2), ("demonstrations", 4), ("pairs", 5), ("labelled", 4)])
def test_a_row_that_is_too_long_is_refused_or_left_out(kind: str, takes: int) -> None:
    short = dict.fromkeys(ROWS[kind], "a")
    rows = [short, ROWS[kind] | {"answer": 1}, short]
    assert refused(encoded, tokenizer(), rows, kind, limit=takes - 1, file="some.jsonl") == (
        f"some.jsonl, row 2: it takes {takes} tokens, 2 of them the prompt's, and the limit is {takes - 1}; "
        "shorten it, remove it, or take a model with a longer context"
    )
    kept, found = fitting(tokenizer(), rows, kind, limit=takes - 1, file="some.jsonl")
    assert kept == [short, short]
    assert found == encoded(tokenizer(), kept, kind, limit=takes - 1, file="some.jsonl")
    whole, all_of_it = fitting(tokenizer(), rows, kind, limit=takes, file="some.jsonl")
    assert whole == rows
    assert all_of_it == encoded(tokenizer(), rows, kind, limit=takes, file="some.jsonl")


def test_no_row_is_short_enough() -> None:
    assert refused(fitting, tokenizer(), [ROWS["pairs"]], "pairs", limit=4, file="some.jsonl") == (
        "some.jsonl: no row is within the limit of 4 tokens, and the shortest takes 5; "
        "take a model with a longer context"
    )


def test_a_row_that_cannot_be_encoded_says_which() -> None:
    rows = [ROWS["pairs"], ROWS["pairs"] | {"rejected": "a <eos> b"}]
    assert refused(encoded, tokenizer(), rows, "pairs", limit=9, file="some.jsonl") == (
        "some.jsonl, field 'rejected', row 2: it goes on after the end-of-text token '<eos>'; remove that, or the rest"
    )
    assert refused(encoded, tokenizer(), [{"prompt": ASKED}], "prompts", limit=9, file="some.jsonl") == (
        "some.jsonl, field 'prompt', row 1: messages need a chat template, and the tokenizer has none; "
        "give text, or a chat model"
    )


# -------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("text", ["c", "a b c a", "c . a ."])
@pytest.mark.parametrize("pad", ["<pad>", "<eos>"])
def test_what_is_encoded_is_decoded(text: str, pad: str) -> None:
    own = tokenizer(pad_token=pad)
    own.clean_up_tokenization_spaces = True  # as some tokenizers have it; "c ." would come back as "c."
    assert decoded(own, [completion_ids(own, text)]) == [text]


def test_answers_are_cut_at_their_first_end_and_lose_special_tokens() -> None:
    answers = [[A, EOS, B, EOS], [BOS, A, B, PAD], [], [EOS], [C]]
    assert decoded(tokenizer(bos_token="<bos>"), answers) == ["a", "a b", "", "", "c"]
