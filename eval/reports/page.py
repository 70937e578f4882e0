"""A report of sections, rendered as Markdown and as HTML.

Whatever a page holds is text: every word of it is escaped where it is written, so that
a transcript can neither end a table's cell nor run as a script.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from importlib import resources

_LONGEST_WORD = 32  # letters that are not broken in a table

Pair = tuple[str, str]
"""A unit said and the one written for it; "" on one side where there is none."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text.

    Attributes:
        title: above the table.
        columns: heads.
        rows: as many cells each as there are columns.
        labels: leading columns that hold words; the others hold numbers.
        note: below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A plot.

    Attributes:
        title: what it shows, also for those who cannot see it.
        svg: the file.
    """

    title: str
    svg: bytes


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A reference and a hypothesis, unit by unit.

    Attributes:
        title: which utterance, and how many errors.
        pairs: in order.
        left_out: further units that are not shown.
    """

    title: str
    pairs: tuple[Pair, ...]
    left_out: int = 0


@dataclasses.dataclass(frozen=True)
class Listing:
    """Alignments under one title.

    Attributes:
        title: whose they are.
        alignments: in order.
        open: whether HTML shows them unasked, and prints them.
    """

    title: str
    alignments: tuple[Alignment, ...]
    open: bool = True


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its head.
        note: what one must know to read it.
        tables: first,
        pictures: then (HTML only),
        listings: at the end.
    """

    title: str
    note: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    listings: tuple[Listing, ...] = ()


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The page without its pictures."""
    lines = [f"# {escape_markdown(title)}"]
    for section in sections:
        lines += ["", f"## {escape_markdown(section.title)}"]
        if section.note:
            lines += ["", escape_markdown(section.note)]
        for table in section.tables:
            lines += ["", *_write_table(table)]
        for listing in section.listings:
            lines += ["", f"### {escape_markdown(listing.title)}"]
            for alignment in listing.alignments:
                lines += ["", escape_markdown(alignment.title), ""]
                lines += [f"    {line}" for line in write_columns(alignment)]
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """The text on one line, with nothing in it that Markdown would act on."""
    flat = " ".join(text.split())
    plain = html.escape(flat, quote=False).replace("&gt;", ">")
    return re.sub(r"([\\|*`~\[\]])", r"\\\1", plain)


def _write_table(table: Table) -> Iterator[str]:
    yield f"### {escape_markdown(table.title)}"
    yield ""
    numbers = len(table.columns) - table.labels
    yield _join(table.columns)
    yield "|" + " --- |" * table.labels + " ---: |" * numbers
    yield from map(_join, table.rows)
    if table.note:
        yield ""
        yield escape_markdown(table.note)


def _join(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escape_markdown, cells)) + " |"


def write_columns(alignment: Alignment) -> tuple[str, ...]:
    """Reference above hypothesis for a fixed font, what differs marked below.

    A missing unit is a row of stars; Chinese characters are two columns wide.
    """
    said, written, marks = ["REF"], ["HYP"], ["   "]
    for one, other in alignment.pairs:
        width = max(_measure(one), _measure(other))
        said.append(_pad(one or "*" * width, width))
        written.append(_pad(other or "*" * width, width))
        marks.append((" " if one == other else "^") * width)
    if alignment.left_out:
        for line in (said, written):
            line.append(f"… {alignment.left_out} more")
    return tuple(" ".join(line).rstrip() for line in (said, written, marks))


def _measure(text: str) -> int:
    """Columns of a text in a fixed font."""
    wide = (unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + sum(wide)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _measure(text))


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The page as one file that needs nothing else."""
    style = (
        resources.files("nim4_jax.eval.reports").joinpath("page.css").read_text("utf8")
    )
    head = html.escape(title)
    links = "".join(
        f'<a href="#s{number}">{html.escape(section.title)}</a>'
        for number, section in enumerate(sections)
    )
    body = "\n".join(
        _write_section(number, section) for number, section in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{head}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<h1>{head}</h1>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _write_section(number: int, section: Section) -> str:
    parts = [f'<section id="s{number}">', f"<h2>{html.escape(section.title)}</h2>"]
    if section.note:
        parts.append(f"<p>{html.escape(section.note)}</p>")
    parts += map(_html_table, section.tables)
    parts += map(_html_picture, section.pictures)
    parts += map(_html_listing, section.listings)
    return "\n".join([*parts, "</section>"])


def _html_table(table: Table) -> str:
    heads = _html_row("th", table.columns, table.labels)
    rows = "\n".join(
        _html_row("td", row, table.labels, new=bool(above) and above[0] != row[0])
        for above, row in zip(((), *table.rows), table.rows)
    )
    note = f"<p>{html.escape(table.note)}</p>\n" if table.note else ""
    return (
        f"<h3>{html.escape(table.title)}</h3>\n<div class=wide><table>\n"
        f"<thead>{heads}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n{note}"
    )


def _html_row(tag: str, cells: Sequence[str], labels: int, new: bool = False) -> str:
    """A row; a `new` one begins another group."""
    written = []
    for place, cell in enumerate(cells):
        longest = max(map(len, cell.split()), default=0)
        kinds = ["n"] if place >= labels else []
        kinds += ["w"] if longest > _LONGEST_WORD else []
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        written.append(f"<{tag}{kind}>{html.escape(cell)}</{tag}>")
    return f"<tr{' class=g' if new else ''}>{''.join(written)}</tr>"


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode("ascii")
    title = html.escape(picture.title)
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<img alt="{title}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def _html_listing(listing: Listing) -> str:
    aligned = "\n".join(map(_html_alignment, listing.alignments))
    opened = " open" if listing.open else ""
    return (
        f"<details{opened}><summary>{html.escape(listing.title)}</summary>\n"
        f"{aligned}\n</details>"
    )


def _html_alignment(alignment: Alignment) -> str:
    units = "".join(_html_pair(*pair) for pair in alignment.pairs)
    more = f"<i>… {alignment.left_out} more</i>" if alignment.left_out else ""
    return (
        f"<div class=utterance><p>{html.escape(alignment.title)}</p>\n"
        f"<div class=aligned>{units}{more}</div></div>"
    )


def _html_pair(said: str, written: str) -> str:
    """Reference above hypothesis."""
    if said == written:
        unit = html.escape(said)
        return f"<span><b>{unit}</b><b>{unit}</b></span>"
    above = f"<del>{html.escape(said)}</del>" if said else "<b>&nbsp;</b>"
    below = f"<ins>{html.escape(written)}</ins>" if written else "<b>&nbsp;</b>"
    return f"<span>{above}{below}</span>"
