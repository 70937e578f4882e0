"""Names of topologies, the search for the largest batch, and what is refused."""

import pytest

from nim4_jax.aot import search, topologies
from nim4_jax.aot.compilation import Memory, Report

SHARDS = 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e:4x4", ("v5e", "4x4")),
        ("v5e-16", ("v5e", "4x4")),
        ("v5litepod-8", ("v5e", "2x4")),
        ("v5p-8", ("v5p", "2x2x1")),
        ("V6E-8", ("v6e", "2x4")),
    ],
)
def test_names_of_topologies(name, expected):
    """A shape, or the cloud's name, of which v5p counts cores and not chips."""
    assert topologies.normalise(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9-8", "no TPU generation 'v9'; use one of v5e"),
        ("v5e-7", "no usual shape of v5e-7; known: v5e-1 = v5e:1x1"),
        ("v5e:4by4", "'4by4' is no shape; write v5e:1x1"),
        ("v5e", "no usual shape of v5e-0"),
    ],
)
def test_topologies_that_do_not_exist(name, message):
    """The error says what there is."""
    with pytest.raises(ValueError, match=message):
        topologies.normalise(name)


class Compiler:
    """Accepts batches up to a peak that grows with the rows, now and then unevenly."""

    def __init__(self, base: float, slope: float, bump: float = 0.0):
        self.base, self.slope, self.bump = base, slope, bump
        self.asked: list[int] = []

    def peak(self, rows: int) -> float:
        return self.base + self.slope * rows + self.bump * (rows > 50)

    def __call__(self, rows: int) -> Report:
        assert rows % SHARDS == 0 and rows not in self.asked
        self.asked.append(rows)
        peak = self.peak(rows)
        memory = Memory(1.0, 2.0, 0.1, peak - 3.1, 0.0, peak, 16.0)
        fits = peak <= 16.0
        return Report(
            "train_step", "v5e:2x2", {"data": 1, "fsdp": 4, "tensor": 1}, "full", rows,
            15.0, 256, memory if fits else None, "" if fits else "Used 99G of 16G hbm.",
            {"llm": 1e15}, {}, {"0.4": 1.0}, 15.0 * rows, 350.0 * rows, 1.0, 2.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    "compiler",
    [
        Compiler(4.0, 0.1),
        Compiler(4.0, 0.1, bump=3.0),
        Compiler(4.0, 1.0),
        Compiler(15.0, 0.2),
    ],
)
@pytest.mark.parametrize("begin", [4, 32, 300])
def test_the_largest_batch_that_fits(compiler, begin):
    """Within a tenth of the true one, or as near as five compilations come."""
    compiler.asked.clear()
    report = search.find_largest(compiler, begin, SHARDS)
    assert report.fits and len(compiler.asked) <= 5
    true = max(n for n in range(SHARDS, 2000, SHARDS) if compiler.peak(n) <= 16.0)
    assert report.rows <= true
    assert report.rows >= 0.6 * true or true - report.rows <= SHARDS


def test_where_nothing_fits_the_refusal_is_told():
    """The compiler's words, and what might help."""
    report = search.find_largest(Compiler(17.0, 1.0), 16, SHARDS)
    assert not report.fits
    message = search.advise(report)
    assert "Used 99G of 16G hbm." in message and "--search" in message
    assert "does not fit: Used 99G" in search.format_report(report)
