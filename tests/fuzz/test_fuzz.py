"""A run of the fuzzer: nothing but what readers document; see fuzz.py for long ones."""

import random
from pathlib import Path

import pytest

from nim4_jax.data.audio import ffmpeg

# What Orbax leaves behind where one of many reads fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)


@pytest.fixture
def modules(monkeypatch):
    """fuzz.py and its neighbours, which are a program and no package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(ffmpeg, "find", lambda: None)  # the same with and without
    import fuzz
    import mutation
    import seeds

    return fuzz, mutation, seeds


def run(modules, folder: Path, numbers: range) -> None:
    fuzz, _, seeds = modules
    account = fuzz.run(seeds.make_targets(folder), folder, 0, numbers)
    assert account.count == len(numbers)
    assert not account.errors, "\n".join(map(str, account.errors.items()))
    assert not account.grown or max(account.grown)[0] < 300


def test_every_format_is_read_or_its_error_comes(modules, tmp_path):
    """Each format some forty times; the same inputs in every run."""
    run(modules, tmp_path, range(3000))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_more_inputs(modules, tmp_path):
    run(modules, tmp_path, range(3000, 40_000))


def test_an_input_hangs_on_its_number_alone(modules, tmp_path):
    fuzz, mutation, _ = modules
    targets = {name: fuzz.Target((b"abc" * 50,), None) for name in "xy"}
    first = [fuzz.make_input(targets["x"], 0, number) for number in range(50)]
    assert first == [fuzz.make_input(targets["x"], 0, number) for number in range(50)]
    assert len({content for content, _ in first}) > 40
    kept = mutation.mutate(random.Random(0), b"", (b"",))
    assert len(kept) <= 1 << 16


def test_what_is_not_documented_is_counted(modules, tmp_path):
    """By its kind, with the numbers that repeat it; a slow input as well."""
    fuzz, _, _ = modules

    def read(folder, content, seed):
        raise BaseException("panic") if len(content) % 2 else OSError("none")

    account = fuzz.run({"bad": fuzz.Target((b"abcd",), read)}, tmp_path, 0, range(20))
    kinds = {what.partition(" ")[0] for _, what in account.errors}
    assert kinds == {"BaseException", "OSError"}
    assert sum(map(len, account.errors.values())) == 20
