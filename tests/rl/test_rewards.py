"""Rewards by a table: what each script, silence and a missed name are worth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import error_rates
from nim4_jax.rl import rewards
from nim4_jax.rl.rewards import RewardConfig, Sample
from nim4_jax.text.normalise import normalise

TEXTS = st.lists(
    st.sampled_from(["open", "window", "NIO", "打", "开", "窗户", "二十五", ",", "嗯"]),
    max_size=8,
).map(" ".join)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "lang", "cer", "hallucination"),
    [
        # Casing, punctuation, width, contractions and spelling do not count.
        ("Open the window.", "open the window", "en", 0, 0),
        ("Don't open it!", "do not open it", "en", 0, 0),
        ("my favourite colour", "My favorite color", "en", 0, 0),
        ("twenty five degrees", "25 degrees", "en", 0, 0),
        ("打开窗户。", "打开 窗户", "zh", 0, 0),
        ("二十五度", "25度", "zh", 0, 0),
        ("播放Hotel California", "播放 ｈｏｔｅｌ california！", "mixed", 0, 0),
        # CER is in characters, for English too; the space between words is one.
        ("open the window", "open the widow", "en", 1 / 15, 0),
        ("open the window", "openthe window", "en", 1 / 15, 0),
        ("打开窗户", "打开车户", "zh", 1 / 4, 0),
        ("播放Yesterday", "播放yesterdays", "mixed", 1 / 11, 0),
        ("播放 Hotel California", "播放hotelcalifornia", "zh", 0, 0),
        # The length is in words and Chinese characters; the bounds are allowed.
        ("stop now", "stop now please do", "en", 10 / 8, 0),
        ("stop now", "stop now please do it", "en", 13 / 8, -1),
        ("打开窗户", "打开", "zh", 2 / 4, 0),
        ("打开窗户", "打", "zh", 3 / 4, -1),
        ("打开", "打开窗户门", "zh", 3 / 2, -1),
        ("播放jazz音乐", "播放jazz音乐" + "jazz" * 3, "mixed", 12 / 8, 0),
        ("播放jazz音乐", "播放jazz音乐" + " jazz" * 6, "mixed", 29 / 8, -1),
        ("sit", "a b c", "en", 5 / 3, -1),
        ("stop now", "", "en", 1, -1),
        ("打开窗户", "。", "zh", 1, -1),
    ],
)
def test_accuracy_and_length(reference, hypothesis, lang, cer, hallucination):
    got = rewards.score(Sample(reference, lang), hypothesis)
    assert got.accuracy == pytest.approx(math.exp(-2 * cer))
    assert got.hallucination == hallucination
    assert got.context == 0.0
    assert got.total == pytest.approx(got.accuracy + 0.5 * hallucination)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "accuracy", "hallucination"),
    [
        ("", "", 1.0, 0.0),
        ("", "  \n", 1.0, 0.0),
        (" ", "thank you for watching", 0.0, -1.0),
        ("", "谢谢", 0.0, -1.0),
        # Of silence even what normalisation takes away is too much …
        ("", ".", 0.0, -1.0),
        ("", "(noise)", 0.0, -1.0),
        # … but a filler may be written or not.
        ("um", "uh", 1.0, 0.0),
        ("um", "", 1.0, 0.0),
        ("um", "hello", 0.0, -1.0),
    ],
)
@pytest.mark.parametrize("lang", ["en", "zh", "mixed", "auto"])
def test_silence(reference, hypothesis, accuracy, hallucination, lang):
    got = rewards.score(Sample(reference, lang), hypothesis)
    assert (got.accuracy, got.hallucination) == (accuracy, hallucination)


@pytest.mark.parametrize("hypothesis", ["", "嗯", "嗯嗯。"])
@pytest.mark.parametrize("lang", ["zh", "mixed", "auto"])
def test_a_chinese_filler_may_be_written_or_not(hypothesis, lang):
    got = rewards.score(Sample("嗯。", lang), hypothesis)
    assert (got.accuracy, got.hallucination) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("keywords", "hypothesis", "lang", "expected"),
    [
        ((), "anything", "en", 0.0),
        (("NIO House",), "Drive to nio house.", "en", 0.5),
        (("NIO House",), "Drive to nio, house!", "en", 0.5),
        (("NIO House",), "drive to nio", "en", -0.5),
        (("NIO", "Bob"), "nio is here", "en", 0.0),
        (("NIO", "Bob", "Ann"), "nio and bob", "en", 0.5 / 3),
        # English names are whole words, Chinese ones are not.
        (("nio",), "minions", "en", -0.5),
        (("art",), "start", "en", -0.5),
        (("art",), "the art's", "en", 0.5),
        (("西湖",), "去杭州西湖边", "zh", 0.5),
        (("西湖",), "去东西的湖", "zh", -0.5),
        (("NIO",), "去NIO中心", "zh", 0.5),
        (("NIO",), "去NIOs中心", "zh", -0.5),
        (("NIO中心",), "去 nio 中心 吧", "mixed", 0.5),
        (("NIO中心",), "去senio中心", "mixed", -0.5),
        (("西湖", "Hotel California"), "在西湖播放hotel california", "mixed", 0.5),
        # Numbers are whole, and read as the rest of the text is.
        (("Model 3",), "the model three please", "en", 0.5),
        (("Model 3",), "the model thirty please", "en", -0.5),
        (("五道口",), "去5道口", "zh", 0.5),
        (("百货大楼",), "去第一百货大楼", "zh", 0.5),
        (("Seven Eleven",), "at ten seven eleven", "en", 0.5),
        # Equal names count once; what normalisation empties is no name.
        (("NIO", "nio!", "Bob"), "nio", "en", 0.0),
        (("uh", "…", ""), "hello", "en", 0.0),
        (("uh", "Bob"), "hello bob", "en", 0.5),
        (("C++ (the language)",), "c++", "en", 0.5),
        (("NIO",), "", "en", -0.5),
    ],
)
def test_context(keywords, hypothesis, lang, expected):
    got = rewards.score_context(keywords, hypothesis, lang)
    assert got == pytest.approx(expected)


def test_important_names_count_when_not_prompted():
    text = "call Ann and Bob"
    for prompted, important, expected in (
        (("Ann",), (), 0.5),
        (("Bob",), (), -0.5),
        (("Ann",), ("Bob",), 0.0),
        (("Ann",), ("ann", "Bob"), 0.0),
        ((), ("Bob",), -0.5),
        ((), (), 0.0),
    ):
        sample = Sample(text, "en", prompted, important)
        got = rewards.score(sample, "call Ann and Rob")
        assert got.context == expected
        assert got.total == pytest.approx(math.exp(-2 / 16) + 0.5 * expected)


def test_the_best_and_the_worst():
    sample = Sample("导航到西湖", "zh", prompted=("西湖",))
    assert rewards.score(sample, "导航到西湖。").total == 1.25
    worst = rewards.score(sample, "thank you " * 6)
    assert (worst.hallucination, worst.context) == (-1.0, -0.5)
    assert worst.total == pytest.approx(-0.75, abs=1e-3)


def test_weights_and_bounds_are_settings():
    sample = Sample("stop now", "en", prompted=("now",))
    text = "stop now please do it"
    config = RewardConfig(2.0, 3.0, 0.25, steepness=1.0, longest=4.0, keyword=1.0)
    got = rewards.score(sample, text, config)
    assert (got.hallucination, got.context) == (0.0, 1.0)
    assert got.total == pytest.approx(2.0 * math.exp(-13 / 8) + 0.25)
    strict = rewards.score(sample, text, RewardConfig(0.0, 3.0, 0.0, longest=1.0))
    assert strict.total == -3.0


@pytest.mark.parametrize("lang", ["en", "zh", "mixed", "auto"])
@given(reference=TEXTS, hypothesis=TEXTS)
def test_rewards_are_bounded_and_best_for_the_reference(lang, reference, hypothesis):
    sample = Sample(reference, lang, prompted=("NIO", "窗户"))
    got, best = (rewards.score(sample, text) for text in (hypothesis, reference))
    assert best.accuracy == 1.0 and best.hallucination == 0.0
    assert 0.0 <= got.accuracy <= 1.0 and abs(got.context) <= 0.5
    assert -0.75 <= got.total <= 1.25
    if lang == "zh" and normalise(reference, lang):
        rate = error_rates.score_text(reference, hypothesis, lang).percent / 100
        assert got.accuracy == pytest.approx(math.exp(-2 * rate))


@pytest.mark.parametrize("lang", ["en", "zh", "mixed"])
@given(text=TEXTS, before=TEXTS, after=TEXTS)
def test_a_name_that_stands_there_is_present(lang, text, before, after):
    """Whatever the words around it make of its numbers."""
    expected = 0.5 if normalise(text, lang) else 0.0
    whole = f"{before} {text} {after}"
    assert rewards.score_context([text], whole, lang) == expected


def test_auto_is_decided_by_the_reference():
    """An English reference keeps its rules when the hypothesis is Chinese."""
    for reference, lang in (("up 50 percent", "en"), ("涨百分之五十", "mixed")):
        for hypothesis in ("up 50%", "涨50%", "五十"):
            auto = rewards.score(Sample(reference), hypothesis)
            assert auto == rewards.score(Sample(reference, lang), hypothesis)


def test_groups_are_scored_one_by_one():
    samples = [Sample("打开窗户", "zh"), Sample("", "en"), Sample("call Bob", "en")]
    texts = [["打开窗户", "打"], ["", "you"], ["call Bob", "call Rob"]]
    got = rewards.score_groups(samples, texts)
    for name in ("accuracy", "hallucination", "context", "total"):
        array = getattr(got, name)
        assert array.shape == (3, 2) and array.dtype == np.float32
        single = [
            [getattr(rewards.score(sample, text), name) for text in group]
            for sample, group in zip(samples, texts)
        ]
        np.testing.assert_allclose(array, single, rtol=1e-6)
    halved = rewards.score_groups(samples, texts, RewardConfig(accuracy=0.5))
    difference = got.total - halved.total
    np.testing.assert_allclose(difference, 0.5 * got.accuracy, rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "texts", "message"),
    [
        (2, [["a"]], "2 utterances with 1 groups"),
        (2, [["a"], ["a", "b"]], r"groups of \[1, 2\] transcripts"),
        (1, [[]], r"groups of \[0\] transcripts"),
        (0, [], r"groups of \[\] transcripts"),
    ],
)
def test_uneven_groups_are_refused(count, texts, message):
    with pytest.raises(ValueError, match=message):
        rewards.score_groups([Sample("a", "en")] * count, texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accuracy": -1.0}, r"reward\.accuracy=-1.0 must be a number ≥ 0"),
        ({"context": math.nan}, r"reward\.context=nan must be"),
        ({"longest": 0.9}, "at most and at least 1"),
        ({"shortest": 1.1}, "at most and at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**settings)


def test_an_unknown_language_lists_the_known():
    for call in (
        lambda: rewards.score(Sample("x", "fr"), "x"),
        lambda: rewards.score_context(["x"], "x", "fr"),
    ):
        with pytest.raises(ValueError, match=r"unknown language 'fr'.*'en', 'zh'"):
            call()
