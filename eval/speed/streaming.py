"""Streams on one machine: how many are held, how late they are, what they cost.

Accuracy is none of this module's business: the text matters only as work.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from nim4_jax.configs import base, stage4
from nim4_jax.data.audio import reading
from nim4_jax.data.sources import opening
from nim4_jax.decode import offline, stream
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.session import Session
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.programs import Arrival
from nim4_jax.decode.recogniser import BatchRecogniser
from nim4_jax.eval import stream_runs, streaming
from nim4_jax.eval.measures import latency
from nim4_jax.eval.speed import measure, ticks
from nim4_jax.eval.stream_runs import Run
from nim4_jax.features import SAMPLE_RATE
from nim4_jax.model_files import loading
from nim4_jax.models import conformer
from nim4_jax.models.asr import AsrConfig, Prompt
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.serving import recognisers
from nim4_jax.text import prompt as prompt_text
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.train import parameter_count
from nim4_jax.types import Frames, Labels

SPEECH = "bundled:commands:test"
LATE = 1e-3
"""Share of chunks that may be late."""

MEMORY = 80e9
"""Bytes of the device that `count_streams` is about."""

_FIRST = 8  # streams tried first
_SECONDS = (6.0, 60.0)  # of audio for each number of streams, quick and full
_GRAIN = (3, 16)  # see `stream_runs.find_most`
_MINUTES = (2, 10)
_RUNS = (5, 15)
_BFLOAT16 = 2  # bytes


@dataclasses.dataclass(frozen=True)
class Settings:
    """What may be chosen.

    Attributes:
        model: workdir or .safetensors of a model that writes.
        streams: most that are tried, and the places of the listener.
        seconds: of audio for each number of streams; 0 for the default.
    """

    model: str
    streams: int = 32
    seconds: float = 0.0

    def __post_init__(self):
        if not self.model:
            raise ValueError(
                "streams need a model that writes: --model=WORKDIR of stage 4, or a "
                ".safetensors file."
            )


def load_speech() -> list[np.ndarray]:
    """The bundled test recordings."""
    records = opening.open_source(SPEECH)
    return [reading.decode(records[number]["audio"]) for number in range(len(records))]


def run(full: bool, threads: int, settings: Settings) -> list[measure.Row]:
    """All figures of streaming.

    The first run of a model compiles its programs, which are kept on disk and are no
    part of any figure.

    Args:
        full: longer runs.
        threads: unused; the launcher limits the cores.
        settings: see there.

    Raises:
        ValueError: no model, or one that does not write.
    """
    config = StreamConfig()
    loaded = recognisers.load(
        settings.model, chunk_ms=config.chunk_ms, left=config.left
    )
    recogniser, speech = loaded.recogniser, load_speech()
    listener = Listener(recogniser, streams=settings.streams, config=config)
    listener.warm_up()
    sample = stream_runs.join_speech(speech, 10.0)
    streaming.transcribe(listener, [sample])  # what the host does is warm too
    seconds = settings.seconds or _SECONDS[full]
    rows = time_streams(listener, speech, seconds, _GRAIN[full])
    rows += time_minutes(listener, speech, _MINUTES[full])
    rows.append(ticks.count_host_work(listener, speech, _SECONDS[full]))
    rows += ticks.time_active(recogniser, config, settings.streams, _RUNS[full])
    rows += Repetition(recogniser, config).compare(speech, _RUNS[full])
    states = measure_states(recogniser, config)
    return [*rows, *describe_states(states), count_streams(states["2b3"])]


def time_streams(
    listener: Listener, speech: Sequence[np.ndarray], seconds: float, grain: int
) -> list[measure.Row]:
    """How many streams are held in real time, and their delays.

    N streams of speech and pauses come in packets of 20 ms by the clock of the wall. A
    chunk is late where its result comes more than a chunk's duration after its audio
    was complete; N streams are held where at most `LATE` of the chunks are.

    Args:
        listener: warm; it has places for the most streams that are tried.
        speech: recordings.
        seconds: of audio for each N.
        grain: see `stream_runs.find_most`.

    Returns:
        The number held (`runs`: numbers tried; what the listener has places for may be
        less than the machine could hold) and, at that number (at 1 where none is),
        percentiles of the chunks' delays and of the waits from where an end of
        speech could be known to the final (`runs`: chunks and finals).
    """
    runs: dict[int, Run] = {}
    limit = listener.config.seconds

    def holds(count: int) -> bool:
        audios = [
            stream_runs.join_speech(speech, seconds, seed) for seed in range(count)
        ]
        most_late = int(LATE * count * seconds / limit)
        # A run of one stream is shown even if it is late.
        patience = None if count == 1 else most_late
        run = runs[count] = stream_runs.pace(listener, audios, most_late=patience)
        share = latency.late_share(run.chunk_delays, limit)
        held = not run.gave_up and share <= LATE
        logging.info("%d streams: %s", count, "held" if held else "too late")
        return held

    held = stream_runs.find_most(holds, _FIRST, listener.streams, grain)
    shown = runs[max(held, 1)]
    rows = [_state_figure("realtime_streams_held", "streams", held, len(runs))]
    for name, delays in (
        ("stream_tick_delay", shown.chunk_delays),
        ("stream_speech_end_to_final", shown.latency.final_work),
    ):
        summary = latency.summarise(delays)
        for rank in latency.PERCENTILES:
            delay = 1e3 * (summary[f"p{rank}"] or 0.0)
            figure = f"{name}_p{rank}_ms"
            rows.append(_state_figure(figure, "ms", delay, len(delays)))
    return rows


def time_minutes(
    listener: Listener, speech: Sequence[np.ndarray], minutes: int
) -> list[measure.Row]:
    """What a chunk costs late in a long stream, against its beginning.

    The same minute of speech is heard again and again, so that the work is the same. A
    fresh stream hears it by turns with the old one's last minute, chunk by chunk, which
    is when both are timed: wall time of `advance` where it took a chunk, medians.

    Args:
        listener: warm, with two places.
        speech: recordings.
        minutes: of the old stream.
    """
    minute = stream_runs.join_speech(speech, 60.0, seed=minutes)
    minute[-SAMPLE_RATE:] = 0.0  # an end of speech, so that minutes are alike
    hop = listener.config.hop
    pieces = [minute[begin : begin + hop] for begin in range(0, len(minute), hop)]
    old = listener.open()
    for _ in range(minutes - 1):
        for piece in pieces:
            _time_chunk(listener, old, piece)
    fresh = listener.open()
    times: dict[Session, list[float]] = {old: [], fresh: []}
    for number, piece in enumerate(pieces):
        for session in (old, fresh) if number % 2 else (fresh, old):
            times[session] += _time_chunk(listener, session, piece)
    listener.drop(old)
    listener.drop(fresh)
    late, early = (statistics.median(times[session]) for session in (old, fresh))
    count = len(times[old])
    return [
        _state_figure(
            f"chunk_minute{minutes}_over_minute1", "ratio", late / early, count
        ),
        _state_figure("chunk_minute1_ms", "ms", 1e3 * early, count),
    ]


def _time_chunk(listener: Listener, session: Session, piece: np.ndarray) -> list[float]:
    """Feed that much and advance until all is done; seconds of each chunk taken."""
    session.feed(piece)
    times, told = [], True
    while told or listener.pending:
        chunks, began = listener.metrics.chunks, time.perf_counter()
        told = listener.advance()
        if listener.metrics.chunks > chunks:
            times.append(time.perf_counter() - began)
    return times


class Repetition:
    """One more chunk of a long utterance: with caches, and all of it once more.

    Both sides write as many tokens as the transcript of so much speech has, whatever
    the model would write: no token ends a text, the limit does. So the work does not
    depend on how well the model follows joined recordings.
    """

    def __init__(
        self, recogniser: BatchRecogniser, config: StreamConfig, seconds: float = 30.0
    ):
        """Programs, not yet compiled.

        Args:
            recogniser: whose chunking is the stream's.
            config: with room for the utterance.
            seconds: of the utterance, rounded to whole chunks.
        """
        self._programs: Any = recogniser.programs
        self._tokenizer, self._config = recogniser.tokenizer, config
        self._chunks = round(seconds / config.seconds)
        packed = prompt_text.pack_suffixes(
            recogniser.tokenizer, [()], config.suffix_tokens
        )
        self._suffix = Labels(*map(jnp.asarray, packed))
        self._whole = jax.jit(self._transcribe, static_argnums=(2,))
        self._encode_chunk = jax.jit(self._advance_encoder)
        self._encode_whole = jax.jit(self._encode)

    def compare(self, speech: Sequence[np.ndarray], runs: int) -> list[measure.Row]:
        """Time both, and the encoders alone.

        Args:
            speech: recordings.
            runs: timed runs of each.
        """
        config, params = self._config, self._programs.params
        seconds = self._chunks * config.seconds
        samples = stream_runs.join_speech(speech, seconds, pauses=(0.1, 0.3))
        rate = self._count_tokens_per_second(speech)
        state = self._listen(samples, rate)
        # A tick consumes its state.
        states = iter([jax.tree.map(jnp.copy, state) for _ in range(runs + 2)])
        arrival = self._arrive(samples, self._chunks - 1, rate)
        whole = Frames(jnp.asarray(samples)[None], jnp.ones((1, len(samples)), bool))
        tokens = int(arrival.limits[0])
        name = f"{round(seconds)}s"
        return [
            measure.compare(
                f"chunk_at_{name}_ms",
                "ms",
                lambda: jax.device_get(self._tick(next(states), arrival)[1:]),
                lambda: jax.device_get(self._whole(params, whole, tokens)),
                peer_name="re-encode everything",
                runs=runs,
            ),
            measure.compare(
                f"encode_chunk_at_{name}_ms",
                "ms",
                lambda: jax.block_until_ready(
                    self._encode_chunk(params, arrival.audio, state.encoder)
                ),
                lambda: jax.block_until_ready(self._encode_whole(params, whole)),
                peer_name="re-encode everything",
                runs=runs,
            ),
        ]

    def _count_tokens_per_second(self, speech: Sequence[np.ndarray]) -> float:
        """Tokens of the transcripts, by seconds of the recordings."""
        records = opening.open_source(SPEECH)
        tokenizer = self._tokenizer
        texts = [records[number]["text"] for number in range(len(records))]
        tokens = sum(len(tokenizer.encode(text)) for text in texts)
        return tokens * SAMPLE_RATE / sum(map(len, speech))

    def _listen(self, samples: np.ndarray, rate: float) -> stream.StreamState:
        """State before the last chunk."""
        state = self._programs.start(self._config, 1)
        for number in range(self._chunks - 1):
            state = self._tick(state, self._arrive(samples, number, rate))[0]
        return state

    def _arrive(self, samples: np.ndarray, number: int, rate: float) -> Arrival:
        """A chunk, with the text's length so far as limit."""
        config = self._config
        window = config.window
        piece = samples[number * config.hop :][:window]
        audio = np.zeros((1, window), np.float32)
        audio[0, : len(piece)] = piece
        mask = np.arange(window)[None] < len(piece)
        limit = min(round(rate * (number + 1) * config.seconds), config.text_tokens)
        return Arrival(
            jnp.zeros(1, jnp.int32),
            Frames(jnp.asarray(audio), jnp.asarray(mask)),
            jnp.asarray([number == 0]),
            jnp.asarray([max(1, limit)], jnp.int32),
            self._suffix,
        )

    def _tick(self, state: stream.StreamState, arrival: Arrival):
        programs = dataclasses.replace(self._programs, end_id=-1)
        return programs.tick(self._config, self._config.text_tokens, state, arrival)

    def _transcribe(self, params, samples: Frames, tokens: int):
        """What the tick does, of the whole utterance and without any cache."""
        model, prompt = self._programs.model, self._programs.prompt

        def hear(asr):
            frames = asr.encode(asr.extract(samples), self._programs.chunking)
            scores = jax.nn.log_softmax(asr.score_phonemes(frames))
            return scores, asr.assemble(asr.adapt(frames), prompt)

        made: Any = model.apply({"params": params}, method=hear)
        scores, sequence = made
        written = offline.generate(
            Qwen3(model.config.llm, model.config.policy, packed=model.packed),
            params["llm"],
            sequence.frames(),
            offline.Stop(tokens, end_id=-1),
        )
        return scores, written

    def _encode(self, params, samples: Frames) -> Any:
        def hear(asr):
            return asr.encode(asr.extract(samples), self._programs.chunking)

        return self._programs.model.apply({"params": params}, method=hear)

    def _advance_encoder(
        self, params, samples: Frames, state: conformer.StackState
    ) -> Any:
        def hear(asr):
            pieces = asr.extract(samples)
            return asr.encode_chunk(pieces, state, self._config.chunking)

        return self._programs.model.apply({"params": params}, method=hear)


@dataclasses.dataclass(frozen=True)
class State:
    """Sizes of a model and of a stream's state.

    Attributes:
        parts: bytes of the state by part.
        weights: bytes of the parameters as bfloat16.
    """

    parts: dict[str, int]
    weights: int

    @property
    def total(self) -> int:
        """Bytes of the state."""
        return sum(self.parts.values())


def measure_states(
    recogniser: BatchRecogniser | None, config: StreamConfig
) -> dict[str, State]:
    """State of a stream by size of the model: this one, and 2b3 in bfloat16.

    No array is made. The prompt is spelt by the nano tokenizer where a size's own need
    not be at hand: a slot more or less.

    Args:
        recogniser: this model; None for 2b3 alone.
        config: sizes of a stream.
    """
    states = {}
    if recogniser is not None:
        programs: Any = recogniser.programs
        model = programs.model
        parts = stream.measure(
            model.config, programs.prompt, config, packed=model.packed
        )
        name = find_size(model.config)
        states[name] = State(parts, _weigh(programs.params))
    if "2b3" not in states:
        values = stage4.get_config("2b3").model.to_dict()
        shapes = loading.build_model_config(values)
        policy = dataclasses.replace(shapes.policy, compute="bfloat16")
        shapes = dataclasses.replace(shapes, policy=policy)
        tokenizer = Tokenizer.from_file(loading.find_tokenizer("nano"))
        prompt: Prompt = loading.make_prompt(tokenizer)
        parts = stream.measure(shapes, prompt, config)
        states["2b3"] = State(parts, _weigh(parameter_count.trace_params(shapes)))
    return states


def _weigh(params: Any) -> int:
    return sum(_BFLOAT16 * leaf.size for leaf in jax.tree.leaves(params))


def find_size(config: AsrConfig) -> str:
    """The name of a model's size, "model" if it is none of ours."""
    for size in base.SIZES:
        shapes = loading.build_model_config(stage4.get_config(size).model.to_dict())
        ours = (shapes.encoder.width, shapes.encoder.num_layers, shapes.llm.width)
        if ours == (config.encoder.width, config.encoder.num_layers, config.llm.width):
            return size
    return "model"


def describe_states(states: dict[str, State]) -> list[measure.Row]:
    """A row for each state, then for each of its parts."""
    rows = []
    for size, state in states.items():
        rows.append(_state_figure(f"state_bytes_{size}", "bytes", state.total, 1))
        for part, count in state.parts.items():
            name = part.lower().replace(" ", "_")
            figure = f"state_bytes_{size}_{name}"
            rows.append(_state_figure(figure, "bytes", count, 1))
    return rows


def count_streams(state: State) -> measure.Row:
    """Streams whose states fit beside the weights in `MEMORY`.

    By memory alone, without what a tick needs while it runs.
    """
    count = int((MEMORY - state.weights) // state.total)
    return _state_figure("streams_by_memory_80gb_2b3", "streams", count, 1)


def _state_figure(figure: str, unit: str, value: float, runs: int) -> measure.Row:
    """A figure that has no peer."""
    return measure.Row(figure, unit, value, None, "none", None, runs)
