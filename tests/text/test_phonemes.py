"""The inventory is closed, and any text becomes phonemes without an error."""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.text import g2p, mandarin
from nim4_jax.text.phonemes import (
    BLANK,
    INVENTORY,
    INVENTORY_HASH,
    PHONEME_IDS,
    encode_phonemes,
    phonemize,
    phonemize_words,
)

_WRITTEN = (
    "导航去 银行 Starbucks café don't BMW U.S. 5G 2024年 3.5% $3.50 ¥2 8:05 -7 21st "
    "C++ 138-1234-5678 1,234 1990s 😀 \u200b \ufffd ß Ⅷ ½ 한국어 ê 𠀀 嗯 ， '"
)
PIECES = st.sampled_from([*_WRITTEN.split(), " "])
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(PIECES, max_size=10).map("".join),
    st.lists(PIECES, max_size=10).map(" ".join),
)


def spoken(text: str) -> str:
    return " ".join(phonemize(text))


def test_inventory_is_fixed():
    # ids are stored in checkpoints: a new hash here breaks every one of them
    assert INVENTORY[0] == BLANK
    assert len(INVENTORY) == len(set(INVENTORY)) == 246
    assert INVENTORY_HASH == (
        "03b901ed4f2f2927777f46f3b4d6728fe660d8a9f4936a3bf1110ebc97ac5590"
    )
    assert [PHONEME_IDS[name] for name in INVENTORY] == list(range(246))


def test_inventory_holds_all_of_cmudict():
    names = {name for _, reading in g2p.iterate_readings() for name in reading}
    assert names == set(g2p.ARPABET) <= set(INVENTORY)


def test_inventory_holds_every_chinese_character():
    characters = [chr(code) for code in range(0x4E00, 0xA000)]
    readings = [mandarin.pronounce_characters(one)[0] for one in characters]
    assert {name for reading in readings for name in reading} <= set(INVENTORY)
    silent = sum(not reading for reading in readings)
    assert silent < 100  # signs such as 兙 that no dictionary reads


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_text_becomes_known_phonemes(text):
    names = phonemize(text)
    assert set(names) <= set(INVENTORY) - {BLANK}
    assert encode_phonemes(text) == [PHONEME_IDS[name] for name in names]
    words = phonemize_words(text)
    assert [p for _, phonemes in words for p in phonemes] == names
    assert all(unit and phonemes for unit, phonemes in words)


@pytest.mark.parametrize("text", ["", " ", "😀", "…！？", "\x00", "한국어"])
def test_nothing_that_sounds_gives_nothing(text):
    assert phonemize(text) == [] == phonemize_words(text)


def test_code_switched_text():
    assert spoken("导航去 Starbucks 咖啡") == (
        "d ao3 h ang2 q v4 S T AA R B AH K S k a1 f ei1"
    )
    units = [unit for unit, _ in phonemize_words("导航去 Starbucks 咖啡")]
    assert units == ["导", "航", "去", "Starbucks", "咖", "啡"]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("打开5G网络", "打开五G网络"),
        ("2024年3月15日", "二零二四年三月十五日"),
        ("我有2个", "我有两个"),
        ("涨了3.5%", "涨了百分之三点五"),
        ("８：３０出发", "八点三十出发"),
        ("电话13812345678", "电话一三八一二三四五六七八"),
        ("播放 Taylor Swift 1989", "播放 Taylor Swift nineteen eighty nine"),
        ("volume 25", "volume twenty five"),
        ("call 555-1234", "call five five five one two three four"),
        ("it is 8:05", "it is eight oh five"),
        ("$2", "two dollars"),
        ("AC & DC", "AC and DC"),
    ],
)
def test_digits_are_spoken_in_the_language_around_them(written, said):
    assert spoken(written) == spoken(said)


def test_spaces_do_not_break_the_phrase_that_gives_a_reading():
    assert spoken("银 行") == spoken("银行") == "in2 h ang2"
    assert spoken("重庆，重要") == "ch ong2 q ing4 zh ong4 iao4"


def test_article_and_letter_a_differ():
    assert spoken("A dog") == "AH D AO G"
    assert spoken("打开A门").split()[4] == "EY"


def test_shouted_text_is_no_acronym():
    assert spoken("SEND IT TO US") == spoken("send it to us")
    assert spoken("made in the US").endswith("Y UW EH S")


def test_fast_enough_after_warm_up():
    texts = [f"导航去 station {n % 50} 号" for n in range(2000)]
    for text in texts:
        phonemize(text)
    started = time.perf_counter()
    for text in texts:
        phonemize(text)
    assert time.perf_counter() - started < 1.0


def test_works_in_worker_processes():
    texts = ["导航去 Starbucks", "blorptastic 2024年"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(encode_phonemes, texts)) == [
            encode_phonemes(text) for text in texts
        ]
