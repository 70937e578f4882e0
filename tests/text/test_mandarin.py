"""Pinyin splits into one closed list, whatever pypinyin gives."""

import pytest
from pypinyin import phrases_dict, pinyin_dict
from pypinyin.contrib.tone_convert import to_tone3

from nim4_jax.text import mandarin


def test_every_syllable_of_pypinyin_splits():
    marked = {p for row in pinyin_dict.pinyin_dict.values() for p in row.split(",")}
    marked |= {
        p
        for phrase in phrases_dict.phrases_dict.values()
        for one in phrase
        for p in one
    }
    syllables = {to_tone3(p, neutral_tone_with_five=True) for p in marked}
    assert len(syllables) > 1500
    for syllable in syllables:
        *initial, final = mandarin.split_syllable(syllable)
        assert final in mandarin.TONED_FINALS
        assert initial == [] or initial[0] in mandarin.INITIALS


@pytest.mark.parametrize(
    ("syllable", "phonemes"),
    [
        ("zhang3", "zh ang3"), ("yi1", "i1"), ("you3", "iu3"), ("liu2", "l iu2"),
        ("wei4", "ui4"), ("gui4", "g ui4"), ("yu2", "v2"), ("ju2", "j v2"),
        ("lü4", "l v4"), ("lv4", "l v4"), ("lu4", "l u4"), ("yuan2", "van2"),
        ("xuan2", "x van2"), ("er2", "er2"), ("ê4", "ei4"), ("m2", "en2"),
        ("ng4", "en4"), ("hm5", "h eng5"), ("de", "d e5"), ("yo1", "io1"),
    ],
)  # fmt: skip
def test_one_sound_has_one_name(syllable, phonemes):
    assert mandarin.split_syllable(syllable) == tuple(phonemes.split())


@pytest.mark.parametrize("syllable", ["", "xyz3", "zhang9", "q4", "b"])
def test_a_wrong_syllable_is_an_error_that_says_what_is_expected(syllable):
    with pytest.raises(ValueError, match="no Mandarin syllable: expected pinyin"):
        mandarin.split_syllable(syllable)


def test_context_chooses_the_reading():
    assert mandarin.pronounce_characters("行长") == (("h", "ang2"), ("zh", "ang3"))
    assert mandarin.pronounce_characters("长江")[0] == ("ch", "ang2")


def test_our_own_phrases_are_well_formed_and_win():
    pattern, table = mandarin.load_corrections()
    for phrase, syllables in table.items():
        assert len(phrase) == len(syllables)
        assert all(mandarin.split_syllable(s) for s in syllables)
        assert pattern.match(phrase)[0] == phrase
    readings = mandarin.pronounce_characters("空调调到强调")
    assert [r[1] for r in readings] == ["ong1", "iao2", "iao2", "ao4", "iang2", "iao4"]
    assert mandarin.pronounce_characters("很长")[1] == ("ch", "ang2")


def test_an_unknown_character_is_silent_and_keeps_its_place():
    assert mandarin.pronounce_characters("一\U0002ffff人") == (
        ("i1",), (), ("r", "en2"),
    )  # fmt: skip
