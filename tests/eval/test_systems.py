"""What a sweep may be asked for, as it is written in flags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.sweep import systems
from nim4_jax.eval.sweep.peers import PEERS
from nim4_jax.eval.sweep.systems import Hotwords, Mode, Model

OFFLINE, STREAM = Mode.parse("offline"), Mode.parse("stream:640")
NONE, SAID, LIST = map(Hotwords.parse, ("none", "said", "list:names.txt"))


@given(st.integers(1, 10_000))
def test_a_stream_has_chunks_of_whole_tokens_or_is_refused(length):
    """40 ms an encoder frame, four of them a token."""
    text = f"stream:{length}"
    if length % 160:
        with pytest.raises(ValueError, match="multiple of 160 ms"):
            Mode.parse(text)
    else:
        assert Mode.parse(text) == Mode(text, length)


@pytest.mark.parametrize("text", ["stream:0", "stream:", "stream:-160", "online", ""])
def test_other_modes_are_refused(text):
    with pytest.raises(ValueError, match="expected offline, or stream:MS"):
        Mode.parse(text)


@pytest.mark.parametrize(
    "text, model",
    [
        ("runs/a/", Model("runs/a", "runs/a/")),
        ("a=runs/x=1", Model("a", "runs/x=1")),
        ("whisper-base", Model("whisper-base")),
    ],
)
def test_models_have_a_name(text, model):
    assert Model.parse(text) == model


@pytest.mark.parametrize("text", ["=x", "a=", "pocketsphinx=runs/a", ""])
def test_models_without_a_name_or_origin_are_refused(text):
    with pytest.raises(ValueError, match="expected PATH, NAME=PATH"):
        Model.parse(text)


@pytest.mark.parametrize(
    "name, mode, hotwords, lang, reason",
    [
        ("whisper-base", OFFLINE, NONE, "auto", ""),
        ("whisper-base", OFFLINE, SAID, "zh", ""),
        ("whisper-base", STREAM, NONE, "en", "whole recordings only"),
        ("whisper-base", OFFLINE, LIST, "en", "no phoneme head"),
        ("whisper-tiny.en", OFFLINE, NONE, "zh", "writes en, not zh"),
        ("whisper-tiny.en", OFFLINE, NONE, "mixed", ""),
        ("pocketsphinx", OFFLINE, SAID, "en", "takes no names"),
    ],
)
def test_what_a_peer_cannot_do_is_said(name, mode, hotwords, lang, reason):
    told = systems.refuse(Model.parse(name), mode, hotwords, lang)
    assert (reason in told) if reason else told == ""


def test_a_model_is_refused_nothing_before_it_is_loaded():
    for hotwords in (NONE, SAID, LIST):
        assert systems.refuse(Model("a", "b"), STREAM, hotwords, "zh") == ""
    assert all(Model.parse(name).origin == "" for name in PEERS)
