"""Streams hear what their layers hold, in any pieces, while layers change."""

import dataclasses
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import hypotheses
from nim4_jax.retrieval import database, hypothesis
from nim4_jax.retrieval.gate import LATTICE, NOWHERE, Gate
from nim4_jax.retrieval.hotwords import (
    EXACT,
    MOST_ALIKE,
    NEAR,
    HotwordRetriever,
    StreamState,
    VersionedRetriever,
)
from nim4_jax.retrieval.layer import Layer
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.text.phonemes import INVENTORY

FRAME_SECONDS = 0.04

OPEN = Gate(min_phonemes=1, max_chance=np.inf)
NAMES = ("NIO", "NIO House", "Weilai", "上海", "伤害", "海")


def layer(*texts, gate=OPEN, near=LATTICE):
    made = Layer(gate=gate, near=near)
    made.add(map(Name, texts))
    return made


def say(*texts):
    """Phonemes of words one after the other, and a time for each."""
    spoken = b"".join(pronounce(Name(text))[0] for text in texts)
    return np.frombuffer(spoken, np.uint8), clock(len(spoken))


def clock(count):
    starts = 0.1 * np.arange(count)
    return np.stack([starts, starts + 0.1], axis=1)


def hear(layers, phonemes, times, sizes=()):
    """All hits of a stream that comes in pieces of these sizes."""
    retriever = HotwordRetriever(layers)
    state, cuts = StreamState(), np.cumsum(sizes)
    cuts = [int(c) for c in cuts if c < len(phonemes)]
    for start, end in zip([0, *cuts], [*cuts, len(phonemes)]):
        state, _ = retriever.scan(state, phonemes[start:end], None, times[start:end])
    return state


def texts(state):
    return {hit.text for hit in state.hits}


@given(
    spoken=st.lists(st.sampled_from([*NAMES, "drive", "to", "你好"]), max_size=6),
    sizes=st.lists(st.integers(0, 7), max_size=12),
)
def test_hits_do_not_depend_on_the_pieces(spoken, sizes):
    layers = [layer("NIO", "上海", "海"), layer("NIO House", "Weilai")]
    phonemes, times = say(*spoken)
    whole = hear(layers, phonemes, times)
    cut = hear(layers, phonemes, times, sizes)
    assert cut.found == whole.found
    assert cut.position == whole.position == len(phonemes)


def test_a_longer_name_takes_the_place_of_a_shorter_one_heard_before():
    retriever = HotwordRetriever([layer("NIO", "NIO House")])
    (nio, times), (house, _) = say("NIO"), say("House")
    state, fresh = retriever.scan(StreamState(), nio, None, times)
    assert [hit.text for hit in fresh] == ["NIO"]
    later = clock(len(house)) + times[-1, 1]
    state, fresh = retriever.scan(state, house, None, later)
    assert [hit.text for hit in fresh] == ["NIO House"]
    assert texts(state) == {"NIO House"}
    (hit,) = state.hits
    assert hit.start == 0.0 and hit.end == pytest.approx(later[-1, 1])


def test_homophones_are_all_hits_and_a_repeated_name_is_one_per_place():
    phonemes, times = say("期终", "期终")
    state = hear([layer("期中", "期终")], phonemes, times)
    assert sorted(hit.text for hit in state.hits) == ["期中", "期中", "期终", "期终"]


def test_a_stream_reaches_only_its_own_layers():
    everybody, acme, bmw = layer("NIO"), layer("Weilai"), layer("上海")
    phonemes, times = say("NIO", "Weilai", "上海")
    assert texts(hear([everybody, acme], phonemes, times)) == {"NIO", "Weilai"}
    assert texts(hear([everybody, bmw], phonemes, times)) == {"NIO", "上海"}


def test_what_is_added_is_heard_at_once_even_when_it_was_half_spoken():
    served = layer("NIO")
    retriever = HotwordRetriever([served])
    phonemes, times = say("Weilai")
    state, _ = retriever.scan(StreamState(), phonemes[:3], None, times[:3])
    served.add([Name("Weilai", weight=2.0, tag="brand")])
    state, fresh = retriever.scan(state, phonemes[3:], None, times[3:])
    (hit,) = fresh
    assert (hit.text, hit.source, hit.tag) == ("Weilai", EXACT, "brand")
    assert (hit.start, hit.end) == (0.0, times[-1, 1])
    assert hit.score == 2.0 * len(phonemes) and hit.weight == 2.0


def test_what_is_added_is_found_in_what_was_said_a_moment_ago(near):
    """By a layer that grows and by one that comes late, exactly and with acoustics."""
    heard = mishear("Weilai", [])
    for posteriors in (None, heard.log_probs):
        served = layer("NIO", near=near)
        first = HotwordRetriever([served])
        late = HotwordRetriever([layer("Weilai", near=near)])
        state, _ = first.scan(StreamState(), heard.phonemes, posteriors, heard.times)
        assert not state.hits
        for retriever in (first, late):
            served.add([Name("Weilai")])
            (hit,) = retriever.refresh(state).hits
            assert (hit.text, hit.source, hit.start) == ("Weilai", EXACT, 0.0)
            assert retriever.refresh(retriever.refresh(state)).hits == (hit,)


def test_what_was_found_and_is_held_no_more_is_no_hit(near):
    """Taken out of additions, of the base, merged away, or seen through others."""
    names = [Name("NIO House"), Name("Weilai")]
    base = database.build(names, {name.text: pronounce(name) for name in names})
    rest = database.build(names[1:], {name.text: pronounce(name) for name in names})
    for heard in (mishear("NIO House", []), mishear("NIO House", [3])):
        for posteriors in (heard.log_probs, None):
            added = layer("NIO House", "Weilai", near=near)
            for served in (Layer(base, OPEN, near), added):
                retriever = HotwordRetriever([served])
                state, _ = retriever.scan(
                    StreamState(), heard.phonemes, posteriors, heard.times
                )
                found = texts(state)
                assert found <= {"NIO House"}
                served.add([Name("Tesla")])  # others come and go, it stays
                assert texts(retriever.refresh(state)) == found
                served.swap(base)
                assert texts(retriever.refresh(state)) == found
                assert not HotwordRetriever([]).refresh(state).hits
                served.swap(rest)
                served.remove(["NIO House"])
                assert not retriever.refresh(state).hits
                nothing, _ = say()
                silence = None if posteriors is None else posteriors[:0]
                state, fresh = retriever.scan(state, nothing, silence, clock(0))
                assert not state.hits and not fresh


def test_phonemes_outside_their_posteriors_are_refused():
    """Native code reads no array at a place that a caller made up."""
    heard = mishear("NIO House", [3])
    retriever, length = HotwordRetriever([layer("NIO House")]), len(heard.log_probs)
    state, _ = retriever.scan(
        StreamState(), heard.phonemes, heard.log_probs, heard.times
    )
    assert state.frames == length
    later = heard.times + length * FRAME_SECONDS
    for times in (heard.times, later + 40.0, later - 0.5, later[::-1]):
        with pytest.raises(ValueError, match=r"phonemes begin in frames .* posteriors"):
            retriever.scan(state, heard.phonemes, heard.log_probs, times)
    retriever.scan(state, heard.phonemes, heard.log_probs, later)


@pytest.mark.long
def test_native_code_reads_inside_its_arrays():
    """This file and its neighbours once more, with bounds checked."""
    folder = Path(__file__).parent
    files = ("hotwords", "lattice", "verification", "automaton", "windows")
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-m", "not long"),
                *(str(folder / f"test_{name}.py") for name in files),
            ],
            env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:]


def test_thousands_of_names_of_one_sound_are_few_hits():
    phonemes, times = say("期终")
    served = Layer(gate=OPEN)
    sound = " ".join(INVENTORY[i] for i in phonemes)
    listed = [Name(f"name {n}", pronunciation=sound) for n in range(2_000)]
    served.add([*listed, Name("heavy", pronunciation=sound, weight=2.0)])
    hits = hear([served], phonemes, times).hits
    assert len(hits) == MOST_ALIKE and "heavy" in {hit.text for hit in hits}


def test_what_is_removed_is_heard_no_more_and_can_come_back():
    readings = {text: pronounce(Name(text)) for text in NAMES}
    served = Layer(database.build(map(Name, NAMES), readings), OPEN)
    phonemes, times = say("Weilai")
    assert texts(hear([served], phonemes, times)) == {"Weilai"}
    served.remove(["Weilai", "never there"])
    assert texts(hear([served], phonemes, times)) == set()
    served.add([Name("Weilai", weight=3.0)])
    (hit,) = hear([served], phonemes, times).hits
    assert hit.score == 3.0 * len(phonemes)


def test_a_merged_base_serves_what_was_added_and_not_what_was_removed_since():
    served = layer("NIO", "Weilai", "伤害")
    names = [Name("NIO"), Name("Weilai"), Name("伤害")]
    base = database.build(names, {name.text: pronounce(name) for name in names})
    served.add([Name("Tesla"), Name("伤害", weight=5.0)])
    served.remove(["NIO"])
    served.swap(base, names)
    assert served.size == 2
    phonemes, times = say("NIO", "Weilai", "Tesla", "伤害")
    hits = hear([served], phonemes, times).hits
    assert [hit.text for hit in hits] == ["Weilai", "Tesla", "伤害"]
    assert hits[-1].score == 5.0 * len(pronounce(Name("伤害"))[0])


def test_names_without_sound_are_returned_and_the_gate_holds():
    served = Layer(gate=Gate(min_phonemes=4))
    silent = served.add([Name("😀"), Name("NIO"), Name("Weilai")])
    assert [name.text for name in silent] == ["😀"]
    phonemes, times = say("NIO", "Weilai")
    assert texts(hear([served], phonemes, times)) == {"Weilai"}


def test_a_reader_sees_the_whole_of_one_moment():
    """Two names of one sound come and go together, never one alone."""
    served, seen = layer("上海"), set()
    phonemes, times = say("期终")
    pair, done = [Name("期中"), Name("期终")], threading.Event()

    def change():
        for _ in range(150):
            served.add(pair)
            served.remove([name.text for name in pair])
        done.set()

    writer = threading.Thread(target=change)
    writer.start()
    while not done.is_set():
        seen.add(frozenset(texts(hear([served], phonemes, times, [2]))))
    writer.join()
    assert seen <= {frozenset(), frozenset({"期中", "期终"})}


def test_times_must_fit_the_phonemes():
    phonemes, times = say("NIO")
    with pytest.raises(ValueError, match="times have shape"):
        HotwordRetriever([layer("NIO")]).scan(StreamState(), phonemes, None, times[1:])


def mishear(text, wrong, ratio=0.1):
    """A name with some phonemes taken for others, a blank frame behind each."""
    spoken, _ = say(text)
    heard, frames = spoken.copy(), 2 * np.arange(len(spoken))
    heard[wrong] = [label for label in range(1, 99) if label not in spoken][
        : len(wrong)
    ]
    ratios = np.full((2 * len(spoken), len(INVENTORY)), 1e-5)
    ratios[1::2, 0] = 1.0
    ratios[frames, spoken] = ratio
    ratios[frames, heard] = 1.0
    log_probs = np.log(ratios / ratios.sum(axis=1, keepdims=True))
    return hypothesis.Hypothesis(heard, frames, log_probs)


def listen(layers, heard, ends=(), posteriors=True):
    """All hits of a stream whose posteriors come in pieces up to these frames."""
    retriever, state = HotwordRetriever(layers), StreamState()
    cuts = sorted({end for end in ends if end < len(heard.log_probs)})
    for begin, end in zip([0, *cuts], [*cuts, len(heard.log_probs)]):
        new = (heard.frames >= begin) & (heard.frames < end)
        state, _ = retriever.scan(
            state,
            heard.phonemes[new],
            heard.log_probs[begin:end] if posteriors else None,
            heard.times[new],
        )
    return state


@given(place=st.integers(0, 5), ends=st.sets(st.integers(0, 12)))
def test_a_name_with_a_phoneme_taken_for_another_is_found_nearly(near, place, ends):
    served = layer("NIO House", "Weilai", near=near)
    heard = mishear("NIO House", [place], ratio=0.1)
    length = len(heard.phonemes)
    for pieces in ((), ends):
        (hit,) = listen([served], heard, pieces).hits
        assert (hit.text, hit.source) == ("NIO House", NEAR)
        assert hit.score == pytest.approx(length * 0.1 ** (1 / length), rel=1e-2)
        assert hit.start == 0.0
        assert hit.end == pytest.approx((2 * length - 1) * FRAME_SECONDS)
    assert not listen([served], heard, ends, posteriors=False).hits


def test_the_weight_and_the_tag_of_a_near_hit_are_the_names(near):
    plain, heavy = layer(near=near), layer(near=near)
    plain.add([Name("NIO House")])
    heavy.add([Name("NIO House", weight=2.0, tag="place")])
    heard = mishear("NIO House", [3])
    (one,), (other,) = (listen([served], heard).hits for served in (plain, heavy))
    assert other.score == pytest.approx(2.0 * one.score)
    assert other.evidence == one.evidence
    assert other.strength == pytest.approx(one.strength + np.log(2.0))
    assert (one.tag, other.tag) == ("", "place")


def test_what_was_not_thought_possible_is_not_found_nearly(near):
    gate = dataclasses.replace(OPEN, near_nats=1.5)
    served = layer("NIO House", gate=gate, near=near)
    for wrong, ratio in (([3], 1e-5), ([1, 3, 5], 0.02), ([0, 1, 2, 3, 4, 5], 0.1)):
        assert not listen([served], mishear("NIO House", wrong, ratio)).hits


@given(
    spoken=st.lists(st.sampled_from([*NAMES, "drive", "你好"]), max_size=8),
    rate=st.sampled_from([0.0, 0.1, 0.3]),
    seed=st.integers(0, 2**32 - 1),
    ends=st.sets(st.integers(0, 200)),
)
def test_near_hits_never_take_the_place_of_exact_ones(near, spoken, rate, seed, ends):
    layers = [
        layer("NIO", "上海", "海", near=near),
        layer("NIO House", "Weilai", "伤害", near=near),
    ]
    said = [int(label) for text in spoken for label in say(text)[0]]
    heard = hypotheses.simulate(said, rate, np.random.default_rng(seed))
    both = listen(layers, heard, ends)
    alone = listen(layers, heard, ends, posteriors=False)
    assert tuple(hit for hit in both.hits if hit.source == EXACT) == alone.hits
    for found in both.found:
        exact = [f for f in alone.found if f.start < found.end and found.start < f.end]
        longest = max((f.end - f.start for f in exact), default=0)
        assert found.hit.source == EXACT or found.end - found.start > longest


def test_a_removed_name_is_not_found_nearly(near):
    names = [Name("NIO House"), Name("Weilai")]
    base = database.build(names, {name.text: pronounce(name) for name in names})
    heard = mishear("NIO House", [3])
    for served in (Layer(base, OPEN, near), layer("NIO House", "Weilai", near=near)):
        assert texts(listen([served], heard)) == {"NIO House"}
        served.remove(["NIO House"])
        assert not listen([served], heard).hits
        served.add([Name("NIO House")])
        assert texts(listen([served], heard)) == {"NIO House"}


def test_a_tenants_names_are_found_nearly_for_the_tenant_only(near):
    everybody, acme, bmw = (
        layer(text, near=near) for text in ("上海", "NIO House", "Weilai")
    )
    heard = mishear("NIO House", [3])
    assert texts(listen([everybody, acme], heard)) == {"NIO House"}
    assert not listen([everybody, bmw], heard).hits


@pytest.mark.parametrize(("gate", "way"), [(OPEN, NOWHERE), (Gate(near_nats=0.1), "")])
def test_a_gate_may_let_exact_hits_through_only(near, gate, way):
    served = layer("NIO House", gate=gate, near=way or near)
    assert not listen([served], mishear("NIO House", [3])).hits
    (hit,) = listen([served], mishear("NIO House", [])).hits
    assert (hit.source, hit.score) == (EXACT, len(say("NIO House")[0]))


def test_silence_is_heard_in_any_pieces(near):
    silence = hypotheses.simulate([], 0.0, np.random.default_rng(0))
    many = np.repeat(silence.log_probs, 500, axis=0)
    heard = hypothesis.Hypothesis.read(many)
    state = listen([layer("NIO House", near=near)], heard, [0, 1, 100, 400])
    assert not state.hits and state.position == 0


@pytest.mark.parametrize("width", [1, len(INVENTORY) - 1, len(INVENTORY) + 1])
def test_posteriors_must_fit_the_inventory(width):
    phonemes, times = say("NIO")
    posteriors = np.zeros((9, width), np.float32)
    with pytest.raises(ValueError, match=rf"\(9, {width}\).*{len(INVENTORY)}"):
        HotwordRetriever([layer("NIO")]).scan(
            StreamState(), phonemes, posteriors, times
        )


def test_an_exact_hit_beats_a_near_one_of_the_same_text_in_another_layer():
    def read(ids):
        return Name("tomato", pronunciation=" ".join(INVENTORY[i] for i in ids))

    one, other = Layer(gate=OPEN), Layer(gate=OPEN)
    one.add([read([1, 2, 3, 4, 5, 6, 7])])
    other.add([read([1, 2, 3, 9, 5, 6, 7])])
    ratios = np.full((7, len(INVENTORY)), 1e-6)
    ratios[range(7), [1, 2, 3, 9, 5, 6, 7]] = 1.0
    ratios[3, 4] = 0.3
    heard = hypothesis.Hypothesis.read(
        np.log(ratios / ratios.sum(axis=1, keepdims=True))
    )
    for layers in ([one, other], [other, one]):
        assert [hit.source for hit in listen(layers, heard).hits] == [EXACT]


def test_a_whole_file_in_one_piece_is_heard_as_in_chunks():
    rng = np.random.default_rng(3)
    spoken = bytes(pronounce(Name("Nakagawa"))[0])
    filler = pronounce(Name("please call me when you are at home again"))[0]
    said = [*spoken, *filler * 6, *pronounce(Name("Weilai"))[0], *filler * 6]
    heard = hypotheses.simulate(said, 0.08, rng)
    assert len(heard.log_probs) > 600
    layers = [layer("Nakagawa", "Weilai", "Okonkwo")]
    state = StreamState()
    for begin in range(0, len(heard.log_probs), 64):
        now = (heard.frames >= begin) & (heard.frames < begin + 64)
        state, _ = HotwordRetriever(layers).scan(
            state,
            heard.phonemes[now],
            heard.log_probs[begin : begin + 64],
            heard.times[now],
        )
    whole, fresh = HotwordRetriever(layers).scan(
        StreamState(), heard.phonemes, heard.log_probs, heard.times
    )
    assert whole.hits == state.hits and set(fresh) == set(whole.hits)
    assert "Nakagawa" in {hit.text for hit in whole.hits}


def test_an_utterance_finds_the_names_that_there_were_when_it_began():
    """The next one finds others; what was found before stays found."""
    now = [layer("NIO House").served]
    retriever = VersionedRetriever(lambda: tuple(now))
    phonemes, times = say("NIO", "House")
    half = len(phonemes) // 2
    state, _ = retriever.scan(StreamState(), phonemes[:half], None, times[:half])
    now[:] = [layer("Weilai").served]
    state, _ = retriever.scan(state, phonemes[half:], None, times[half:])
    assert [hit.text for hit in state.hits] == ["NIO House"]
    assert retriever.refresh(state) is state
    for word, found in (("NIO House", []), ("Weilai", ["Weilai"])):
        after, _ = retriever.scan(StreamState(), say(word)[0], None, say(word)[1])
        assert [hit.text for hit in after.hits] == found
    now.clear()  # the list was removed
    after, _ = retriever.scan(StreamState(), say("Weilai")[0], None, say("Weilai")[1])
    assert after.hits == ()
