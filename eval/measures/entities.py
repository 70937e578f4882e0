"""Names in transcripts: which were said, which were written, which should not be there.

entity recall    = names that were said and written / names that were said
false insertion  = a name of the set, or a hint, that is written and was not said
entity precision = names said and written / (these + false insertions)
intrusion        = an output with a hint in it that was not said

A name is present as `nim4_jax.rl.rewards` has it: Latin words whole, Chinese characters
anywhere, after normalisation or as it is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from nim4_jax.context.keywords import spell
from nim4_jax.rl import rewards

COLUMNS = (
    "set",
    "hints",
    "names said",
    "recall %",
    "precision %",
    "false insertions",
    "held out",
    "recall %",
    "outputs with hints",
    "hint not said in it %",
)


@dataclasses.dataclass(frozen=True)
class Entities:
    """The names of one utterance.

    Attributes:
        said: keywords that the reference has.
        found: those of them that the hypothesis has.
        held_out: those of `said` that no transcript of the training has; None where
            that was not asked for.
        hints: names in the prompt.
        unsaid: hints that the reference does not have.
        intruded: those of `unsaid` that the hypothesis has.
        inserted: names of the whole set, and hints, that the hypothesis has and the
            reference has not.
    """

    said: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    held_out: tuple[str, ...] | None = None
    hints: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()
    intruded: tuple[str, ...] = ()
    inserted: tuple[str, ...] = ()


def is_present(name: str, text: str, lang: str) -> bool:
    """Whether a text has a name, as `rewards.score_context` decides it.

    Args:
        name: a keyword or hint; one that normalisation empties is in no text.
        text: reference or hypothesis.
        lang: "en", "zh", "mixed" or "auto", whose rules normalise both.
    """
    return rewards.score_context([name], text, lang) > 0.0


def find_present(names: Iterable[str], text: str, lang: str) -> tuple[str, ...]:
    """Those of some names that a text has, in their order."""
    return tuple(name for name in names if is_present(name, text, lang))


def find_unseen(names: Iterable[str], texts: Iterable[str]) -> frozenset[str]:
    """Names that occur in none of the texts.

    Args:
        names: as they are written.
        texts: transcripts of the training.

    Returns:
        The names that are held out, as `keywords.spell` gives them.
    """
    unseen = {spell(name) for name in names} - {""}
    sizes = {len(name.split()) for name in unseen}
    for text in texts:
        units = spell(text).split()
        for size in sizes:
            for first in range(len(units) - size + 1):
                unseen.discard(" ".join(units[first : first + size]))
    return frozenset(unseen)


def judge(
    said: tuple[str, ...],
    hints: tuple[str, ...],
    texts: tuple[str, str],
    lang: str,
    unseen: frozenset[str] | None = None,
    written: Iterable[str] = (),
) -> Entities:
    """Judge one hypothesis.

    Args:
        said: keywords that the reference has.
        hints: names in the prompt.
        texts: reference and hypothesis.
        lang: rules of normalisation.
        unseen: what `find_unseen` gives; None where nobody asked.
        written: names of the set that the hypothesis has.
    """
    reference, hypothesis = texts
    unsaid = tuple(name for name in hints if not is_present(name, reference, lang))
    held_out = None
    if unseen is not None:
        held_out = tuple(name for name in said if spell(name) in unseen)
    intruded = find_present(unsaid, hypothesis, lang)
    false = (name for name in written if not is_present(name, reference, lang))
    return Entities(
        said=said,
        found=find_present(said, hypothesis, lang),
        held_out=held_out,
        hints=hints,
        unsaid=unsaid,
        intruded=intruded,
        inserted=tuple(dict.fromkeys([*false, *intruded])),
    )


def summarise(judged: Sequence[Entities], mode: str) -> dict[str, Any] | None:
    """Recall, precision and intrusions of a set.

    Args:
        judged: one entry an utterance.
        mode: how hints were chosen, "none" if there were none.

    Returns:
        {"said", "found", "recall_percent", "inserted" (names),
        "precision_percent" (None where no name is written), "held_out": {"said",
        "found", "recall_percent"}, "hints": {"mode",
        "utterances" (with hints), "hints" (in all), "outputs" (whose prompt names
        something that was not said), "intruded" (those that have it),
        "intruded_percent"}}, each part only where there is something to tell; None
        where there is nothing at all.
    """
    summary: dict[str, Any] = {}
    if any(row.said for row in judged):
        summary |= _recall([(row.said, row.found) for row in judged])
        inserted = sum(len(row.inserted) for row in judged)
        written = summary["found"] + inserted
        summary["inserted"] = inserted
        summary["precision_percent"] = (
            round(100 * summary["found"] / written, 3) if written else None
        )
    if any(row.held_out for row in judged):
        pairs = []
        for row in judged:
            held_out = row.held_out or ()
            pairs.append((held_out, [name for name in held_out if name in row.found]))
        summary["held_out"] = _recall(pairs)
    if mode != "none":
        misled = [row for row in judged if row.unsaid]
        intruded = sum(bool(row.intruded) for row in misled)
        summary["hints"] = {
            "mode": mode,
            "utterances": sum(bool(row.hints) for row in judged),
            "hints": sum(len(row.hints) for row in judged),
            "outputs": len(misled),
            "intruded": intruded,
            "intruded_percent": round(100 * intruded / max(len(misled), 1), 3),
        }
    return summary or None


def _recall(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> dict[str, Any]:
    """Recall from (said, found) of each utterance."""
    said = sum(len(names) for names, _ in pairs)
    found = sum(len(names) for _, names in pairs)
    return {
        "said": said,
        "found": found,
        "recall_percent": round(100 * found / max(said, 1), 3),
    }


def list_cells(name: str, summary: dict[str, Any]) -> tuple[object, ...]:
    """A set's row of the table with `COLUMNS`."""
    hints = summary.get("hints", {"mode": "none", "outputs": 0})
    misled = hints["outputs"]
    return (
        name,
        hints["mode"],
        *_show(summary),
        *_show_precision(summary),
        *_show(summary.get("held_out", {})),
        misled or "",
        f"{hints['intruded_percent']:.2f}" if misled else "",
    )


def _show(part: dict[str, Any]) -> tuple[object, str]:
    """Number of names and recall, blank where there are none."""
    if "said" not in part:
        return "", ""
    return part["said"], f"{part['recall_percent']:.2f}"


def _show_precision(summary: dict[str, Any]) -> tuple[str, object]:
    """Precision and false insertions, blank where there are none to speak of."""
    if "inserted" not in summary:
        return "", ""
    percent = summary["precision_percent"]
    return "" if percent is None else f"{percent:.2f}", summary["inserted"]
