"""Hints in batches: the laws, what they say, and what has no room."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from nim4_jax.context.choose import HintConfig
from nim4_jax.context.keywords import occurs, spell
from nim4_jax.data.pipeline import iterators
from nim4_jax.data.pipeline.hints import HintData
from nim4_jax.data.pipeline.iterators import DataConfig
from nim4_jax.data.sources import manifests
from nim4_jax.model_files.loading import find_tokenizer
from nim4_jax.text import prompt
from nim4_jax.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_file(find_tokenizer("nano"))
PEOPLE = ("anna reed", "oscar collins", "王芳", "李娜", "luna parker", "张伟")
STEPS = 12


@pytest.fixture(scope="module")
def config(corpus_path, tmp_path_factory) -> DataConfig:
    """The tones, said to be calls; two thirds of them name somebody."""
    folder = tmp_path_factory.mktemp("hints")
    source = manifests.Manifest(str(corpus_path))
    rows = []
    for number in range(len(source)):
        name = PEOPLE[number % len(PEOPLE)] if number % 3 else ""
        record = source[number]
        rows.append(
            {
                "audio": record["audio"],
                "duration": record["duration"],
                "text": f"call {name}" if name else "go home",
                "keywords": [name] if name else [],
            }
        )
    path = folder / "calls.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    names = folder / "names.txt"
    names.write_text("ana read\nnobody's name\n", encoding="utf8")
    return DataConfig(
        sources=(str(path),),
        batch_size=(8, 4),
        bucket_seconds=(1.1, 2.0),
        needs=("tokens",),
        nonspeech_share=0.2,
        tokenizer=find_tokenizer("nano"),
        hints=HintData(
            draw=HintConfig(extra=2, most=4),
            names=str(names),
            suffix_tokens=40,
            wanted_tokens=16,
        ),
        seed=3,
    )


def take(config: DataConfig, count: int = STEPS, **place) -> list[dict]:
    iterator = iterators.make_train_iterator(config, **place)
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def read(batch: dict, name: str, row: int) -> list[int]:
    return batch[name][row][batch[f"{name}_mask"][row]].tolist()


def find_hints(batch: dict, row: int) -> list[str]:
    text = TOKENIZER.decode(read(batch, "suffix", row))
    _, _, listed = text.partition("Contextual hints: ")
    return listed.partition(".")[0].split(", ") if listed else []


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


@pytest.mark.parametrize("hosts", [2, 4])
def test_law_3_hosts_and_threads_change_no_hint(config, hosts):
    whole = take(config)
    shares = [
        take(replace(config, threads=rank), rank=rank, hosts=hosts)
        for rank in range(hosts)
    ]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in batch}
        assert_same(joined, batch)


def test_law_2_a_restored_iterator_draws_the_same(config):
    whole = take(config)
    first = iterators.make_train_iterator(config)
    for _ in range(5):
        next(first)
    state = first.get_state()
    first.close()
    second = iterators.make_train_iterator(config)
    second.set_state(state)
    for batch in whole[5:]:
        assert_same(next(second), batch)
    second.close()


def test_prompts_name_what_is_said_what_is_alike_and_nothing(config):
    kinds: Counter[str] = Counter()
    corpus = iterators.open_corpus(config)
    for batch in take(config, 40):
        for row, index in enumerate(batch["index"]):
            said = spell(corpus[int(index)]["text"])
            hints = find_hints(batch, row)
            true = [hint for hint in hints if occurs(spell(hint), said)]
            wanted = prompt.decode_names(
                TOKENIZER.decode, read(batch, "wanted", row), TOKENIZER.end_id
            )
            assert sorted(wanted) == sorted(true)
            assert len(hints) == len(set(hints)) <= 4
            if not said:
                kinds["silence"] += 1
                assert not true
            kinds["none" if not hints else "true" if true else "false"] += 1
            kinds["listed"] += "ana read" in hints
    assert min(kinds[kind] for kind in ("none", "true", "false", "listed")) > 10
    assert kinds["silence"] > 10


def test_epochs_draw_anew(config):
    plan = iterators.make_train_iterator(config)
    first = plan.plan.count_steps(1)
    batches = [next(plan) for _ in range(2 * first)]
    plan.close()
    hints: dict[int, set] = {}
    for batch in batches:
        for row, index in enumerate(batch["index"]):
            hints.setdefault(int(index), set()).add(tuple(find_hints(batch, row)))
    assert sum(len(drawn) > 1 for drawn in hints.values()) > len(hints) / 2


def test_important_names_are_wanted_without_being_named(config, tmp_path):
    path = tmp_path / "important.txt"
    path.write_text("王芳\n", encoding="utf8")
    silent = HintConfig(p_none=1.0, p_misleading=0.0)
    hints = replace(config.hints, draw=silent, important=str(path))
    corpus = iterators.open_corpus(config)
    found = 0
    for batch in take(replace(config, hints=hints)):
        for row, index in enumerate(batch["index"]):
            assert not find_hints(batch, row)
            wanted = read(batch, "wanted", row)
            said = "王芳" in corpus[int(index)]["text"]
            assert wanted == (prompt.encode_names(TOKENIZER, ["王芳"]) if said else [])
            found += said
    assert found


def test_what_has_no_room_is_left_out_whole(config):
    bare = len(prompt.encode_suffix(TOKENIZER))
    narrow = replace(config, hints=replace(config.hints, suffix_tokens=bare + 9))
    known = {*PEOPLE, "ana read", "nobody's name"}
    for batch in take(narrow):
        for row in range(len(batch["index"])):
            assert set(find_hints(batch, row)) <= known
    with pytest.raises(ValueError, match="hold no prompt"):
        take(replace(config, hints=replace(config.hints, suffix_tokens=3)))


def test_other_hints_are_another_plan(config):
    first = iterators.make_train_iterator(config)
    draw = HintConfig(p_none=0.5)
    other = replace(config, hints=replace(config.hints, draw=draw))
    second = iterators.make_train_iterator(other)
    with pytest.raises(ValueError, match="not that of the checkpoint"):
        second.set_state(first.get_state())


def test_a_list_that_is_not_there_is_named(config):
    hints = replace(config.hints, names="/nowhere/names.txt")
    with pytest.raises(ValueError, match="no list of names at /nowhere"):
        iterators.make_train_iterator(replace(config, hints=hints))
    with pytest.raises(ValueError, match="need tokens"):
        iterators.make_train_iterator(replace(config, needs=(), tokenizer=None))


def test_long_recordings_are_heard_more_often(config):
    plain = replace(config, hints=None, nonspeech_share=0.0)
    long = replace(plain, long_seconds=1.3, long_weight=2.0)
    counts = []
    for chosen in (plain, long):
        iterator = iterators.make_train_iterator(chosen)
        batches = iterator.plan.epoch(0)
        heard = Counter(
            int(index)
            for batch in batches
            for index in batch.indices[: len(batch.indices) - batch.repeated]
        )
        counts.append(heard)
        iterator.close()
    seconds = {i: 0.5 + 0.05 * i for i in range(22)}
    for index, length in seconds.items():
        assert counts[0][index] == 1
        assert counts[1][index] == (3 if length >= 1.3 - 1e-9 else 1)
    with pytest.raises(ValueError, match="long_weight"):
        iterators.make_train_iterator(replace(plain, long_weight=-1.0))
