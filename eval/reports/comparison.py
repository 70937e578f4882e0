"""Two evaluations of the same sets, figure by figure, with intervals.

| measure              | counts / units, of each utterance             | better |
| WER, CER, MER, PER   | edits / reference units, by language          | less   |
| non-empty outputs    | 1 / 1, where nobody speaks                    | less   |
| empty outputs        | 1 / 1, where somebody does                    | less   |
| hallucinations       | 1 / 1, see `metrics.is_hallucinated`          | less   |
| entity recall        | names written / names said                    | more   |
| recall, held out     | the same, of names that training never said   | more   |
| hints not said       | 1 / 1, where a prompt names what nobody says  | less   |

The last one looks for the names that either run was told, in the outputs of both: so a
run without hints shows how often such a name is misheard anyway.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nim4_jax import line_file
from nim4_jax.eval.measures import bootstrap, entities, error_rates, outputs
from nim4_jax.eval.measures.bootstrap import Difference
from nim4_jax.eval.measures.error_rates import Counts

Row = dict[str, Any]
"""An utterance as hyps.jsonl has it."""

Pair = tuple[Row, Row]
Tally = tuple[int, int] | None
"""Counts and units of an utterance; None where the measure says nothing of it."""

_WANTED = ("set", "id", "lang", "reference")
_COLUMNS = (
    "set",
    "language",
    "measure",
    "utterances",
    "a %",
    "b %",
    "b − a",
    "interval",
    "relative %",
    "p",
    "b is",
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One measure of one set.

    Attributes:
        name: of the set.
        lang: "en", "zh", "mixed", or "all" of them.
        measure: what was measured.
        difference: of the two runs.
        more_is_better: whether the measure is one of success.
    """

    name: str
    lang: str
    measure: str
    difference: Difference
    more_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Of run b: "better", "worse", or "no difference shown"."""
        if not self.difference.shown:
            return "no difference shown"
        return "better" if (self.difference.low > 0) == self.more_is_better else "worse"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two evaluations, compared.

    Attributes:
        lines: by set, measure and language.
        only_a: utterances that only run a has.
        only_b: and only run b.
    """

    lines: tuple[Line, ...]
    only_a: int
    only_b: int


def read_rows(folder: str) -> list[Row]:
    """The utterances of an evaluation.

    Args:
        folder: that `nim4 evaluate --out` wrote.

    Raises:
        ValueError: no hyps.jsonl, or a line that is none of it.
    """
    path = Path(folder) / "hyps.jsonl"
    if not path.is_file():
        raise ValueError(
            f"no evaluation in {folder}: there is no hyps.jsonl. Give the folder that "
            "`nim4 evaluate --out` wrote."
        )
    rows = []
    for place, row in line_file.read_json(path):
        missing = [
            key for key in _WANTED if not isinstance(row, dict) or key not in row
        ]
        if missing:
            raise ValueError(
                f"{place}: has no {', '.join(missing)}; expected what "
                "`nim4 evaluate` writes."
            )
        rows.append(row)
    return rows


def compare(
    a: Sequence[Row],
    b: Sequence[Row],
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations, utterance by utterance.

    Args:
        a: `read_rows` of one run, or `report.list_rows` of its results.
        b: of the other.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: they share no utterance, or an utterance has two references.
    """
    ours, theirs = _index(a), _index(b)
    shared = [key for key in ours if key in theirs]
    if not shared:
        names = [sorted({row["set"] for row in rows}) for rows in (a, b)]
        raise ValueError(
            f"the evaluations share no utterance: a has the sets {names[0]}, b has "
            f"{names[1]}; evaluate both on the same sets, named alike."
        )
    sets: dict[str, list[Pair]] = {}
    for key in shared:
        pair = ours[key], theirs[key]
        if pair[0]["reference"] != pair[1]["reference"]:
            raise ValueError(
                f"{key[0]}: utterance {key[1]!r} has the reference "
                f"{pair[0]['reference']!r} in a and {pair[1]['reference']!r} in b; "
                "the set has changed between the runs."
            )
        sets.setdefault(key[0], []).append(pair)
    lines = []
    for name, pairs in sets.items():
        for lang, measure, more, tallies in _measure(pairs):
            counts = np.array(tallies, np.int64)  # [N, 2 runs, 2]
            difference = bootstrap.compare(
                counts[:, 0], counts[:, 1], resamples=resamples, seed=seed
            )
            lines.append(Line(name, lang, measure, difference, more))
    return Comparison(tuple(lines), len(ours) - len(shared), len(theirs) - len(shared))


def _index(rows: Sequence[Row]) -> dict[tuple[str, str, int], Row]:
    """Utterances by set, id, and how many of that id came before."""
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    indexed = {}
    for row in rows:
        key = (row["set"], row["id"])
        indexed[(*key, seen[key])] = row
        seen[key] += 1
    return indexed


_Measured = tuple[str, str, bool, list[tuple[tuple[int, int], tuple[int, int]]]]


def _measure(pairs: Sequence[Pair]) -> Iterator[_Measured]:
    """Language, measure, whether more is better, and (a, b) tallies of a set."""
    spoken = [pair for pair in pairs if pair[0]["reference"].strip()]
    silent = [pair for pair in pairs if not pair[0]["reference"].strip()]
    for kind in ("text", "phonemes"):
        for lang, metric in error_rates.METRICS.items():
            mine = [pair for pair in spoken if pair[0]["lang"] == lang]
            name = "PER" if kind == "phonemes" else metric
            if tallies := _tally(mine, lambda row, _, kind=kind: _errors(row, kind)):
                yield lang, name, False, tallies
    for name, more, chosen, count in (
        ("non-empty outputs", False, silent, _count_written),
        ("empty outputs", False, spoken, _count_empty),
        ("hallucinations", False, pairs, _count_hallucinated),
        ("entity recall", True, spoken, _count_found),
        ("recall, held out", True, spoken, _count_held_out),
        ("hints not said", False, pairs, _count_intruded),
    ):
        if tallies := _tally(chosen, count):
            yield "all", name, more, tallies


def _tally(pairs: Sequence[Pair], count: Callable[[Row, Pair], Tally]) -> list:
    """Both tallies of the pairs of which the measure says something."""
    both = ((count(pair[0], pair), count(pair[1], pair)) for pair in pairs)
    return [tallies for tallies in both if None not in tallies]


def _errors(row: Row, kind: str) -> Tally:
    if kind not in row:
        return None
    counts = Counts(**row[kind])
    return counts.errors, counts.reference


def _count_empty(row: Row, _: Pair) -> Tally:
    return (int(outputs.is_empty(row["hypothesis"])), 1) if "text" in row else None


def _count_written(row: Row, _: Pair) -> Tally:
    return (int(not outputs.is_empty(row["hypothesis"])), 1) if "text" in row else None


def _count_hallucinated(row: Row, _: Pair) -> Tally:
    if "text" not in row:
        return None
    return int(error_rates.is_hallucinated(Counts(**row["text"]))), 1


def _count_found(row: Row, _: Pair) -> Tally:
    said = row.get("said")
    return (len(row.get("found", ())), len(said)) if said else None


def _count_held_out(row: Row, _: Pair) -> Tally:
    held_out = row.get("held_out")
    if not held_out:
        return None
    return len(set(held_out) & set(row.get("found", ()))), len(held_out)


def _count_intruded(row: Row, pair: Pair) -> Tally:
    names = dict.fromkeys(name for run in pair for name in run.get("unsaid", ()))
    if not names or "text" not in row:
        return None
    return int(bool(entities.find_present(names, row["hypothesis"], row["lang"]))), 1


def to_markdown(comparison: Comparison) -> str:
    """The table that a person reads."""
    lines = [
        "| " + " | ".join(_COLUMNS) + " |",
        "| --- | --- | --- |" + " ---: |" * (len(_COLUMNS) - 4) + " --- |",
    ]
    for line in comparison.lines:
        it = line.difference
        cells = (
            line.name.replace("|", r"\|"),
            line.lang,
            line.measure,
            it.utterances,
            f"{it.a:.2f}",
            f"{it.b:.2f}",
            f"{it.change:+.2f}",
            f"{it.low:+.2f} … {it.high:+.2f}",
            "" if it.relative is None else f"{it.relative:+.1f}",
            f"{it.p:.4f}",
            line.verdict,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for run, count in (("a", comparison.only_a), ("b", comparison.only_b)):
        if count:
            lines.append(f"\nleft out {count} utterances that only {run} has")
    return "\n".join(lines) + "\n"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The same for programs; numbers as they are, percent."""
    return {
        "lines": [
            {
                "set": line.name,
                "language": line.lang,
                "measure": line.measure,
                "more_is_better": line.more_is_better,
                **dataclasses.asdict(line.difference),
                "change": line.difference.change,
                "relative": line.difference.relative,
                "verdict": line.verdict,
            }
            for line in comparison.lines
        ],
        "only_a": comparison.only_a,
        "only_b": comparison.only_b,
    }
