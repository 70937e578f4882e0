"""What a tick costs: by how many streams take part, and what of it is the host's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nim4_jax.decode.live.batch import list_sizes
from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.decode.programs import Arrival
from nim4_jax.decode.recogniser import BatchRecogniser
from nim4_jax.eval import stream_runs
from nim4_jax.eval.speed import measure
from nim4_jax.text import prompt as prompt_text
from nim4_jax.types import Frames, Labels

ACTIVE = (1, 2, 4, 8, 12, 16, 17, 24, 32, 33, 48, 49, 63)
_TOKENS = 8  # that every stream writes in a tick


def time_active(
    recogniser: BatchRecogniser, config: StreamConfig, streams: int, runs: int
) -> list[measure.Row]:
    """A tick of some of the streams against one of all, by turns.

    Every stream begins an utterance and writes as many tokens, whatever it hears.

    Args:
        recogniser: a model that writes.
        config: sizes.
        streams: that there is room for.
        runs: timed runs of each.
    """
    programs: Any = recogniser.programs
    programs = dataclasses.replace(programs, end_id=-1)
    packed = prompt_text.pack_suffixes(recogniser.tokenizer, [()], config.suffix_tokens)
    suffix = [np.repeat(array, streams, axis=0) for array in packed]
    audio = np.random.default_rng(0).normal(0, 0.1, (streams, config.window))
    states = [programs.start(config, streams)]
    width = config.widths()[0]

    def make_tick(active: int) -> Callable[[], Any]:
        rows = next(size for size in list_sizes(streams) if size >= active)
        slots = np.full(rows, streams, np.int32)
        slots[:active] = np.arange(active)
        here = np.arange(rows) < active
        arrival = Arrival(
            None if rows == streams else jnp.asarray(slots),
            Frames(
                jnp.asarray(audio[:rows], jnp.float32),
                jnp.asarray(np.broadcast_to(here[:, None], (rows, config.window))),
            ),
            jnp.asarray(here),
            jnp.asarray(np.where(here, _TOKENS, 0), jnp.int32),
            Labels(*(jnp.asarray(array[:rows]) for array in suffix)),
        )

        def tick() -> Any:
            states[0], *made = programs.tick(config, width, states[0], arrival)
            return jax.device_get(made)

        return tick

    every = make_tick(streams)
    return [
        measure.compare(
            f"tick_{active}_of_{streams}_ms",
            "ms",
            make_tick(active),
            every,
            peer_name=f"{streams} active",
            runs=runs,
        )
        for active in ACTIVE
        if active < streams
    ]


def count_host_work(
    listener: Listener, speech: Sequence[np.ndarray], seconds: float
) -> measure.Row:
    """Processor time of the host for a chunk of a stream, all places being taken.

    Args:
        listener: warm.
        speech: recordings.
        seconds: of audio in each stream.
    """
    audios = [
        stream_runs.join_speech(speech, seconds, seed)
        for seed in range(listener.streams)
    ]
    metrics, hop = listener.metrics, listener.config.hop
    chunks, spent = metrics.chunks, metrics.host_seconds
    sessions = [listener.open() for _ in audios]
    for begin in range(0, max(map(len, audios)), hop):
        for session, samples in zip(sessions, audios):
            session.feed(samples[begin : begin + hop])
        listener.advance()
    for session in sessions:
        listener.drop(session)
    chunks = metrics.chunks - chunks
    each = 1e3 * (metrics.host_seconds - spent) / max(1, chunks)
    return measure.Row("host_ms_per_chunk", "ms", each, None, "none", None, chunks)
