"""Tokenizers: nothing is lost, and text never becomes a special token."""

import json
import pickle
from importlib import resources

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from nim4_jax.configs import base
from nim4_jax.data.corpora import grammar
from nim4_jax.launch import train_tokenizer
from nim4_jax.model_files.loading import find_tokenizer
from nim4_jax.text.tokenizer import SPECIALS, Tokenizer, list_common_chinese, train

PACKAGED = resources.files("nim4_jax.text") / "resources" / "nano_tokenizer.json"
TEXTS = ["navigate to paris", "导航去故宫", "play yellow by coldplay", "播放 hello"] * 5
_HARD = (
    "<|im_end|> <|im_start|> <|endoftext|> <0x41> <think> ▁ Ġ \x00 导航 play 😀 é "
    "e\u0301"
)
PIECES = st.sampled_from([*_HARD.split(" "), " ", "\n", "\u3000", "\r\n"])
ANYTHING = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=8).map("".join))


def train_byte_level() -> str:
    """A small tokenizer.json of Qwen's kind: byte-level BPE, specials added behind."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(TEXTS, trainer)
    engine.add_special_tokens([*SPECIALS])
    engine.add_tokens(["<think>"])
    return engine.to_str()


SMALL = train(TEXTS, 420)
QWEN_STYLE = Tokenizer(train_byte_level())
BOTH = pytest.mark.parametrize(
    "tokenizer", [SMALL, QWEN_STYLE], ids=["byte_fallback", "byte_level"]
)


@BOTH
@settings(max_examples=300, deadline=None)
@given(text=ANYTHING)
def test_round_trip_without_special_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert not {tokenizer.special_id(name) for name in SPECIALS} & set(ids)


@BOTH
def test_special_tokens(tokenizer):
    assert tokenizer.special_id("<|im_end|>") == tokenizer.end_id
    assert tokenizer.special_id("<|endoftext|>") == tokenizer.pad_id
    ids = [tokenizer.pad_id, *tokenizer.encode("play"), tokenizer.end_id, 10**6, -1]
    assert tokenizer.decode(ids) == "play"
    with pytest.raises(ValueError, match=r"unknown special token '<\|x\|>'; known are"):
        tokenizer.special_id("<|x|>")


@BOTH
def test_lone_surrogates_do_not_raise(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


@BOTH
def test_save_load_and_pickle(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    for again in (Tokenizer.from_file(path), pickle.loads(pickle.dumps(tokenizer))):
        assert again.sha256 == tokenizer.sha256
        assert again.vocab_size == tokenizer.vocab_size
        assert again.encode("play 导航") == tokenizer.encode("play 导航")


def test_added_tokens_of_a_foreign_file_are_not_written_by_text():
    assert len(QWEN_STYLE.encode("<think>")) > 1
    assert QWEN_STYLE.vocab_size == QWEN_STYLE.special_id("<think>") + 1


def test_every_chinese_character_of_the_texts_is_one_token():
    assert len(SMALL.encode("导航去故宫播放")) == 7
    assert len(SMALL.encode("龘")) == 3  # bytes
    assert SMALL.vocab_size <= 420


def test_template_words_are_learned_first():
    roomy = train(TEXTS, 600)
    assert len(roomy.encode("\nTranscribe the speech into text.")) == 7


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(ValueError, match=r"vocab_size 100 is too small.*need 3"):
        train(TEXTS, 100)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": 1}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json: expected the content"):
        Tokenizer.from_file(path)


def test_a_damaged_file_is_named(tmp_path):
    """Bytes that are no UTF-8; ids that are no numbers; no vocabulary at all."""
    path = tmp_path / "broken.json"
    train(TEXTS, 2_000).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:40] + b"\xff" + content[40:])
    with pytest.raises(ValueError, match=r"broken\.json: .*utf-8"):
        Tokenizer.from_file(path)
    spec = json.loads(content)
    spec["added_tokens"][0]["id"] = "0"
    path.write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=r"broken\.json: ids of added tokens"):
        Tokenizer.from_file(path)
    spec = json.loads(content)
    spec["model"] |= {"vocab": {}, "merges": []}
    path.write_text(json.dumps(spec))
    assert Tokenizer.from_file(path).encode("a") == []


def test_a_tokenizer_without_chatml_is_refused(tmp_path):
    spec = json.loads(train_byte_level())
    spec["added_tokens"] = spec["added_tokens"][:1]
    with pytest.raises(ValueError, match="lacks the special tokens"):
        Tokenizer(json.dumps(spec))


def test_packaged_tokenizer_covers_the_grammar():
    tokenizer = Tokenizer.from_file(PACKAGED)
    assert tokenizer.vocab_size == 2048
    for command in grammar.iterate_texts(11, 500):
        ids = tokenizer.encode(command.text)
        assert tokenizer.decode(ids) == command.text
        assert min(ids) >= 259, f"bytes are needed for {command.text!r}"


def test_rare_characters_are_spelled_and_listed_ones_are_not():
    made = train([*TEXTS, "龘", "打开"], 600, least=2, listed="鑫")
    assert [len(made.encode(text)) for text in ("导航", "鑫", "龘", "开")] == [
        2,
        1,
        3,
        3,
    ]
    figures = made.measure(["导航", "龘"])
    assert figures == {"texts": 2, "characters_per_token": 0.6, "byte_share": 0.6}


def test_packaged_bilingual_tokenizer():
    """Case and marks in few tokens, every common character in one; fits its LLM."""
    made = Tokenizer.from_file(find_tokenizer("base"))
    assert made.vocab_size == base.get_config("base").model.llm.vocab_size
    common = list_common_chinese()
    assert len(common) == 3755 and len(made.encode(common)) == 3755
    text = "The weather's fine today, isn't it? I'd like 25% off."
    assert made.decode(made.encode(text)) == text
    assert len(made.encode(text)) <= 24
    assert made.measure(["Éclair, 龘, 北京。"])["byte_share"] > 0
    assert len(made.encode("\nTranscribe the speech into text.")) == 7


def test_command_trains_from_text_files(tmp_path, capsys):
    lines, out = tmp_path / "lines.txt", tmp_path / "tokenizer.json"
    rows = [f"Number {n} is fine. 好" for n in range(600)]
    lines.write_text("\n".join(rows), encoding="utf8")
    train_tokenizer.main(
        f"--text={lines} --vocab_size=500 --most=99 --least=2 --out={out}".split()
    )
    figures = json.loads(capsys.readouterr().out)
    assert figures["texts"] == 99
    assert figures["held_out"]["mixed"]["texts"] > 0
    assert out.read_text(encoding="utf8").count("\n") == 0
    assert Tokenizer.from_file(out).sha256 == figures["sha256"]


def test_command_trains_from_manifest_and_grammar(tmp_path, capsys):
    manifest, out = tmp_path / "train.jsonl", tmp_path / "tokenizer.json"
    rows = [
        {"text": "打开车窗", "domain": "command"},
        {"text": "鑫", "domain": "other"},
    ]
    manifest.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    train_tokenizer.main(
        f"--manifest={manifest} --domain=command --grammar=50 --vocab_size=900 "
        f"--out={out}".split()
    )
    assert json.loads(capsys.readouterr().out)["texts"] == 51
    tokenizer = Tokenizer.from_file(out)
    assert len(tokenizer.encode("打开车窗")) == 4
    assert len(tokenizer.encode("鑫")) == 3


def test_command_names_file_and_line_of_bad_input(tmp_path):
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text('{"text": "a"}\n{"no": 1}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: expected a JSON object"):
        train_tokenizer.main([f"--manifest={manifest}", f"--out={tmp_path / 'x'}"])


def test_command_without_texts_says_what_to_give(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_tokenizer.main([f"--out={tmp_path / 'x'}"])
    assert "give --manifest=FILE or --grammar=COUNT" in capsys.readouterr().err
