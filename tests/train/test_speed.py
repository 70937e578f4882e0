"""Where the time of a run goes, by a clock that stands still between events."""

import dataclasses

import numpy as np
import pytest

from nim4_jax.rates import Rates
from nim4_jax.train.flops import FlopCounter, Lengths
from nim4_jax.train.profiler import ProfileWindow
from nim4_jax.train.speed import Capacity, Speedometer


class Clock:
    """Goes on when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def run_steps(speed, clock, arrays, steps: int, programs=lambda: 1):
    """Steps of 1 s each, after 0.25 s of waiting for data."""
    for _ in range(steps):
        with speed.waiting():
            clock.now += 0.25
        with speed.stepping(programs):
            pass
        clock.now += 1.0
        speed.count(arrays)


def test_shares_and_rates(tiny, clock):
    """Four steps in 8 s, of which 1 s was waiting and 3 s a save."""
    arrays = tiny.make_arrays(0)
    capacity = Capacity(hosts=2)
    speed = Speedometer(capacity, launched=98.0, clock=clock)
    run_steps(speed, clock, arrays, 4)
    with speed.saving():
        clock.now += 3.0
    figures = speed.measure()
    audio = 4 * 2 * arrays["audio_mask"].sum() / 16_000
    tokens = 4 * 2 * arrays["tokens_mask"].sum()
    expected = {
        "steps_per_second": 4 / 8,
        "audio_hours_per_hour": audio / 8,
        "tokens_per_second": tokens / 8,
        "data_wait_share": 1 / 8,
        "checkpoint_stall_share": 3 / 8,
        "compile_seconds": 0.0,
        "goodput": 4 / 10,  # launched 2 s before
    }
    assert figures == pytest.approx({f"perf/{k}": v for k, v in expected.items()})


def test_each_record_begins_anew_but_goodput_does_not(tiny, clock):
    """A second record knows nothing of the first one's waiting."""
    arrays = tiny.make_arrays(0)
    speed = Speedometer(clock=clock)
    run_steps(speed, clock, arrays, 2)
    speed.measure()
    with speed.aside():
        clock.now += 2.5
    run_steps(speed, clock, arrays, 2)
    figures = speed.measure()
    assert figures["perf/data_wait_share"] == pytest.approx(0.5 / 5)
    assert figures["perf/goodput"] == pytest.approx(4 / 7.5)


def test_a_compilation_is_seen_where_programs_grow(tiny, clock):
    """A dispatch that adds a program took its time for that."""
    speed, made = Speedometer(clock=clock), []
    with speed.stepping(lambda: len(made)):
        clock.now += 6.0
        made.append("program")
    with speed.stepping(lambda: len(made)):
        clock.now += 2.0
    figures = speed.measure()
    assert figures["perf/compile_seconds"] == 6.0
    assert figures["perf/goodput"] == pytest.approx(2 / 8)


def test_mfu_is_operations_over_time_and_peak(tiny, clock):
    """Real lengths count, not padding; each host counts for all."""
    arrays = tiny.make_arrays(0)
    loss, rules = tiny.PLAIN_TRANSCRIBE, ((".*", 1.0),)
    counter = FlopCounter(tiny.CONFIG, loss, rules)
    capacity = Capacity(counter, hosts=2, peak=1e9)
    speed = Speedometer(capacity, clock=clock)
    run_steps(speed, clock, arrays, 3)
    lengths = Lengths.of(
        arrays["audio_mask"].sum(1), arrays["tokens_mask"].sum(1), None, Rates()
    )
    operations = 3 * 2 * sum(counter.count(lengths).values())
    expected = operations / 3.75 / 1e9
    assert speed.measure()["perf/mfu"] == pytest.approx(expected)
    unknown = dataclasses.replace(capacity, peak=0.0)
    assert "perf/mfu" not in Speedometer(unknown, clock=clock).measure()


def test_text_has_no_audio(clock):
    """The warm-up of an LLM reads phonemes alone."""
    arrays = {"tokens_mask": np.ones((2, 3), bool)}
    speed = Speedometer(clock=clock)
    run_steps(speed, clock, arrays, 1)
    assert speed.measure()["perf/tokens_per_second"] == pytest.approx(6 / 1.25)


@pytest.mark.parametrize("window", ["5", "0:3", "7:5", "a:b", "1:2:3"])
def test_windows_that_are_none(window, tmp_path):
    """The error shows one."""
    with pytest.raises(ValueError, match=r"write FIRST:LAST, as in 100:105"):
        ProfileWindow(window, str(tmp_path))


def test_a_window_of_steps_is_traced(tmp_path):
    """Only within it, also where a run is resumed in its middle or ends early."""
    folder = tmp_path / "profile"
    window = ProfileWindow("3:4", str(folder))
    for step in (1, 2):
        window.before(step)
        window.after(step, np.zeros(1))
    assert not folder.exists()
    window.before(4)
    window.after(4, np.zeros(1))
    assert list(folder.rglob("*.xplane.pb"))
    window.close()
    assert ProfileWindow("", str(folder)).first == 0
