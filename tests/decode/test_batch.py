"""Numbers of rows: few programs, little padding; and who has which row."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.decode.live.batch import Batch, list_sizes
from nim4_jax.decode.live.slots import Row, Slot


@given(st.integers(1, 3000))
def test_a_batch_is_filled_up_by_less_than_half(most):
    sizes = list_sizes(most)
    assert sizes[0] == 1 and sizes[-1] == most and list(sizes) == sorted(set(sizes))
    assert len(sizes) <= 2 * most.bit_length()
    for smaller, larger in itertools.pairwise(sizes):
        assert larger <= (1.5 if smaller >= 8 else 2) * smaller


def test_sizes_of_64_streams():
    assert list_sizes(64) == (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


def make_rows(slots) -> tuple[list[tuple[int, Slot]], list[Row]]:
    """Streams in these slots, each of which may write as many tokens as it says."""
    nothing = None
    occupied = [(slot, Slot(nothing)) for slot in slots]  # pyright: ignore[reportArgumentType]
    rows = [Row(nothing, (), slot) for slot in slots]  # pyright: ignore[reportArgumentType]
    return occupied, rows


@given(st.sets(st.integers(0, 19), min_size=1), st.sampled_from((20, 12)))
def test_every_stream_has_a_row(slots, most):
    """Its own where all have one."""
    slots = sorted(slots)[:most]
    batch = Batch.form(*make_rows(slots), list_sizes(most), 20)
    numbers = batch.list_slots(20)
    assert numbers[batch.places].tolist() == slots
    assert batch.list_limits()[batch.places].tolist() == slots
    assert (numbers == 20).sum() == batch.size - len(slots)
    assert batch.whole == (most == 20 and len(slots) > 16)
    if batch.whole:
        assert batch.places == slots
