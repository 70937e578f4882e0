"""Two evaluations side by side, from utterances made by hand."""

import dataclasses
import json

import pytest

from nim4_jax.eval.evaluation import SetResult, Utterance
from nim4_jax.eval.measures import entities, error_rates
from nim4_jax.eval.reports import comparison, report

SAID = ("open the window", "call anna now", "stop the music please", "go to rome")


def make_rows(hypotheses, said=SAID, name="set"):
    """Rows as hyps.jsonl has them."""
    utterances = []
    for number, (text, hypothesis) in enumerate(zip(said, hypotheses)):
        names = entities.find_present(("anna", "rome"), text, "en")
        judged = entities.judge(
            names, (*names, "dome"), (text, hypothesis), "en", frozenset({"rome"})
        )
        counts = error_rates.score_text(text, hypothesis, "en")
        utterances.append(
            Utterance(
                str(number),
                "en",
                text,
                1.0,
                hypothesis,
                -1.0,
                counts,
                entities=judged,
            )
        )
    return report.list_rows([SetResult(name, tuple(utterances), 1.0, {}, {})])


def find(made, measure):
    (line,) = [line for line in made.lines if line.measure == measure]
    return line


def test_every_measure_is_that_of_the_runs():
    a = make_rows(("open window", "call hannah now", "", "go to dome"))
    b = make_rows(SAID)
    made = comparison.compare(a, b, resamples=200)
    error = find(made, "WER").difference
    assert (error.a, error.b) == (pytest.approx(100 * 7 / 13), 0.0)
    assert find(made, "empty outputs").difference.a == 25.0
    recall = find(made, "entity recall")
    assert (recall.difference.a, recall.difference.b) == (0.0, 100.0)
    assert recall.difference.utterances == 2 and recall.verdict == "better"
    assert find(made, "recall, held out").difference.utterances == 1
    assert find(made, "hints not said").difference.a == 25.0
    assert find(made, "WER").verdict == "better"
    back = comparison.compare(b, a, resamples=200)
    assert {line.verdict for line in back.lines} == {"worse", "no difference shown"}
    assert not [line for line in made.lines if line.measure == "non-empty outputs"]


def test_equal_runs_show_no_difference():
    rows = make_rows(SAID)
    made = comparison.compare(rows, rows, resamples=50)
    assert {line.verdict for line in made.lines} == {"no difference shown"}
    assert all(line.difference.change == 0.0 for line in made.lines)


def test_what_is_written_in_silence_is_a_measure_of_its_own():
    silence = ("",) * 20
    before = make_rows(("um",) * 20, silence, "nonspeech:20")
    after = make_rows(("",) * 15 + ("um",) * 5, silence, "nonspeech:20")
    made = comparison.compare(before, after, resamples=500)
    line = find(made, "non-empty outputs")
    assert (line.difference.a, line.difference.b, line.verdict) == (100, 25, "better")
    assert line.difference.relative == -75.0
    assert not [line for line in made.lines if line.measure in ("WER", "empty outputs")]


def test_a_run_without_hints_is_asked_about_the_others():
    heard = ("go to dome", "call anna now", "stop", "go to rome")
    a = make_rows(heard)
    for row in a:
        row.pop("hints"), row.pop("unsaid"), row.pop("intruded", None)
    made = comparison.compare(a, make_rows(SAID), resamples=50)
    assert find(made, "hints not said").difference.a == 25.0


def test_utterances_are_paired_by_set_and_id():
    a, b = make_rows(SAID), make_rows(SAID)
    made = comparison.compare(a[:3], b[::-1], resamples=10)
    assert (made.only_a, made.only_b) == (0, 1)
    assert find(made, "WER").difference.utterances == 3
    assert "left out 1 utterances that only b has" in comparison.to_markdown(made)
    twice = comparison.compare([*a, *a], [*b, *b], resamples=10)
    assert find(twice, "WER").difference.utterances == 8


def test_other_sets_and_other_references_are_refused():
    a = make_rows(SAID)
    with pytest.raises(ValueError, match=r"share no utterance.*\['set'\].*\['other'\]"):
        comparison.compare(a, make_rows(SAID, name="other"))
    changed = [{**row, "reference": "else"} for row in a]
    with pytest.raises(ValueError, match="has changed between the runs"):
        comparison.compare(a, changed)


def test_tables_for_people_and_programs():
    a = make_rows(("open window", "", "", ""), name="m.jsonl?lang=en|zh")
    b = make_rows(SAID, name="m.jsonl?lang=en|zh")
    made = comparison.compare(a, b, resamples=100)
    rows = comparison.to_markdown(made).splitlines()
    assert {row.replace(r"\|", "").count("|") for row in rows} == {12}
    told = json.loads(json.dumps(comparison.to_json(made)))
    assert len(told["lines"]) == len(made.lines) == len(rows) - 2
    assert told["lines"][0]["measure"] == "WER"
    assert told["lines"][0]["verdict"] == "better"


def test_folders_are_read_and_bad_ones_named(tmp_path):
    result = SetResult("s", (Utterance("a", "en", "x", 1.0),), 1.0, {}, {})
    report.write(str(tmp_path), report.build("m", [result]), [result])
    (row,) = comparison.read_rows(str(tmp_path))
    assert row["id"] == "a"
    made = comparison.compare([row], [row])
    assert made.lines == ()
    (tmp_path / "hyps.jsonl").write_text('{"set": "s"}\n', encoding="utf8")
    with pytest.raises(ValueError, match=r"hyps\.jsonl:1: has no id, lang, reference"):
        comparison.read_rows(str(tmp_path))
    (tmp_path / "hyps.jsonl").write_text("{\n", encoding="utf8")
    with pytest.raises(ValueError, match="not JSON"):
        comparison.read_rows(str(tmp_path))
    with pytest.raises(ValueError, match="nim4 evaluate --out"):
        comparison.read_rows(str(tmp_path / "none"))


def test_phonemes_are_compared_too():
    rows = make_rows(SAID)
    counts = dataclasses.asdict(error_rates.Counts(1, 0, 0, 4))
    rows = [{**row, "phonemes": counts} for row in rows]
    assert find(comparison.compare(rows, rows), "PER").difference.a == 25.0
