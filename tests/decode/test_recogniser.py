"""Batches of audio to transcripts with a tiny random model."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.decode import model_programs
from nim4_jax.decode.model_programs import ModelPrograms
from nim4_jax.decode.programs import Budget
from nim4_jax.decode.recogniser import BatchRecogniser
from nim4_jax.model_files import loading
from nim4_jax.ops.chunking import Chunking
from nim4_jax.serving import recognisers
from nim4_jax.types import Frames

RATE = 16_000


@pytest.fixture(scope="module")
def whole(model_files) -> BatchRecogniser:
    return recognisers.load(model_files[0]).recogniser


def make_batch(lengths, size, rows=None, seed=0, offset=0) -> Frames:
    """Noise of given lengths (samples); row r sounds like seed + offset + r."""
    rows = rows or len(lengths)
    values, mask = np.zeros((rows, size), np.float32), np.zeros((rows, size), bool)
    for row, length in enumerate(lengths):
        random = np.random.default_rng(seed + offset + row)
        values[row, :length] = random.normal(0, 0.1, size)[:length]
        mask[row, :length] = True
    return Frames(values, mask)


def assert_same(one, other):
    assert one.tokens == other.tokens and one.text == other.text
    assert one.phonemes == other.phonemes
    assert one.duration == pytest.approx(other.duration)
    assert one.log_prob == pytest.approx(other.log_prob, abs=1e-3)
    assert [word.text for word in one.words] == [word.text for word in other.words]
    for mine, theirs in zip(one.words, other.words):
        assert (mine.start, mine.end) == pytest.approx((theirs.start, theirs.end))
        assert mine.confidence == pytest.approx(theirs.confidence, abs=1e-3)


@settings(max_examples=6)
@given(st.lists(st.integers(0, 12_800), min_size=3, max_size=3), st.integers(0, 99))
def test_a_row_is_the_same_in_a_batch_alone_and_in_a_longer_shape(whole, lengths, seed):
    together = whole.transcribe(make_batch(lengths, 12_800, seed=seed))
    for row, length in enumerate(lengths):
        alone = make_batch([length], 25_600, rows=3, seed=seed, offset=row)
        assert_same(together[row], whole.transcribe(alone)[0])


def test_transcripts_carry_what_the_model_wrote(whole):
    (transcript, *_) = whole.transcribe(make_batch([12_800, 6_000, 8_000], 12_800))
    assert transcript.text == whole.tokenizer.decode(transcript.tokens).strip()
    assert transcript.duration == pytest.approx(0.8)
    assert transcript.log_prob < 0.0
    assert transcript.words
    times = [time for word in transcript.words for time in (word.start, word.end)]
    assert times == sorted(times) and times[-1] <= 0.8
    assert len(transcript.tokens) <= Budget().count(0.8)
    assert transcript.finished == (len(transcript.tokens) < Budget().count(0.8))


def test_silence_nan_and_nothing_are_the_empty_string(whole):
    audio = make_batch([12_800, 200, 12_800], 12_800)
    audio.values[0] = 1e-5
    audio.values[2, 40] = np.nan
    for transcript in whole.transcribe(audio):
        assert (transcript.text, transcript.tokens) == ("", ())
        assert (transcript.words, transcript.phonemes) == ((), ())
        assert transcript.log_prob == 0.0


def test_a_shape_compiles_once_whatever_the_chunks(whole):
    audio = make_batch([12_800, 6_000, 3_000], 12_800)
    full = whole.transcribe(audio)
    traces = model_programs.transcribe._cache_size()
    chunked = [
        BatchRecogniser(
            dataclasses.replace(whole.programs, chunking=chunking), whole.tokenizer
        ).transcribe(audio)
        for chunking in (Chunking.of(4, 1), Chunking.of(64, 0))
    ]
    assert model_programs.transcribe._cache_size() == traces
    assert chunked[1][0].tokens == full[0].tokens  # one chunk holds all of it
    assert chunked[0][0].log_prob != full[0].log_prob


def test_phonemes_need_no_llm_but_text_does(model_files, whole):
    heard = recognisers.load(model_files[1]).recogniser
    audio = make_batch([12_800, 6_000, 0], 12_800)
    phonemes = heard.hear_phonemes(audio)
    assert phonemes == [row.phonemes for row in whole.transcribe(audio)]
    assert not heard.writes and phonemes[2] == ()
    with pytest.raises(ValueError, match="no adaptor and no LLM: train stages 2 and 4"):
        heard.transcribe(audio)


def test_a_model_without_encoder_is_refused(model_files, whole):
    params, meta = loading.load_model(model_files[0])
    config = loading.build_model_config(meta["model"])
    kept = {"llm": params["llm"]}
    with pytest.raises(ValueError, match="no cmvn, encoder, ctc_head: train stage 1"):
        ModelPrograms.create(config, kept, whole.programs.prompt, 0)


@pytest.mark.parametrize(
    ("seconds", "tokens"), [(0.0, 8), (1.0, 20), (2.01, 33), (1000.0, 448)]
)
def test_budget(seconds, tokens):
    assert Budget().count(seconds) == tokens


def test_shapes_come_with_the_model(model_files, tiny_model):
    loaded = recognisers.load(model_files[0])
    assert (loaded.bucket_seconds, loaded.rows) == (tiny_model.BUCKETS, tiny_model.ROWS)
    meta = {"config": json.dumps({"data": {"batch_size": 4}})}
    assert recognisers.find_shapes(meta)[1] == (4, 4, 4)


@pytest.mark.parametrize(("chunk", "left"), [(-1, 4), (4, -1)])
def test_bad_chunks_are_refused(model_files, chunk, left):
    with pytest.raises(ValueError, match="must be ≥ 0"):
        recognisers.load(model_files[0], chunk_ms=chunk, left=left)


def test_hints_stand_in_the_prompt_of_their_own_row(whole):
    audio = make_batch([12_800, 9_000, 8_000], 12_800)
    plain = whole.transcribe(audio, timings=False)
    none = whole.transcribe(audio, hints=[(), (), ()], timings=False)
    for one, other in zip(plain, none):
        assert_same(one, other)
    hinted = whole.transcribe(audio, hints=[(), ("上海", "Ann"), ()], timings=False)
    assert_same(hinted[0], plain[0])
    assert_same(hinted[2], plain[2])
    assert hinted[1].log_prob != pytest.approx(plain[1].log_prob, abs=1e-4)
    alone = make_batch([9_000], 12_800, rows=3, offset=1)
    (again, *_) = whole.transcribe(
        alone, hints=[("上海", "Ann"), (), ()], timings=False
    )
    assert_same(again, hinted[1])
    with pytest.raises(ValueError, match="2 lists of hints for 3 rows"):
        whole.transcribe(audio, hints=[(), ()])
