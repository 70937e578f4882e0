"""Sets of audio without speech: always the same, in range, refused when misspelt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.sources import nonspeech, opening


@given(seed=st.integers(0, 99), count=st.integers(1, 5), more=st.integers(0, 5))
def test_a_record_depends_on_seed_and_index_alone(seed, count, more):
    one = opening.open_source(f"nonspeech:{count}?seed={seed}")
    other = opening.open_source(f"nonspeech:{count + more}?seed={seed}")
    assert len(one) == count
    for index in range(count):
        left, right = one[index], other[index]
        np.testing.assert_array_equal(left.pop("audio"), right.pop("audio"))
        assert left == right


def test_records_are_of_one_to_six_seconds_and_decode_to_their_length():
    source = opening.open_source("nonspeech:60")
    seconds = [source[index]["duration"] for index in range(60)]
    assert 1.0 <= min(seconds) < 1.5 and 5.5 < max(seconds) <= 6.0
    for index in range(0, 60, 9):
        record = source[index]
        samples = reading.decode(
            record["audio"],
            sample_rate=record["sample_rate"],
            name=record["id"],
            duration=record["duration"],
            max_seconds=6.0,
        )
        assert len(samples) == round(record["duration"] * reading.SAMPLE_RATE)
        assert np.abs(samples).max() < 1.0
        assert record["text"] == "" and record["keywords"] == ()
    assert len({source[index]["origin"] for index in range(60)}) == 60


def test_kinds_and_seeds_differ():
    specs = ("nonspeech:8", "nonspeech:8?seed=1", "nonspeech:8?kinds=music")
    first, seeded, music = (opening.open_source(spec) for spec in specs)
    assert first[0]["duration"] != seeded[0]["duration"]
    assert first[0]["duration"] == music[0]["duration"]
    assert all(np.any(music[index]["audio"]) for index in range(8))
    same = opening.open_source("nonspeech:8?kinds=music|silence")
    swapped = opening.open_source("nonspeech:8?kinds=silence|music")
    np.testing.assert_array_equal(same[3]["audio"], swapped[3]["audio"])


def test_loudness_is_that_of_training():
    source = opening.open_source("nonspeech:200?kinds=silence")
    peaks = [float(np.abs(source[index]["audio"]).max()) for index in range(200)]
    mute = sum(peak == 0.0 for peak in peaks)
    assert 30 <= mute <= 70  # a quarter of silence is digital
    assert max(peaks) < 0.05


@pytest.mark.parametrize(
    "spec",
    ["nonspeech:", "nonspeech:x", "nonspeech:3?kind=music", "nonspeech:3?seed=1|2"],
)
def test_a_misspelt_specification_shows_the_form(spec):
    with pytest.raises(ValueError, match="'nonspeech:COUNT"):
        opening.open_source(spec)


@pytest.mark.parametrize("spec", ["nonspeech:0", "nonspeech:3?kinds=rain"])
def test_impossible_sets_list_the_choices(spec):
    with pytest.raises(ValueError, match="silence, vehicle, music"):
        opening.open_source(spec)
    with pytest.raises(IndexError, match="record 2 of 2"):
        nonspeech.Fixed(2)[2]
