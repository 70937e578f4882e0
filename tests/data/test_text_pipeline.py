"""Text-only batches: laws 2 and 3, and what does not fit is counted."""

import json

import numpy as np
import pytest

from nim4_jax.context.choose import HintConfig
from nim4_jax.data.corpora import grammar, inserted_names, open_names
from nim4_jax.data.pipeline import text_pipeline
from nim4_jax.data.pipeline.iterators import OtherDataError
from nim4_jax.data.pipeline.text_pipeline import TextConfig
from nim4_jax.model_files.loading import find_tokenizer
from nim4_jax.text.tokenizer import Tokenizer

TOKENIZER = find_tokenizer("nano")


def make_config(**changes):
    values = {
        "sources": ("grammar:commands",),
        "tokenizer": TOKENIZER,
        "batch_size": 8,
        "window": 3,
    }
    return TextConfig(**{**values, **changes})


def take(count, config, **place):
    data = text_pipeline.make_text_iterator(config, **place)
    return [next(data) for _ in range(count)]


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.fixture(params=["grammar", "files"])
def config(request, tmp_path):
    """The grammar alone; or weighted files beside it, with names put in and hints."""
    if request.param == "grammar":
        return make_config()
    english = [f"b\tShe told {n} of them what Marta Quill said." for n in range(60)]
    path = tmp_path / "lines.tsv"
    path.write_text("\n".join([*english, *["a\t他说你好"] * 20, "broken"]))
    return make_config(
        sources=(("grammar:commands", 0.5), (f"{path}?tag=b", 2.0), f"{path}?tag=a"),
        max_phonemes=(14, 28, 60),
        max_tokens=(12, 30, 50),
        open_names=0.5,
        hints=HintConfig(),
        style="written",
    )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_divide_the_same_global_batches(hosts, config):
    whole = take(5, config)
    parts = [take(5, config, rank=rank, hosts=hosts) for rank in range(hosts)]
    for step, batch in enumerate(whole):
        rows = [part[step] for part in parts]
        joined = {name: np.concatenate([row[name] for row in rows]) for name in batch}
        assert_equal(batch, joined)


def test_a_restored_iterator_goes_on_as_if_undisturbed(config):
    whole = take(7, config)
    first = text_pipeline.make_text_iterator(config)
    for _ in range(4):
        next(first)
    second = text_pipeline.make_text_iterator(config)
    second.set_state(json.loads(json.dumps(first.get_state())))
    for step in range(4, 7):
        assert_equal(whole[step], next(second))


def test_texts_are_training_texts_and_each_index_comes_once():
    config = make_config()
    tokenizer = Tokenizer.from_file(TOKENIZER)
    seen = []
    for batch in take(6, config):
        seen.extend(batch["index"].tolist())
        for ids, mask in zip(batch["tokens"], batch["tokens_mask"]):
            kept = ids[mask].tolist()
            assert kept[-1] == tokenizer.end_id
            assert not grammar.is_held_out(tokenizer.decode(kept[:-1]))
    assert sorted(seen) == list(range(48))


def test_texts_that_do_not_fit_are_counted_and_replaced(tmp_path):
    path = tmp_path / "texts.jsonl"
    texts = ["call anna", "open the window " * 30, "?!"]
    lines = [{"audio": "a.wav", "text": text, "lang": "en"} for text in texts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = text_pipeline.make_text_iterator(make_config(sources=(str(path),)))
    batch = next(data)
    assert (batch["tokens_mask"].sum(1) == batch["tokens_mask"].sum(1)[0]).all()
    assert set(data.report.counts) == {"too many labels", "no phoneme"}


def test_only_texts_that_do_not_fit_is_an_error(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "text": "?!", "lang": "en"}) + "\n")
    data = text_pipeline.make_text_iterator(make_config(sources=(str(path),)))
    with pytest.raises(ValueError, match="texts in a row do not fit"):
        next(data)


def test_open_names_are_hinted_at_and_never_the_held_out_ones():
    config = make_config(
        open_names=0.7, hints=HintConfig(p_none=0.3), suffix_tokens=40, batch_size=32
    )
    tokenizer = Tokenizer.from_file(TOKENIZER)
    hinted, opened = 0, 0
    names = (
        name for lists in grammar.WORDLISTS for name in grammar.load_wordlist(lists)
    )
    listed = {word for name in names for word in name.split()}
    for batch in take(6, config):
        assert batch["suffix"].shape == (32, 40)
        for row in range(32):
            answer = batch["tokens"][row][batch["tokens_mask"][row]].tolist()
            text = tokenizer.decode(answer[:-1])
            suffix = batch["suffix"][row][batch["suffix_mask"][row]].tolist()
            prompted = tokenizer.decode(suffix).partition("hints: ")[2].partition(".")
            for name in filter(None, prompted[0].split(", ")):
                hinted += name in text
                unlisted = set(name.split()) - listed
                opened += bool(unlisted)
                assert not any(map(open_names.is_held_out, unlisted))
    assert hinted > 50 and opened > 50


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_held_out_names_are_apart(lang):
    rng = np.random.default_rng(0)
    drawn = [
        {open_names.sample(rng, lang, held_out) for _ in range(400)}
        for held_out in (False, True)
    ]
    assert not drawn[0] & drawn[1]
    for held_out, names in zip((False, True), drawn):
        words = {word for name in names for word in name.split()}
        assert {open_names.is_held_out(word) for word in words} == {held_out}


def make_lines(tmp_path, lines, name="lines.txt"):
    path = tmp_path / name
    path.write_text("\n".join(lines))
    return str(path)


def test_sources_are_drawn_as_their_weights_say(tmp_path):
    paths = [make_lines(tmp_path, [word] * 9, f"{word}.txt") for word in "ab"]
    sources = ((paths[0], 3.0), (paths[1], 1.0))
    tokenizer = Tokenizer.from_file(TOKENIZER)
    texts = [
        tokenizer.decode(row[mask][:-1])
        for batch in take(25, make_config(sources=sources))
        for row, mask in zip(batch["tokens"], batch["tokens_mask"])
    ]
    assert set(texts) == {"A.", "B."}
    assert 0.65 < texts.count("A.") / len(texts) < 0.85


def test_held_out_texts_are_never_trained_on(tmp_path):
    path = make_lines(tmp_path, [f"sentence {number}" for number in range(900)])
    with pytest.raises(ValueError, match=r"split=dev.*held-out"):
        text_pipeline.make_text_iterator(make_config(sources=(f"{path}?split=dev",)))
    with pytest.raises(ValueError, match="every weight must be above 0"):
        text_pipeline.make_text_iterator(make_config(sources=((path, 0.0),)))


def test_other_lines_are_no_resumed_run(tmp_path):
    path = make_lines(tmp_path, ["one", "two"])
    config = make_config(sources=(path,))
    state = text_pipeline.make_text_iterator(config).get_state()
    make_lines(tmp_path, ["one", "three"])
    other = text_pipeline.make_text_iterator(config)
    with pytest.raises(OtherDataError, match="text files"):
        other.set_state(state)


def test_inserted_names_are_hinted_at_and_spelled_in_the_text(tmp_path):
    lines = ["She smiled at him.", "我觉得他会来。", "We met Anna in Paris."]
    rng = np.random.default_rng(0)
    for text in lines * 30:
        changed, names = inserted_names.insert_names(
            text, rng, lambda rng, lang: open_names.sample(rng, lang).title()
        )
        assert names and all(name in changed for name in names)
        assert "她" not in changed and "She" not in changed
    assert inserted_names.find_names(lines[2]) == ("Anna", "Paris")
    assert inserted_names.find_names("我叫Anna，用 Facebook 的。") == (
        "Anna",
        "Facebook",
    )
    assert inserted_names.insert_names("其他人都来了。", rng, lambda *_: "x")[1] == ()
