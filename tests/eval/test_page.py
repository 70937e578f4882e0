"""Pages whose words may be anything."""

import html.parser

import hypothesis
import hypothesis.strategies as st

from nim4_jax.eval.reports import page
from nim4_jax.eval.reports.page import Alignment, Listing, Picture, Section, Table

HOSTILE = "<script>alert(1)</script>|`*[a](b)*`\\|\n# head & \"quotes' <!--"
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


class Reader(html.parser.HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.texts += [value for key, value in attrs if key == "alt"]

    def handle_data(self, data):
        self.texts.append(data)


def make_sections(word):
    unit = word.split()[0]  # no unit of a text has a space
    return [
        Section(
            word,
            word,
            (Table(word, (word, "n"), ((word, word), ("b", "1")), note=word),),
            (Picture(word, b"<svg/>"),),
            (
                Listing(
                    word, (Alignment(word, ((unit, unit), (unit, ""), ("", unit))),)
                ),
            ),
        )
    ]


def test_no_word_is_taken_for_a_tag():
    plain, hostile = (
        Reader(page.to_html(word, make_sections(word))) for word in ("a", HOSTILE)
    )
    assert hostile.tags == plain.tags and "script" not in plain.tags
    assert len(hostile.texts) == len(plain.texts)
    assert {HOSTILE, HOSTILE.split()[0]} <= set(hostile.texts)


@hypothesis.given(TEXTS, TEXTS)
def test_a_row_of_markdown_keeps_its_cells(one, other):
    table = Table("t", ("a", "b"), ((one, other), (other, one)))
    text = page.to_markdown("t", [Section("s", tables=(table,))])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    for row in rows:
        bare = row.replace("\\\\", "").replace("\\|", "")
        assert bare.count("|") == 3 and "<" not in bare


def test_markdown_has_no_heads_but_its_own():
    text = page.to_markdown(HOSTILE, make_sections(HOSTILE))
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert len(heads) == 4
    assert "<script" not in "\n".join(
        line for line in text.splitlines() if not line.startswith("    ")
    )


@hypothesis.given(
    st.lists(
        st.tuples(
            st.text("ab打开", min_size=1, max_size=3),
            st.text("ab打开", min_size=1, max_size=3),
        ).filter(lambda pair: pair != ("", "")),
        max_size=8,
    )
)
def test_aligned_units_stand_below_each_other(pairs):
    said, written, marks = page.write_columns(Alignment("t", tuple(pairs)))
    ends = [3]
    for pair in pairs:
        ends.append(ends[-1] + 1 + max(map(page._measure, pair)))
    for line, side in ((said, 0), (written, 1)):
        for start, pair in zip(ends, pairs):
            front = f"{line}{' ' * 99}"
            place = next(
                number
                for number in range(len(front))
                if page._measure(front[:number]) == start + 1
            )
            assert front[place:].startswith(pair[side])
    wrong = sum(max(map(page._measure, pair)) for pair in pairs if pair[0] != pair[1])
    assert marks.count("^") == wrong


def test_a_page_needs_nothing_else():
    text = page.to_html("t", make_sections("word"))
    for outside in ("http:", "https:", "<link", "<script", "@import", "url("):
        assert outside not in text
    assert 'src="data:image/svg+xml;base64,PHN2Zy8+"' in text
    assert "@media print" in text
