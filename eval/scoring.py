"""One model scored on several sets, or many models, sets and modes in a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from absl import logging
from tqdm import tqdm

from nim4_jax.decode.live.listener import Listener
from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.eval import evaluation
from nim4_jax.eval.hints import HintConfig
from nim4_jax.eval.reports import report
from nim4_jax.eval.streaming import StreamedRecogniser
from nim4_jax.eval.sweep import identity, runner
from nim4_jax.eval.sweep.runner import Outcome, SweepConfig
from nim4_jax.serving import recognisers


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured, and how the model hears.

    Attributes:
        phonemes: whether the phoneme head is scored too.
        shuffle_audio: whether the control with other audio is scored too.
        limit: utterances per set, 0 for all.
        chunk_ms: length of chunks, 0 for the full pass.
        left: chunks seen to the left.
        stream: whether every recording is heard as a stream.
        names: which names the prompts hold, and which count; None for no hints.
    """

    phonemes: bool = False
    shuffle_audio: bool = False
    limit: int = 0
    chunk_ms: int = 0
    left: int = 4
    stream: bool = False
    names: HintConfig | None = None


DEFAULT = Options()


def run(
    model: str,
    sets: Sequence[str],
    out: str | None = None,
    options: Options = DEFAULT,
    *,
    show_progress: bool = True,
) -> report.Report:
    """Evaluate a model on sets.

    Args:
        model: workdir or .safetensors file. Without an LLM only phonemes are scored.
        sets: source specifications.
        out: folder for the files; None writes none.
        options: what is measured.
        show_progress: whether a bar is drawn on stderr.

    Returns:
        What `report.build` makes.

    Raises:
        ValueError: no model, no LLM to write with, a set of no use, or no hints for it.
    """
    chunk_ms = options.chunk_ms
    if options.stream:
        chunk_ms = chunk_ms or StreamConfig.of().chunk_ms
    loaded = recognisers.load(model, chunk_ms=chunk_ms, left=options.left)
    recogniser = loaded.recogniser
    if options.stream:
        sizes = StreamConfig.of(chunk_ms, options.left, recogniser.programs.rates)
        listener = Listener(recogniser, streams=max(loaded.rows), config=sizes)
        listener.warm_up()
        recogniser = StreamedRecogniser(recogniser, listener)
    if not options.phonemes:
        recogniser.check_writes()
    config = evaluation.EvalConfig(
        bucket_seconds=loaded.bucket_seconds,
        rows=loaded.rows,
        text=recogniser.writes,
        phonemes=options.phonemes,
        shuffle_audio=options.shuffle_audio,
        hints=options.names or HintConfig(),
        limit=options.limit,
    )
    results = []
    for spec in sets:
        with tqdm(desc=spec, unit="utt", disable=not show_progress) as bar:

            def advance(done: int, total: int, bar=bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            results.append(evaluation.evaluate_set(recogniser, spec, config, advance))
    made = report.build(model, results)
    if isinstance(recogniser, StreamedRecogniser):
        made["streaming"] = recogniser.latency.summary()
    if out:
        report.write(out, made, results)
    return made


def sweep(config: SweepConfig, out: str, shard: tuple[int, int] = (0, 1)) -> Outcome:
    """The sweep, with a log line for each cell.

    Raises:
        ValueError: what is asked for is not there or makes no sense.
        OSError: no room for what was measured.
    """
    return runner.run(
        config,
        out,
        load=recognisers.load,
        identify=identity.identify,
        shard=shard,
        say=lambda line: logging.info("%s", line),
    )
