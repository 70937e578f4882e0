"""The engine: streams and files by turns; what fails alone, and what ends it."""

import asyncio
import itertools
import threading

import numpy as np
import pytest

from nim4_jax.data.audio import reading
from nim4_jax.decode import longform, model_programs, stream
from nim4_jax.decode.endpoint import EndpointConfig
from nim4_jax.decode.live.events import Final
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.transcripts import Recording
from nim4_jax.serving import recognisers
from nim4_jax.serving.server.engine import (
    Engine,
    EngineConfig,
    EngineStopped,
    Options,
)
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.fair_share import FairShare
from nim4_jax.serving.server.streams import BrokenOff, Outbox

PACKET = 1_600


@pytest.fixture(scope="module")
def alone(model_files, sizes):
    """The texts that a listener alone gives."""
    recogniser = recognisers.load(model_files[0]).recogniser

    def hear(samples, size=sizes[0], **options):
        listener = Listener(recogniser, config=size)
        session = listener.open(**options)
        session.feed(reading.to_float32(samples))
        session.close()
        return [event for _, event in listener.drain() if isinstance(event, Final)]

    return hear


async def collect(opened) -> list:
    """Events of a stream until its end."""
    events = []
    while (event := await opened.outbox.get()) is not None:
        events.append(event)
    return events


async def run(engine, samples, options, packet=PACKET):
    """Finals of a stream."""
    opened = engine.open(options)
    told = asyncio.create_task(collect(opened))
    floats = reading.to_float32(samples)
    for begin in range(0, len(floats), packet):
        opened.feed(floats[begin : begin + packet])
        await asyncio.sleep(0)
    opened.end()
    try:
        return [event for event in await told if isinstance(event, Final)]
    finally:
        engine.drop(opened)


def texts(finals):
    return [(final.text, final.start, final.end) for final in finals]


def test_streams_of_two_sizes_together_are_each_alone(engine, alone, sizes, talk):
    recordings = [talk(0), talk(1, 2), talk(3), talk(2, 0)]
    asked = [sizes[number % 2] for number in range(4)]

    async def together():
        return await asyncio.gather(
            *(
                run(engine, samples, Options(size.chunk_ms), packet)
                for samples, size, packet in zip(
                    recordings, asked, (160, 1_600, 7_001, 200_000)
                )
            )
        )

    for found, samples, size in zip(asyncio.run(together()), recordings, asked):
        assert texts(found) == texts(alone(samples, size))


def test_without_endpointing_an_utterance_lasts_to_the_end(engine, alone, sizes, talk):
    endless = EndpointConfig(end_silence=1e6)
    samples, chunk_ms = talk(0, 1), sizes[0].chunk_ms
    found = asyncio.run(run(engine, samples, Options(chunk_ms, boundaries=endless)))
    assert found
    assert "speech ended" not in {final.reason for final in found}
    assert len(alone(samples)) == 2


def test_one_stream_too_many_is_refused_and_a_place_comes_back(engine, sizes):
    options = Options(sizes[0].chunk_ms)
    opened = [engine.open(options) for _ in range(2)]
    with pytest.raises(ServeError) as refusal:
        engine.open(options)
    assert refusal.value.status == 503 and refusal.value.retry_after
    engine.drop(opened.pop())
    opened.append(engine.open(options))
    for one in opened:
        engine.drop(one)
    assert not engine.streams


def test_a_file_gives_what_it_gives_without_streams(engine, model_files, talk):
    recording = Recording("file", audio=reading.to_float32(talk(0, 1)))
    (found,) = longform.transcribe_recordings(
        engine.loaded, [recording], longform.Options(batch=1)
    )
    recording = Recording("file", audio=reading.to_float32(talk(0, 1)))
    plain = recognisers.load(model_files[0])
    (expected,) = longform.transcribe_recordings(
        plain, [recording], longform.Options(batch=1)
    )
    assert found.text == expected.text
    assert [p.start for p in found.passages] == [p.start for p in expected.passages]


def test_nothing_compiles_once_it_is_ready(engine, sizes, talk):
    programs = (
        stream._tick,
        stream._finish,
        model_programs.transcribe,
        model_programs.hear,
    )
    before = [program._cache_size() for program in programs]
    hints = ("perth", "anna")

    async def load():
        await asyncio.gather(
            *(
                run(engine, talk(n), Options(sizes[n % 2].chunk_ms, hints[: n % 3]))
                for n in range(4)
            )
        )

    asyncio.run(load())
    recording = Recording("file", audio=reading.to_float32(talk(0, 3)))
    longform.transcribe_recordings(
        engine.loaded, [recording], longform.Options(batch=1, hints=hints)
    )
    assert [program._cache_size() for program in programs] == before


def test_files_get_their_share_and_no_more():
    """Ticks of 10 ms, calls of 50 ms, both always waiting: a quarter for files."""
    share, ticks, calls, between = FairShare(0.25), 0.0, 0.0, []
    for _ in range(2_000):
        share.add_tick(0.01)
        ticks += 0.01
        between.append(0)
        if share.allows_file(live=True):
            share.add_file(0.05, live=True)
            calls += 0.05
            between[-1] += 1
    assert calls / (ticks + calls) == pytest.approx(0.25, abs=0.01)
    assert max(between) == 1
    idle = FairShare(0.25)
    idle.add_file(60.0, live=False)
    assert idle.allows_file(live=True)  # nobody waited: nothing is owed


def test_slow_files_leave_the_device_to_streams_between_two_calls(engine, sizes, talk):
    """Whatever files take, no two calls of them are between a stream's two ticks."""
    order, stop = [], threading.Event()
    listener = engine._listeners[sizes[0].chunk_ms]
    advance = listener.advance

    def tick():
        order.append("tick")
        return advance()

    def flood():
        while not stop.is_set():
            engine.call(lambda: (order.append("file"), stop.wait(0.02)))

    workers = [threading.Thread(target=flood) for _ in range(3)]
    listener.advance = tick
    try:
        for worker in workers:
            worker.start()
        found = asyncio.run(
            run(engine, talk(0, 1, 2), Options(sizes[0].chunk_ms), 10**9)
        )
    finally:
        stop.set()
        listener.advance = advance
        for worker in workers:
            worker.join()
    assert len(found) == 3
    own = order[order.index("tick") : len(order) - order[::-1].index("tick")]
    runs = "".join("F" if what == "file" else "t" for what in own).split("t")
    assert own.count("tick") > 10
    # The engine may find nothing to do for the stream at the very end.
    assert sorted(map(len, runs))[-2] <= 1


def test_a_call_that_fails_fails_alone(engine):
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0)
    assert engine.call(lambda: 2) == 2 and engine.ready


def test_a_failure_of_the_device_ends_utterances_not_the_engine(
    engine, sizes, talk, monkeypatch
):
    """One bad batch: the streams in it are told, the next ones are served."""
    listener = engine._listeners[sizes[0].chunk_ms]
    ticks = itertools.count(1)
    start = listener._start_tick

    def fail(*given):
        if next(ticks) == 2:  # of the utterance that the device holds by then
            return listener._run(lambda: 1 / 0)
        return start(*given)

    monkeypatch.setattr(listener, "_start_tick", fail)
    options = Options(sizes[0].chunk_ms)
    with pytest.raises(BrokenOff) as told:
        asyncio.run(run(engine, talk(0), options))
    assert told.value.code == "stream_failed"
    assert engine.ready
    assert engine.metrics.registry.get_sample_value("nim4_device_resets_total") >= 1
    assert len(asyncio.run(run(engine, talk(1), options))) == 1


def test_a_dead_thread_tells_everyone_and_takes_nothing_more(model_files, sizes):
    ended = threading.Event()
    made = Engine(
        lambda: recognisers.load(model_files[0]),
        EngineConfig(streams=2, sizes=sizes[:1]),
        on_end=ended.set,
    )
    made.start()
    made.wait_ready(300)
    opened = made.open(Options(sizes[0].chunk_ms))

    def die():
        raise SystemExit("killed")

    with pytest.raises(EngineStopped):
        made.call(die)
    assert ended.wait(30) and not made.ready
    with pytest.raises(BrokenOff) as told:
        asyncio.run(collect(opened))
    assert told.value.code == "engine_stopped"
    with pytest.raises(ServeError):
        made.open(Options(sizes[0].chunk_ms))
    with pytest.raises(EngineStopped):
        made.call(lambda: None)


def test_a_model_that_cannot_be_loaded_ends_the_engine():
    made = Engine(lambda: recognisers.load("/nowhere"), EngineConfig())
    made.start()
    with pytest.raises(EngineStopped):
        made.wait_ready(60)
    assert isinstance(made.failure, ValueError)


def test_an_outbox_holds_so_many_events_and_no_more():
    """Partials replace each other; a reader who stays away is told so, once."""
    final = Final(0, "a", (), 0.0, 1.0, "full", (), 0.0, True, 1.0)
    box = Outbox(2)
    box.put(final)
    box.put(final)

    async def read():
        return await box.get()

    assert asyncio.run(read()) is final
    box.put(final)
    box.put(final)
    box.put(final)
    with pytest.raises(BrokenOff, match="wait to be read") as told:
        asyncio.run(read())
    assert told.value.code == "slow_reader"


def test_audio_that_is_no_number_is_refused_whole(engine, sizes):
    opened = engine.open(Options(sizes[0].chunk_ms))
    with pytest.raises(ValueError, match="finite"):
        opened.feed(np.array([0.0, np.nan], np.float32))
    assert opened.seconds == 0.0
    engine.drop(opened)
