"""Opening of sources by specification: manifests, TFDS, bundled sets, no speech.

A source is a random-access sequence of records:

    audio         path, encoded bytes, or samples
    sample_rate   of samples, Hz; None where the audio itself tells
    text          transcript
    lang          "en", "zh", "mixed" or "auto"
    keywords      tuple of strings, entities that occur in the transcript
    id            name of the utterance
    duration      seconds, None where unknown
    offset        s, where a segment of the audio begins, None for all of it
    channel       which of several, as `channels` describes: "mix", "left", "right", 0 …
    origin        "file:line" or "data set:index", for messages

A manifest is a JSON-lines file; `audio` (or `audio_filepath`; relative to the manifest)
and `text` are required; `lang`, `duration`, `keywords`, `id`, `channel` and the segment
(`timings.py`) are optional, other keys free. It is UTF-8, or UTF-16 by its byte order
mark. Halves of surrogate pairs in a text become U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nim4_jax.data.sources import (
    builders,
    conditions,
    examples,
    manifests,
    nonspeech,
)

# name[/config][:version]:split, where a split may itself hold a colon: train[:10%]
_TFDS_TARGET = re.compile(r"([^:]+(?::[0-9]+\.[0-9]+\.[0-9]+)?):([^:]+(?:\[.*)?)")


def open_source(spec: str) -> examples.Source:
    """Open a source by its specification.

    - `path/to/manifest.jsonl[?key=value&key=a|b]`: the records whose keys have one of
      the values; all conditions must hold. `?split=train&lang=en|zh`.
    - `tfds:name[/config][:version]:split[?lang=en&data_dir=…]`: a prepared TFDS data
      set with an audio and a text feature; nothing is ever downloaded.
    - `bundled:name:split[?lang=zh|mixed]`: a set that ships with the project, or the
      records of it that a manifest's selection would take.
    - `nonspeech:COUNT[?seed=S&kinds=silence|vehicle|music]`: synthetic audio without
      words, always the same, with the text "": a set to evaluate on. For training
      there is `DataConfig.nonspeech_share`.
    - `noisy:SNR[+KIND…][@NOISE]:SOURCE`, `room:RT60[+DISTANCE]:SOURCE`,
      `level:DB:SOURCE`, `telephone:LAW:SOURCE`, `joined:SECONDS:SOURCE`: another source
      in noise, in rooms, louder or quieter, over the telephone, or its utterances
      joined (conditions.py); sets to evaluate on.

    Raises:
        ValueError: unknown form, no such file, a bad line (named), nothing selected.
    """
    if spec.startswith("tfds:"):
        return _open_tfds(spec)
    if spec.startswith("nonspeech:"):
        return _open_nonspeech(spec)
    if spec.startswith(("noisy:", "room:", "level:", "telephone:", "joined:")):
        return conditions.open_condition(spec, open_source)
    if spec.startswith("bundled:"):
        target, _, query = spec.removeprefix("bundled:").partition("?")
        name, _, split = target.partition(":")
        records = builders.open_bundled(name, split)
        return manifests.Selection(records, spec, query) if query else records
    path = spec.partition("?")[0]
    if not path.endswith((".jsonl", ".json")):
        raise ValueError(
            f"unknown source {spec!r}; expected 'manifest.jsonl[?key=value]', "
            "'tfds:name[/config]:split', 'bundled:name:split', 'nonspeech:COUNT', "
            "'noisy:SNR:SOURCE', 'room:RT60:SOURCE', 'level:DB:SOURCE', "
            "'telephone:LAW:SOURCE' or 'joined:SECONDS:SOURCE'"
        )
    return manifests.open_manifest(spec)


def _open_tfds(spec: str) -> examples.Source:
    # Imported on demand: TFDS costs seconds of start-up that manifests need not pay.
    from nim4_jax.data.sources.tfds_reader import TfdsSource

    target, _, query = spec.removeprefix("tfds:").partition("?")
    parsed = _TFDS_TARGET.fullmatch(target)
    wanted = manifests.parse_query(query, spec)
    options = {key: "|".join(values) for key, values in wanted.items()}
    if not parsed or set(options) - {"lang", "data_dir"}:
        raise ValueError(
            f"cannot read the source {spec!r}; expected "
            "'tfds:name[/config][:version]:split[?lang=en&data_dir=…]'"
        )
    if options.get("lang", "auto") not in examples.LANGS:
        raise ValueError(
            f"{spec}: unknown lang; choose from {', '.join(examples.LANGS)}"
        )
    return TfdsSource(parsed[1], parsed[2], **options)


def _open_nonspeech(spec: str) -> examples.Source:
    count, _, query = spec.removeprefix("nonspeech:").partition("?")
    wanted = manifests.parse_query(query, spec)
    seeds = wanted.pop("seed", {"0"})
    kinds = wanted.pop("kinds", set(nonspeech.IN_TEST_SETS))
    numbers = [count, *seeds]
    if wanted or len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
        raise ValueError(
            f"cannot read the source {spec!r}; expected "
            f"'nonspeech:COUNT[?seed=S&kinds={'|'.join(nonspeech.SYNTHETIC)}]'"
        )
    # In the order of the list, however the specification puts them.
    ordered = [kind for kind in nonspeech.SYNTHETIC if kind in kinds]
    unknown = sorted(kinds - set(ordered))
    return nonspeech.Fixed(int(count), int(seeds.pop()), [*ordered, *unknown])


def open_sources(
    specs: Sequence[str | tuple[str, float]],
) -> tuple[examples.Corpus, list[float]]:
    """Open a mixture.

    Args:
        specs: specifications for `open_source`, each alone (weight 1) or with its
            weight: the passes over that source in one epoch, any number > 0.

    Returns:
        The sources as one corpus, and their weights.
    """
    if not specs or isinstance(specs, str):
        raise ValueError(f"got sources {specs!r}; expected a list of specifications")
    opened, weights = [], []
    for entry in specs:
        spec, weight = (entry, 1.0) if isinstance(entry, str) else entry
        if not 0 < weight < float("inf"):
            raise ValueError(f"source {spec!r} has weight {weight}; expected > 0")
        opened.append(open_source(spec))
        weights.append(float(weight))
    return examples.Corpus(opened), weights


def open_examples(
    specs: Sequence[str | tuple[str, float]], nonspeech_share: float
) -> tuple[examples.Corpus, list[float]]:
    """A mixture, and a source without speech if there shall be some.

    Args:
        specs: as for `open_sources`.
        nonspeech_share: of an epoch's examples, in [0, 1).

    Returns:
        As `open_sources`; `NonSpeech` comes last and has weight 1.
    """
    corpus, weights = open_sources(specs)
    if not nonspeech_share:
        return corpus, weights
    sizes = [len(source) for source in corpus.sources]
    count = nonspeech.count_examples(nonspeech_share, sizes, weights)
    extra = nonspeech.NonSpeech(count)
    return examples.Corpus([*corpus.sources, extra]), [*weights, 1.0]
