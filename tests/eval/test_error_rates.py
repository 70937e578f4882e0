"""Error rates against hand-made tables, jiwer and a plain edit distance."""

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.eval.measures import error_rates
from nim4_jax.eval.measures.error_rates import Counts

WORDS = st.lists(st.sampled_from(["alpha", "bravo", "delta", "echo"]), max_size=6)
IDS = st.lists(st.integers(1, 4), max_size=8)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "lang", "expected"),
    [
        ("Open the window.", "open the window", "en", Counts(0, 0, 0, 3)),
        ("Open the window.", "open a big window", "en", Counts(1, 0, 1, 3)),
        ("Don't go", "do not go", "en", Counts(0, 0, 0, 3)),
        ("twenty five degrees", "25 degrees", "en", Counts(0, 0, 0, 2)),
        ("打开窗户。", "打开 窗户", "zh", Counts(0, 0, 0, 4)),
        ("打开窗户", "打窗护", "zh", Counts(1, 1, 0, 4)),
        ("二十五度", "25度", "zh", Counts(0, 0, 0, 3)),
        ("播放Hotel California", "播放 hotel california", "mixed", Counts(0, 0, 0, 4)),
        ("播放Hotel California", "播 hotel carolina", "mixed", Counts(1, 1, 0, 4)),
        ("", "", "en", Counts(0, 0, 0, 0)),
        ("", "two words", "en", Counts(0, 0, 2, 0)),
        ("", "两字", "zh", Counts(0, 0, 2, 0)),
        ("two words", "", "en", Counts(0, 2, 0, 2)),
        ("嗯", "", "zh", Counts(0, 0, 0, 0)),
    ],
)
def test_counts(reference, hypothesis, lang, expected):
    assert error_rates.score_text(reference, hypothesis, lang) == expected


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_a_set_is_what_jiwer_says(pairs):
    references = [" ".join(reference) for reference, _ in pairs]
    hypotheses = [" ".join(hypothesis) for _, hypothesis in pairs]
    total = error_rates.add_up(
        error_rates.score_text(reference, hypothesis, "en")
        for reference, hypothesis in zip(references, hypotheses)
    )
    theirs = jiwer.process_words(references, hypotheses)
    assert total == Counts(
        theirs.substitutions,
        theirs.deletions,
        theirs.insertions,
        theirs.hits + theirs.substitutions + theirs.deletions,
    )
    if total.reference:
        assert total.percent == pytest.approx(100 * theirs.wer)


@given(st.text("打开窗户天气", max_size=8), st.text("打开窗户天气", max_size=8))
def test_characters_are_what_jiwer_says(reference, hypothesis):
    counts = error_rates.score_text(" ".join(reference), hypothesis, "zh")
    theirs = jiwer.process_characters(reference, hypothesis)
    assert counts == Counts(
        theirs.substitutions, theirs.deletions, theirs.insertions, len(reference)
    )


@given(WORDS, WORDS)
def test_an_alignment_turns_one_into_the_other(reference, hypothesis):
    edits = error_rates.align(reference, hypothesis)
    made = list(reference)
    for tag, place, other in reversed(edits):
        if tag == "delete":
            del made[place]
        elif tag == "insert":
            made.insert(place, hypothesis[other])
        else:
            made[place] = hypothesis[other]
    assert made == hypothesis


@pytest.mark.parametrize(
    ("reference", "hypothesis", "lang", "normal", "raw"),
    [
        ("Go home.", "go home", "en", Counts(0, 0, 0, 2), Counts(2, 0, 0, 2)),
        ("Go home.", "Go home.", "en", Counts(0, 0, 0, 2), Counts(0, 0, 0, 2)),
        ("打开。", "打开", "zh", Counts(0, 0, 0, 2), Counts(0, 1, 0, 3)),
        ("播放 Hello", "播放hello", "mixed", Counts(0, 0, 0, 3), Counts(1, 0, 0, 3)),
        ("", "?", "en", Counts(0, 0, 0, 0), Counts(0, 0, 1, 0)),
        ("...", "", "en", Counts(0, 0, 0, 0), Counts(0, 1, 0, 1)),
    ],
)
def test_raw_counts_have_case_and_punctuation(reference, hypothesis, lang, normal, raw):
    assert error_rates.score_text(reference, hypothesis, lang) == normal
    assert error_rates.score_text(reference, hypothesis, lang, "raw") == raw


@given(IDS, IDS)
def test_phoneme_edits_are_the_edit_distance(reference, hypothesis):
    row = list(range(len(hypothesis) + 1))
    for i, one in enumerate(reference, start=1):
        above, row = row, [i]
        for j, other in enumerate(hypothesis, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    counts = error_rates.score_phonemes(reference, hypothesis)
    assert counts.errors == row[-1]
    assert counts.reference == len(reference)
    length = len(reference) - counts.deletions + counts.insertions
    assert length == len(hypothesis)


def test_percent_without_reference_counts_what_was_written():
    assert Counts().percent == 0.0
    assert Counts(insertions=3).percent == 300.0
    assert error_rates.add_up([]) == Counts()


@pytest.mark.parametrize(
    ("text", "lang", "found"),
    [
        ("Open the window", "auto", "en"),
        ("打开窗户", "auto", "zh"),
        ("播放 Yesterday", "auto", "mixed"),
        ("调到 25 度", "auto", "zh"),
        ("", "auto", "en"),
        ("smørrebrød på dansk", "auto", "en"),
        ("Да здравствует Łódź", "auto", "en"),
        ("привет", "auto", "en"),
        ("カラオケ", "auto", "zh"),
        ("播放 Ænima", "auto", "mixed"),
        ("½ − 5 °C", "auto", "en"),
        ("三分之一 ½", "auto", "zh"),
        ("打开 window", "zh", "zh"),
    ],
)
def test_find_language(text, lang, found):
    assert error_rates.find_language(text, lang) == found


@pytest.mark.parametrize("lang", ["de", ""])
def test_an_unknown_language_lists_the_known(lang):
    with pytest.raises(ValueError, match="mixed"):
        error_rates.find_language("x", lang)
    with pytest.raises(ValueError, match="mixed"):
        error_rates.score_text("x", "x", lang)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "lang", "expected"),
    [
        ("go home now ok", "thank you for watching that", "en", False),
        ("go home", "thank you for watching", "en", True),
        ("go home", "thank you so", "en", False),
        ("go home", "go home go home go home", "en", False),
        ("alpha bravo delta echo fox", "k l m n fox o p q", "en", True),
        ("alpha bravo delta echo fox", "k l m echo fox o p q", "en", False),
        ("打开", "请不吝点赞", "zh", True),
        ("打开", "打开打开打开", "zh", False),
        ("", "um hello", "en", True),
        ("", ".", "en", False),
        ("", "", "zh", False),
        ("go home", "", "en", False),
    ],
)
def test_hallucinations(reference, hypothesis, lang, expected):
    counts = error_rates.score_text(reference, hypothesis, lang)
    assert error_rates.is_hallucinated(counts) is expected


@given(WORDS, WORDS)
def test_hits_and_output_are_those_of_the_alignment(reference, hypothesis):
    counts = error_rates.score_text(" ".join(reference), " ".join(hypothesis), "en")
    assert counts.output == len(hypothesis)
    assert 0 <= counts.hits <= min(len(reference), len(hypothesis))


@pytest.mark.parametrize(
    ("reference", "output", "looped"),
    [
        ("", "", False),
        ("", "no no no", False),
        ("", "no no no no no no", True),
        ("", "thank you thank you thank you", True),
        ("", "thank you thank you thank", False),
        ("open it", "open the window open the window", False),
        ("", "a b c a b c a b c a", True),
        ("", "well the car is at home no no no no no no", True),
        ("", "well the car is at home now no no no no no no", False),
        ("8 8 8 8 8 8", "8 8 8 8 8 8", False),
        ("8 8 8 8", "8 8 8 8 8 8", True),
    ],
)
def test_loops(reference, output, looped):
    assert error_rates.is_looped(reference.split(), output.split()) is looped


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(3, 6))
def test_a_phrase_said_often_enough_is_a_loop_of_any_period(phrase, times):
    units = [str(unit) for unit in phrase]
    output = units * max(times, -(-6 // len(units)))
    assert error_rates.is_looped([], output)
    assert not error_rates.is_looped(output, output)
    # Twice as much that does not repeat hides it.
    rest = [f"word{number}" for number in range(len(output) + 1)]
    assert not error_rates.is_looped([], rest + output)
