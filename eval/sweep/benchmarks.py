"""The benchmarks of a sweep: sets, published error rates, and where to put the data.

| group   | benchmarks                                                       |
| paper   | NIM4-ASR's 15 public sets, which are not ours to ship            |
| local   | everything that runs from a checkout, with nothing to be fetched |
| noisy   | the commands clean, and at 20, 15, 10, 5 and 0 dB                |
| channel | the commands clean, in rooms, quiet, too loud, by telephone      |
| silent  | audio in which nobody speaks, of every kind and of each          |

The paper's table has 15 rows, AISHELL-1 to M4Singer; a row of several parts (dev and
test, meeting and net, conditions A, C and D) is as many benchmarks here, 25 in all.

Source: NIM4-ASR, table 2: the sets and their published error rates.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from nim4_jax.data.sources import conditions, opening
from nim4_jax.eval.measures.error_rates import METRICS

FOLDER_VARIABLE = "NIM4_BENCHMARKS"
"""Environment variable: the folder of sets that are placed by hand."""

DEFAULT_FOLDER = "benchmarks"
"""Where they lie if it is not set."""

_FOLDER = f"${FOLDER_VARIABLE}"
_FORM = (
    "a JSON-lines manifest with audio (a path relative to it) and text, and lang, "
    "duration, keywords and id where known; or a TFDS data set of the benchmark's name "
    "with a split test, prepared in the same folder"
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One set of utterances with how it is scored.

    Attributes:
        name: what commands and reports call it.
        title: what a reader calls it.
        source: what `opening.open_source` opens. In the table "$NIM4_BENCHMARKS" stands
            for the folder of placed sets; `find` puts that folder in.
        lang: "en", "zh" or "mixed" of every utterance, or "auto": as records say.
        normaliser: of `normalisers.NAMES`.
        conditions: (name, value) of what was done to the audio, or of what it is.
        needs: what must be placed where there is nothing yet; "" if nothing need be.
        licence: of the data, where they are not this project's.
        row: of the paper's table; "" for those that are not in it.
        published: the paper's error in percent, offline and streaming.
    """

    name: str
    title: str
    source: str
    lang: str = "auto"
    normaliser: str = "ours"
    conditions: tuple[tuple[str, str | float], ...] = ()
    needs: str = ""
    licence: str = ""
    row: str = ""
    published: tuple[float, float] | None = None

    @property
    def metric(self) -> str:
        """WER, CER or MER; "by language" where records have several."""
        return METRICS.get(self.lang, "by language")


def _place(
    name: str,
    title: str,
    row: str,
    lang: str,
    published: tuple[float, float],
    licence: str,
) -> Benchmark:
    """A public set that must be placed by hand."""
    return Benchmark(
        name,
        title,
        f"{_FOLDER}/{name}.jsonl",
        lang=lang,
        normaliser="whisper" if lang == "en" else "wetext",
        needs=f"{title}: {_FORM}",
        licence=licence,
        row=row,
        published=published,
    )


_AISHELL_2 = "AISHELL Foundation's terms, for research, on application"
_WENET = "its publishers' terms, non-commercial"
_KESPEECH = "its publishers' agreement, non-commercial"

_PAPER = (
    ("aishell-1-dev", "AISHELL-1 dev", "AISHELL-1", "zh", (0.43, 0.43), "Apache-2.0"),
    ("aishell-1-test", "AISHELL-1 test", "AISHELL-1", "zh", (0.57, 0.60), "Apache-2.0"),
    (
        "aishell-2-ios-dev",
        "AISHELL-2 dev, iOS channel",
        "AISHELL-2-ios",
        "zh",
        (2.28, 2.33),
        _AISHELL_2,
    ),
    (
        "aishell-2-ios-test",
        "AISHELL-2 test, iOS channel",
        "AISHELL-2-ios",
        "zh",
        (2.43, 2.49),
        _AISHELL_2,
    ),
    *(
        (
            f"aishell-2021-{part.lower()}",
            f"AISHELL-2021 evaluation, condition {part}",
            "AISHELL-2021",
            "zh",
            published,
            _AISHELL_2,
        )
        for part, published in (
            ("A", (3.12, 3.28)),
            ("C", (1.51, 1.63)),
            ("D", (1.81, 2.22)),
        )
    ),
    (
        "wenetspeech-meeting",
        "WenetSpeech test_meeting",
        "WenetSpeech",
        "zh",
        (4.91, 5.71),
        _WENET,
    ),
    (
        "wenetspeech-net",
        "WenetSpeech test_net",
        "WenetSpeech",
        "zh",
        (4.72, 5.00),
        _WENET,
    ),
    (
        "speechio",
        "SpeechIO's test sets",
        "SpeechIO",
        "zh",
        (2.61, 2.84),
        "its publishers' terms, for benchmarking",
    ),
    *(
        (
            f"wenetspeech-{name}",
            title,
            row,
            "zh",
            published,
            "its publishers' terms",
        )
        for name, title, row, published in (
            ("chuan-easy", "WenetSpeech-Chuan easy", "WS-Chuan", (10.51, 11.22)),
            ("chuan-hard", "WenetSpeech-Chuan hard", "WS-Chuan", (20.58, 20.37)),
            ("yue-short", "WenetSpeech-Yue short", "WS-Yue", (5.12, 5.39)),
            ("yue-long", "WenetSpeech-Yue long", "WS-Yue", (8.58, 9.62)),
        )
    ),
    ("kespeech", "KeSpeech test", "KeSpeech", "zh", (4.40, 5.08), _KESPEECH),
    *(
        (
            f"librispeech-{part}",
            f"LibriSpeech {part}",
            f"LibriSpeech {part.partition('-')[0]}",
            "en",
            published,
            "CC-BY-4.0",
        )
        for part, published in (
            ("dev-clean", (1.13, 1.18)),
            ("dev-other", (2.45, 2.86)),
            ("test-clean", (1.19, 1.29)),
            ("test-other", (2.53, 2.92)),
        )
    ),
    ("voxpopuli-dev", "VoxPopuli en dev", "VoxPopuli", "en", (6.18, 6.26), "CC0-1.0"),
    ("voxpopuli-test", "VoxPopuli en test", "VoxPopuli", "en", (6.08, 6.22), "CC0-1.0"),
    (
        "mls-en",
        "Multilingual LibriSpeech, English test",
        "MLS-en",
        "en",
        (4.77, 5.04),
        "CC-BY-4.0",
    ),
    (
        "cs-dialogue",
        "CS-Dialogue test",
        "CS-Dialogue",
        "mixed",
        (4.70, 4.91),
        "its publishers' terms, non-commercial",
    ),
    ("ascend", "ASCEND test", "ASCEND", "mixed", (11.46, 11.85), "CC-BY-SA-4.0"),
    (
        "m4singer",
        "M4Singer test",
        "M4Singer",
        "zh",
        (6.39, 6.94),
        "its publishers' terms, non-commercial",
    ),
)

_COMMANDS = "bundled:commands:test"
_ALLISON = "CC-BY-SA-3.0, Asterisk's prompts read by Allison Smith"
_SNRS = (20, 15, 10, 5, 0)  # dB
_CHANNELS = (
    ("commands-room", "in rooms", "room:0.5", ("rt60_s", 0.5)),
    ("commands-quiet", "20 dB quieter", "level:-20", ("level_db", -20)),
    ("commands-loud", "20 dB louder, clipped", "level:20", ("level_db", 20)),
    ("commands-telephone", "over the telephone", "telephone:mulaw", ("line", "mulaw")),
)
_SILENT = (
    ("nonspeech", "Silence, vehicle noise and music", "silence|vehicle|music", 300),
    ("nonspeech-silence", "Silence", "silence", 100),
    ("nonspeech-noise", "Vehicle noise", "vehicle", 100),
    ("nonspeech-music", "Music", "music", 100),
)

_LOCAL = (
    Benchmark("commands", "Spoken commands, held-out voices", _COMMANDS),
    Benchmark(
        "prompts",
        "Telephone prompts, human English",
        "bundled:prompts:test",
        lang="en",
        licence=_ALLISON,
    ),
    Benchmark("names", "Commands with held-out names", "bundled:names:test"),
    *(
        Benchmark(
            name,
            title,
            f"nonspeech:{count}?kinds={kinds}",
            conditions=(("speech", "none"), ("sound", kinds.replace("|", ", "))),
        )
        for name, title, kinds, count in _SILENT
    ),
    *(
        Benchmark(
            f"commands-{snr}db",
            f"Spoken commands in noise at {snr} dB",
            f"noisy:{snr}:{_COMMANDS}",
            conditions=(("snr_db", snr),),
        )
        for snr in _SNRS
    ),
    *(
        Benchmark(
            name,
            f"Spoken commands {how}",
            f"{condition}:{_COMMANDS}",
            conditions=(setting,),
        )
        for name, how, condition, setting in _CHANNELS
    ),
    Benchmark(
        "long-form",
        "Spoken commands joined to recordings of a minute",
        f"joined:60:{_COMMANDS}",
        conditions=(("joined_s", 60),),
    ),
)

_FETCHED = (
    Benchmark(
        "prompts-540",
        "All 540 telephone prompts, human English",
        f"{_FOLDER}/prompts-540/test.jsonl",
        lang="en",
        needs=f"run `nim4 fetch_prompts --out={_FOLDER}/prompts-540`",
        licence=_ALLISON,
    ),
    Benchmark(
        "voices",
        "Voices of other synthesis engines",
        f"{_FOLDER}/voices.jsonl",
        needs=f"speech of other engines than the training's: {_FORM}",
        conditions=(("speech", "synthetic"),),
    ),
)

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (*_LOCAL, *_FETCHED, *(_place(*row) for row in _PAPER))
}
"""All that have a name, by it."""

GROUPS: dict[str, tuple[str, ...]] = {
    "paper": tuple(row[0] for row in _PAPER),
    "local": tuple(benchmark.name for benchmark in _LOCAL),
    "noisy": ("commands", *(f"commands-{snr}db" for snr in _SNRS)),
    "channel": ("commands", *(row[0] for row in _CHANNELS)),
    "silent": tuple(row[0] for row in _SILENT),
}
"""Names that stand for several benchmarks."""


def find(names: Iterable[str]) -> tuple[Benchmark, ...]:
    """The benchmarks of some names, each once, in their order.

    Args:
        names: of `BENCHMARKS` or `GROUPS`; a source specification (`bundled:…`,
            `manifest.jsonl?lang=en`, …) is a benchmark of its own, named after itself.

    Raises:
        ValueError: an unknown name, with those most alike, or no name at all.
    """
    if isinstance(names, str):
        raise ValueError(f"got {names!r}; expected a list of names of benchmarks.")
    found: dict[str, Benchmark] = {}
    for name in names:
        for member in GROUPS.get(name, (name,)):
            known = BENCHMARKS.get(member)
            if known is None and not _is_source(member):
                raise ValueError(_describe_unknown(member))
            known = known or Benchmark(member, member, member)
            found[member] = dataclasses.replace(known, source=_locate(known))
    if not found:
        raise ValueError(f"no benchmark is named; choose from {_list_choices()}.")
    return tuple(found.values())


def find_folder() -> str:
    """The folder of placed sets."""
    return os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER


def _locate(benchmark: Benchmark) -> str:
    """The source, with the folder of placed sets in it."""
    folder = find_folder()
    source = benchmark.source.replace(_FOLDER, folder)
    placed = _FOLDER in benchmark.source and not Path(source).is_file()
    if placed and any(Path(folder, benchmark.name).glob("*/dataset_info.json")):
        lang = f"&lang={benchmark.lang}"
        return f"tfds:{benchmark.name}:test?data_dir={folder}{lang}"
    return source


def _is_source(name: str) -> bool:
    """Whether it looks like a specification rather than like a name."""
    return ":" in name or name.partition("?")[0].endswith((".jsonl", ".json"))


def _list_choices() -> str:
    return (
        f"{', '.join([*GROUPS, *BENCHMARKS])}, or a source such as bundled:NAME:SPLIT "
        "or manifest.jsonl"
    )


def _describe_unknown(name: str) -> str:
    """An unknown name: those that it may be meant for, and all there are."""
    known: Sequence[str] = [*GROUPS, *BENCHMARKS]
    alike = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(alike)}?" if alike else ""
    return f"no benchmark {name!r}.{hint} Choose from {_list_choices()}."


def missing(benchmark: Benchmark) -> str | None:
    """Why a benchmark's data are not here, and what to place where; None if they are.

    Only whether they are there: what is wrong with them is told when they are opened.

    Args:
        benchmark: as `find` gives it.
    """
    for noise in conditions.find_noise(benchmark.source):
        if not Path(noise.partition("?")[0]).exists():
            return (
                f"there is no noise at {noise}: a folder or a manifest of recordings."
            )
    source = conditions.find_origin(benchmark.source)
    if source.startswith("tfds:"):
        return _find_fault(source)
    if source.startswith(("bundled:", "nonspeech:")):
        return None
    path = Path(source.partition("?")[0].replace(_FOLDER, find_folder()))
    if path.is_file():
        return None
    if not benchmark.needs:
        return f"there is no file {path}."
    needs = benchmark.needs.replace(_FOLDER, find_folder())
    licence = f" Its licence: {benchmark.licence}." if benchmark.licence else ""
    return (
        f"there is no file {path}. To have it: {needs}. ${FOLDER_VARIABLE} names the "
        f"folder of such sets, now {find_folder()!r}.{licence}"
    )


def _find_fault(source: str) -> str | None:
    """Why a TFDS data set cannot be found."""
    try:
        opening.open_source(source)
    except ValueError as error:
        return str(error)
    return None
