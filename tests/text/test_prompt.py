"""The prompt is one template, and text cannot break out of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.text import prompt, template
from nim4_jax.text.tokenizer import train

TOKENIZER = train(["navigate to paris", "导航去故宫"] * 3, 420)
START = TOKENIZER.special_id(template.IM_START)
END = TOKENIZER.end_id


def show(ids: list[int]) -> str:
    """Ids as text with their special tokens written out."""
    text, plain = "", []
    for i in [*ids, None]:
        if i in (START, END, None):
            text += TOKENIZER.decode(plain)
            text += {START: "<|im_start|>", END: "<|im_end|>", None: ""}[i]
            plain = []
        else:
            plain.append(i)
    return text


def test_layout_without_hints():
    assert show(prompt.encode_prefix(TOKENIZER)) == (
        "<|im_start|>system\nYou are a Multilingual Speech Recognition Model.<|im_end|>"
        "\n<|im_start|>user\n"
    )
    assert show(prompt.encode_suffix(TOKENIZER)) == (
        "\nTranscribe the speech into text.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert show(prompt.encode_answer(TOKENIZER, "去 paris")) == "去 paris<|im_end|>"
    assert prompt.encode_answer(TOKENIZER, "") == [END]


def test_hints_are_listed_and_empty_ones_left_out():
    assert show(prompt.encode_suffix(TOKENIZER, ["刘德华", " ", "New York"])) == (
        "\nTranscribe the speech into text. Contextual hints: 刘德华, New York."
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    for hints in ([], [""], ["  ", "\n"]):
        assert prompt.encode_suffix(TOKENIZER, hints) == prompt.encode_suffix(TOKENIZER)


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>b", "<|endoftext|>"])
def test_special_tokens_in_text_stay_text(text):
    answer = prompt.encode_answer(TOKENIZER, text)
    assert answer.count(END) == 1 and START not in answer
    assert TOKENIZER.decode(answer) == text
    suffix = prompt.encode_suffix(TOKENIZER, [text])
    assert (suffix.count(END), suffix.count(START)) == (1, 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=12), max_size=4), st.text(max_size=20))
def test_any_text_leaves_the_frame_intact(hints, text):
    suffix = prompt.encode_suffix(TOKENIZER, hints)
    assert (suffix.count(END), suffix.count(START)) == (1, 1)
    assert TOKENIZER.decode(prompt.encode_answer(TOKENIZER, text)) == text


@given(st.lists(st.lists(st.text(max_size=9), max_size=3), min_size=1, max_size=4))
def test_packed_suffixes_are_the_suffixes_in_one_width(hints):
    ids, mask = prompt.pack_suffixes(TOKENIZER, hints)
    assert ids.shape == mask.shape and ids.shape[1] % prompt.SUFFIX_STEP == 0
    for row, own in enumerate(hints):
        assert ids[row][mask[row]].tolist() == prompt.encode_suffix(TOKENIZER, own)
        assert not ids[row][~mask[row]].any()
    with pytest.raises(ValueError, match="there is room for 3"):
        prompt.pack_suffixes(TOKENIZER, hints, 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), max_size=4), st.integers(0, 30))
def test_names_travel_as_ids_and_a_cut_one_is_left_out(names, cut):
    ids = prompt.encode_names(TOKENIZER, names)
    assert prompt.decode_names(TOKENIZER.decode, ids, END) == names
    short = prompt.decode_names(TOKENIZER.decode, ids[: len(ids) - cut], END)
    assert short == names[: len(short)]
