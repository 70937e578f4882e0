"""The tick: chunks in any company give what the whole gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.decode import drafts, offline, stream
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.programs import Arrival, Request
from nim4_jax.decode.recogniser import BatchRecogniser
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.rates import Rates
from nim4_jax.serving import recognisers
from nim4_jax.text import prompt as prompt_text
from nim4_jax.types import Frames, Labels

# 160 ms chunks: much happens in little audio.
CONFIG = StreamConfig(
    chunk=4,
    left=2,
    unstable_tokens=3,
    free_chunks=2,
    draft_tokens=4,
    chunks=8,
    text_tokens=32,
    suffix_tokens=40,
)
HOP = CONFIG.hop
STREAMS = 4


def load(path: str) -> BatchRecogniser:
    chunk_ms, left = CONFIG.chunk_ms, CONFIG.left
    return recognisers.load(path, chunk_ms=chunk_ms, left=left).recogniser


@pytest.fixture(scope="module")
def whole(model_files) -> BatchRecogniser:
    return load(model_files[0])


@pytest.fixture(scope="module", params=["model_files", "whisper_files"])
def every(request) -> BatchRecogniser:
    """A model with each kind of encoder."""
    return load(request.getfixturevalue(request.param)[0])


def size_for(recogniser: BatchRecogniser) -> StreamConfig:
    """CONFIG in frames of the model."""
    rates = recogniser.programs.rates
    chunk = rates.frames_of_chunk(CONFIG.chunk_ms)
    return dataclasses.replace(CONFIG, chunk=chunk, rates=rates)


class Device:
    """Drives the two programs by hand."""

    def __init__(self, recogniser: BatchRecogniser, streams: int = STREAMS, **sizes):
        self.recogniser, self.streams = recogniser, streams
        self.config = dataclasses.replace(size_for(recogniser), **sizes)
        self.window = self.config.window
        self.end_id = recogniser.tokenizer.end_id
        self.state = recogniser.programs.start(self.config, streams)

    def pack(self, hints) -> Labels:
        packed = prompt_text.pack_suffixes(
            self.recogniser.tokenizer, hints, CONFIG.suffix_tokens
        )
        return Labels(*map(jnp.asarray, packed))

    def tick(self, chunks, limits=None, hints=(), whole=False):
        """`chunks`: slot → (audio of the utterance, number of the chunk).

        whole: each stream has its own row, not the next one.
        """
        rows = self.streams
        audio = np.full((rows, self.window), np.nan, np.float32)
        mask = np.zeros((rows, self.window), bool)
        slots, fresh = np.full(rows, self.streams, np.int32), np.zeros(rows, bool)
        for row, (slot, (samples, number)) in enumerate(chunks.items()):
            row = slot if whole else row
            place = number * HOP - self.config.rates.samples_before
            piece = samples[max(0, place) : max(0, place + self.window)]
            inside = slice(max(0, -place), max(0, -place) + len(piece))
            audio[row, inside], mask[row, inside] = piece, True
            slots[row], fresh[row] = slot, number == 0
        allowed = np.full(rows, 20, np.int32) if limits is None else limits
        arrival = Arrival(
            None if whole else jnp.asarray(slots),
            Frames(jnp.asarray(audio), jnp.asarray(mask)),
            jnp.asarray(fresh),
            jnp.asarray(allowed),
            self.pack([hints] * rows),
        )
        self.state, heard, written = self.recogniser.programs.tick(
            self.config, self.config.widths()[-1], self.state, arrival
        )
        return jax.device_get((heard, written))

    def finish(self, slots, limits, hints=(), kept=None):
        request = Request(
            jnp.asarray(slots, jnp.int32),
            jnp.asarray(limits, jnp.int32),
            jnp.asarray(np.zeros(len(slots)) if kept is None else kept, jnp.int32),
            self.pack([hints] * len(slots)),
        )
        self.state, written = self.recogniser.programs.finish(
            self.config, self.config.widths()[-1], self.state, request
        )
        return jax.device_get(written)


def make_audio(seconds_of_chunks: float, seed: int) -> np.ndarray:
    size = int(seconds_of_chunks * HOP)
    return np.random.default_rng(seed).normal(0, 0.1, size).astype(np.float32)


def lay_out(audio) -> Frames:
    """A recording in a batch of one shape, whatever its length."""
    values = np.zeros((1, 7 * HOP), np.float32)
    values[0, : len(audio)] = audio
    return Frames(values, np.arange(values.shape[1])[None] < len(audio))


def count_chunks(audio) -> int:
    return -(-len(audio) // HOP)


def cut_end(tokens, end_id):
    return tokens[:-1] if tokens and tokens[-1] == end_id else tokens


@settings(max_examples=6)
@given(st.floats(0.2, 6.0), st.integers(0, 99))
def test_chunks_give_the_phonemes_of_the_masked_full_pass(every, length, seed):
    audio, device = make_audio(length, seed), Device(every)
    values = lay_out(audio)
    (expected,) = every.score_phonemes(values)
    pieces = [
        device.tick({1: (audio, number)})[0] for number in range(count_chunks(audio))
    ]
    got = np.concatenate([heard.log_probs[0][heard.mask[0]] for heard in pieces])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    heard_ids = [heard.ids[0][heard.starts[0]] for heard in pieces]
    assert tuple(np.concatenate(heard_ids)) == every.hear_phonemes(values)[0]


@settings(max_examples=5)
@given(
    st.integers(3, 6),
    st.integers(0, 99),
    st.sampled_from([(), ("perth",), ("anna", "橘子")]),
)
def test_each_text_is_greedy_decoding_behind_what_was_kept(whole, number, seed, hints):
    audio, device = make_audio(number, seed), Device(whole)
    text, stable = [], 0
    for index in range(number):
        limit = 6 + 2 * index
        limits = np.array([limit] + [0] * (STREAMS - 1), np.int32)
        _, written = device.tick({2: (audio, index)}, limits, hints)
        free = index + 1 <= CONFIG.free_chunks
        kept = [] if free else text[: max(stable, len(text) - CONFIG.unstable_tokens)]
        # Frames of the last chunk see a little audio behind it.
        so_far = audio[: (index + 1) * HOP + device.window - HOP]
        want = decode_plainly(whole, so_far, index + 1, hints, kept, limit)
        text = written.tokens[0][: written.length[0]].tolist()
        assert text == cut_end(want, device.end_id)
        assert bool(written.finished[0]) == (want[-1:] == [device.end_id])
        assert text[: len(kept)] == kept
        stable = int(written.stable[0])
        new = len(want) - len(kept) - int(written.accepted[0])
        assert written.passes == max(1, new)


@functools.partial(jax.jit, static_argnums=0)
def lay_prompt(recogniser, audio, frames_heard, suffix, kept):
    """The prompt with the speech of the first frames, and some text behind it."""

    def run(asr):
        frames = asr.encode(asr.extract(audio), CONFIG.chunking)
        heard = jnp.arange(frames.mask.shape[1])[None] < frames_heard
        speech = asr.adapt(Frames(frames.values, frames.mask & heard))
        return asr.assemble(speech, recogniser.programs.prompt, kept, suffix)

    return recogniser.programs.model.apply(
        {"params": recogniser.programs.params}, method=run
    )


def decode_plainly(recogniser, audio, chunks, hints, kept, limit):
    """Greedy decoding behind the kept text, with the speech of the first chunks."""
    packed = prompt_text.pack_suffixes(recogniser.tokenizer, [hints], 40)
    ids = np.zeros((1, CONFIG.text_tokens), np.int32)
    ids[0, : len(kept)] = kept
    answer = Labels(ids, np.arange(ids.shape[1])[None] < len(kept))
    first = chunks * CONFIG.chunk
    sequence = lay_prompt(recogniser, lay_out(audio), first, Labels(*packed), answer)
    model = recogniser.programs.model
    made = offline.generate(
        Qwen3(model.config.llm, model.config.policy, packed=model.packed),
        recogniser.programs.params["llm"],
        sequence.frames(),
        offline.Stop(
            CONFIG.text_tokens,
            recogniser.tokenizer.end_id,
            jnp.asarray([max(0, limit - len(kept))], jnp.int32),
        ),
    )
    tokens = np.asarray(made.tokens[0])[np.asarray(made.mask[0])].tolist()
    return [*kept, *tokens]


@settings(max_examples=5)
@given(st.floats(0.3, 6.0), st.integers(0, 99), st.booleans())
def test_the_second_pass_is_the_offline_transcript(whole, length, seed, drafted):
    audio, device = make_audio(length, seed), Device(whole)
    for number in range(count_chunks(audio)):
        limits = np.full(STREAMS, 15 if drafted else 0, np.int32)
        device.tick({0: (audio, number)}, limits)
    limit = whole.budget.count(len(audio) / 16_000)
    written = device.finish([0], [limit])
    (expected,) = whole.transcribe(lay_out(audio), timings=False)
    assert tuple(written.tokens[0][: written.length[0]].tolist()) == expected.tokens
    assert float(written.log_prob[0]) == pytest.approx(expected.log_prob, abs=1e-3)
    assert bool(written.finished[0]) == expected.finished


def test_a_draft_that_is_right_costs_one_pass(whole):
    audio, device = make_audio(4, 3), Device(whole)
    for number in range(4):
        device.tick({0: (audio, number)}, np.full(STREAMS, 20, np.int32))
    first = device.finish([0], [20])
    second = device.finish([0], [20])
    assert second.passes == 1 and second.accepted[0] == first.length[0]
    assert second.tokens[0].tolist() == first.tokens[0].tolist()
    assert float(second.log_prob[0]) == pytest.approx(
        float(first.log_prob[0]), abs=1e-3
    )


@settings(max_examples=5)
@given(st.lists(st.sets(st.integers(0, STREAMS - 1)), max_size=8), st.integers(0, 99))
def test_a_row_for_every_stream_is_a_row_for_those_that_have_audio(whole, taking, seed):
    """In place or copied out and back: the same texts, and the others stay."""
    apart, whole_device = Device(whole), Device(whole)
    audio = [make_audio(7, seed + slot) for slot in range(STREAMS)]
    heard = [0] * STREAMS
    for active in map(sorted, taking):
        chunks = {slot: (audio[slot], heard[slot]) for slot in active}
        _, some = apart.tick(chunks)
        before = jax.device_get(whole_device.state)
        _, every = whole_device.tick(chunks, whole=True)
        after = jax.device_get(whole_device.state)
        for row, slot in enumerate(active):
            assert every.tokens[slot].tolist() == some.tokens[row].tolist()
            assert every.stable[slot] == some.stable[row]
            heard[slot] += 1
        others = [slot for slot in range(STREAMS) if slot not in active]
        for name in ("tokens", "length", "stable", "chunks", "last_id"):
            old, new = getattr(before, name), getattr(after, name)
            np.testing.assert_array_equal(new[others], old[others])
        for old, new in zip(
            jax.tree.leaves(before.encoder.blocks),
            jax.tree.leaves(after.encoder.blocks),
        ):
            np.testing.assert_array_equal(new[:, others], old[:, others])
        for slot in others:
            count = int(before.cache.length[slot])
            assert after.cache.length[slot] == count
            for old, new in zip(
                jax.tree.leaves(before.cache.keys), jax.tree.leaves(after.cache.keys)
            ):
                kept = (..., slot, slice(None), slice(count), slice(None))
                np.testing.assert_array_equal(new[kept], old[kept])


def test_a_row_for_every_stream_needs_no_copy_of_the_state(whole):
    """Temporaries of a tick, against the state."""
    streams, programs, config = 64, whole.programs, CONFIG
    state = jax.eval_shape(lambda: programs.start(config, streams))
    window, suffix = (streams, config.window), (streams, config.suffix_tokens)
    zeros = jnp.zeros(streams, jnp.int32)
    room = {}
    for slots in (None, zeros):
        arrival = Arrival(
            slots,
            Frames(jnp.zeros(window), jnp.zeros(window, bool)),
            jnp.zeros(streams, bool),
            zeros,
            Labels(jnp.zeros(suffix, jnp.int32), jnp.zeros(suffix, bool)),
        )
        lowered = stream.lower_tick(
            programs.model,
            programs.settings(config, config.widths()[-1]),
            programs.params,
            state,
            arrival,
        )
        room[slots is None] = lowered.compile().memory_analysis().temp_size_in_bytes
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert room[True] < room[False] - 0.8 * held


@settings(max_examples=3)
@given(st.integers(1, 5), st.integers(0, 99), st.booleans())
def test_a_second_pass_in_pieces_is_the_whole_one(whole, most, seed, drafted):
    audio, made = make_audio(4, seed), []
    for new_tokens in (CONFIG.text_tokens, most):
        device = Device(whole, new_tokens=new_tokens)
        for number in range(4):
            limits = np.full(STREAMS, 15 if drafted else 0, np.int32)
            _, written = device.tick({0: (audio, number)}, limits)
            assert written.passes <= new_tokens
        kept, total = 0, 0.0
        while True:
            written = device.finish([0], [20], kept=[kept])
            assert written.passes <= new_tokens
            kept, total = int(written.length[0]), total + float(written.log_prob[0])
            if written.finished[0] or kept >= 20:
                break
        made.append((written.tokens[0].tolist(), bool(written.finished[0]), total))
    (text, finished, score), (same, ended, sum_) = made
    assert same == text and ended == finished
    assert sum_ == pytest.approx(score, abs=1e-3)


@settings(max_examples=4)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=3, max_size=6)
)
def test_streams_together_are_each_alone_in_slots_used_again(every, plans):
    """Each plan is an utterance of some chunks that begins at some tick or later."""
    audios = [make_audio(size - 0.3, 50 + i) for i, (size, _) in enumerate(plans)]
    device = Device(every)
    waiting = sorted(range(len(plans)), key=lambda i: plans[i][1])
    sitting, got, clock = {}, {i: [] for i in range(len(plans))}, 0
    while waiting or sitting:
        for slot in range(STREAMS):
            if slot not in sitting and waiting and plans[waiting[0]][1] <= clock:
                sitting[slot] = [waiting.pop(0), 0]
        order = {slot: (audios[i], n) for slot, (i, n) in sitting.items()}
        if order:
            _, written = device.tick(order)
            for row, (slot, (i, n)) in enumerate(list(sitting.items())):
                got[i].append(written.tokens[row][: written.length[row]].tolist())
                sitting[slot][1] += 1
                if n + 1 == count_chunks(audios[i]):
                    del sitting[slot]
        clock += 1
    for i, audio in enumerate(audios):
        alone = Device(every)
        for number, text in enumerate(got[i]):
            _, written = alone.tick({3: (audio, number)})
            assert text == written.tokens[0][: written.length[0]].tolist()


def test_what_a_slot_held_cannot_harm_the_next_utterance(every):
    audio, device = make_audio(3, 8), Device(every)
    expected = [device.tick({0: (audio, number)})[1] for number in range(3)]

    def poison(leaf):
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.full_like(leaf, jnp.nan) if is_float else leaf

    prefix = len(every.programs.prompt.prefix)
    cache = device.state.cache

    def keep_prefix(leaf):
        return jnp.concatenate(
            [leaf[..., :prefix, :], poison(leaf[..., prefix:, :])], axis=-2
        )

    device.state = dataclasses.replace(
        device.state,
        encoder=jax.tree.map(poison, device.state.encoder),
        cache=dataclasses.replace(
            cache,
            keys=jax.tree.map(keep_prefix, cache.keys),
            values=jax.tree.map(keep_prefix, cache.values),
        ),
    )
    for number, before in enumerate(expected):
        _, written = device.tick({0: (audio, number)})
        assert written.tokens[0].tolist() == before.tokens[0].tolist()


def test_nothing_compiles_again(every):
    device = Device(every)
    device.tick({0: (make_audio(2, 0), 0)})
    device.finish([0, 1], [5, 5])
    before = stream._tick._cache_size(), stream._finish._cache_size()
    for number in range(3):
        device.tick({number: (make_audio(3, number), number)}, hints=("perth",))
        device.finish([number, STREAMS], [9, 0], ("anna",))
    assert (stream._tick._cache_size(), stream._finish._cache_size()) == before


def test_no_text_is_written_where_none_is_asked_for(whole):
    device = Device(whole)
    _, written = device.tick({0: (make_audio(1, 1), 0)}, np.zeros(STREAMS, np.int32))
    assert written.length.tolist() == [0] * STREAMS and written.passes == 1


def test_a_state_is_measured_without_making_it(whole):
    device = Device(whole, 1)
    sizes = stream.measure(
        whole.programs.model.config,
        whole.programs.prompt,
        CONFIG,
        packed=whole.programs.model.packed,
    )
    leaves = jax.tree.leaves(device.state)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert sum(sizes.values()) - sizes["audio"] == total


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chunk": 6}, "multiple of 4"),
        ({"left": -1}, "must be ≥ 0"),
        ({"unstable_tokens": 9}, "draft_tokens"),
        ({"suffix_tokens": 0}, "must be ≥ 1"),
        ({"new_tokens": 0}, "must be ≥ 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


WHISPER = Rates(160, 400, 200, 199, 2, 2, 1, speech_stride=8, max_frames=1500)


@pytest.mark.parametrize(
    "chunk_ms, left, rates, message",
    [
        (100, 4, Rates(), "100 ms is no whole number.*multiple of 160 ms, as 640"),
        (-160, 4, WHISPER, "-160 ms is no whole number.*multiple of 160 ms, as 640"),
        (640, -1, WHISPER, "must be ≥ 0"),
    ],
)
def test_chunks_are_whole_speech_tokens(chunk_ms, left, rates, message):
    with pytest.raises(ValueError, match=message):
        StreamConfig.of(chunk_ms, left, rates)


@pytest.mark.parametrize("rates, frames", [(Rates(), 768), (WHISPER, 1472)])
def test_utterances_last_as_long_as_the_encoder_allows(rates, frames):
    """48 chunks of 640 ms, or as many as there are positions for."""
    sizes = StreamConfig.of(640, 4, rates)
    assert sizes.chunk * sizes.chunks == frames
    assert sizes.hop == 10_240 and sizes.speech_tokens == 4
    with pytest.raises(ValueError, match="more than the encoder's 1500 positions"):
        dataclasses.replace(StreamConfig.of(640, 4, WHISPER), chunks=47)


def test_no_stream_at_all_is_refused(whole):
    with pytest.raises(ValueError, match="streams=0"):
        Device(whole, 0)


def test_places_are_counted():
    assert drafts.up_to(jnp.asarray([0, 2]), 3).tolist() == [
        [False, False, False],
        [True, True, False],
    ]
