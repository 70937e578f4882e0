"""Tables from results made by hand."""

import dataclasses
import json

import pytest

from nim4_jax.eval import evaluation
from nim4_jax.eval.evaluation import SetResult, Utterance
from nim4_jax.eval.measures.entities import Entities
from nim4_jax.eval.measures.error_rates import Counts
from nim4_jax.eval.reports import report


def make_result() -> SetResult:
    rows = (
        Utterance("a", "en", "go home", 2.0, "go", -1.0, Counts(0, 1, 0, 2)),
        Utterance("b", "en", "stop it", 1.0, "stop it", -1.0, Counts(0, 0, 0, 2)),
        Utterance("c", "zh", "打开", 1.0, "开", -1.0, Counts(0, 1, 0, 2)),
    )
    return SetResult("m.jsonl?lang=en|zh", rows, 0.5, {"too long": 2}, {})


def test_a_report_sums_by_language_and_averages_languages():
    made = report.build("model", [make_result()])
    (part,) = made["sets"]
    assert part["utterances"] == 3 and part["real_time_factor"] == 0.125
    scores = part["scores"]["text"]
    assert scores["languages"]["en"]["percent"] == 25.0
    assert scores["languages"]["zh"]["metric"] == "CER"
    assert scores["mean_percent"] == 37.5
    assert set(part["scores"]) == {"text"}


def test_a_table_has_one_width_and_names_what_was_skipped():
    table = report.to_markdown(report.build("model", [make_result()]))
    errors, outputs = table.split("\n\n")[:2]
    for part, count in ((errors, 5), (outputs, 3)):
        rows = part.splitlines()
        cells = {row.replace(r"\|", "").count("|") for row in rows}
        assert len(cells) == 1 and len(rows) == count
    rows = errors.splitlines()
    assert "25.00" in rows[2] and "**37.50**" in rows[4]
    assert "skipped 2, too long" in table


def test_there_is_no_mean_where_nothing_was_said():
    """Seven words written of silence are no error rate of 700 %."""
    silent = Utterance("a", "en", "", 1.0, "a b c d e f g", 0.0, Counts(0, 0, 7, 0))
    other = dataclasses.replace(silent, name="b", lang="zh")
    spoken = Utterance("c", "mixed", "go", 1.0, "go on", 0.0, Counts(0, 0, 1, 1))
    for rows, mean in (((silent, other), None), ((silent, other, spoken), 100.0)):
        made = report.build("m", [SetResult("s", rows, 1.0, {}, {})])
        assert made["sets"][0]["scores"]["text"]["mean_percent"] == mean
        assert "700" not in report.to_markdown(made)


def test_skipped_files_are_named():
    lines = [f"m.jsonl:{n}: missing file: {n}.wav" for n in range(7)]
    rows = make_result().utterances
    result = SetResult("s", rows, 1.0, {"missing file": 7}, {"missing file": lines})
    made = report.build("m", [result])
    assert made["sets"][0]["skipped_lines"] == {"missing file": lines}
    table = report.to_markdown(made)
    assert "- m.jsonl:4: missing file: 4.wav\n- …, see report.json" in table


def test_outputs_are_counted_by_language():
    rows = (
        Utterance("a", "en", "go home", 1.0, "", 0.0, Counts(0, 2, 0, 2)),
        Utterance("b", "en", "go", 1.0, "thank you", 0.0, Counts(1, 0, 1, 1)),
        Utterance("c", "zh", "打开", 1.0, "打开", 0.0, Counts(0, 0, 0, 2)),
        Utterance("d", "zh", "打开", 1.0),
    )
    made = report.build("m", [SetResult("s", rows, 1.0, {}, {})])["sets"][0]
    assert made["outputs"].pop("languages")["en"]["hallucinated_percent"] == 50.0
    assert made["outputs"] == {
        "outputs": 3,
        "empty": 1,
        "empty_percent": 33.333,
        "nonempty_percent": 66.667,
        "mean_units": 1.333,
        "hallucinated": 1,
        "hallucinated_percent": 33.333,
        "looped": 0,
        "looped_percent": 0.0,
    }
    assert "entities" not in made


def test_errors_are_told_as_written_and_by_names_where_they_were_counted():
    parts = {"unbiased": Counts(0, 0, 0, 3), "biased": Counts(1, 0, 1, 2)}
    row = Utterance(
        "a",
        "en",
        "call anna",
        2.0,
        "x",
        0.0,
        Counts(1, 0, 1, 5),
        raw=Counts(3, 0, 0, 4),
    )
    plain = SetResult("plain|set", (row,), 0.5, {}, {}, normaliser="whisper")
    named = SetResult("named", (dataclasses.replace(row, **parts),), 0.5, {}, {})
    made = report.build("m", [plain, named])
    assert set(made["sets"][0]["scores"]) == {"text", "raw"}
    scores = made["sets"][1]["scores"]
    metrics = {kind: scores[kind]["languages"]["en"]["metric"] for kind in scores}
    assert metrics == {
        "text": "WER",
        "raw": "WER, raw",
        "unbiased": "U-WER",
        "biased": "B-WER",
    }
    assert scores["biased"]["languages"]["en"]["percent"] == 100.0
    assert made["sets"][0]["rtfx"] == 4.0
    lines = report.to_markdown(made).splitlines()
    assert r"| plain\|set | en | WER | whisper | 40.00 | 75.00 |  |  |" in lines
    assert "| named | en | WER | ours | 40.00 | 75.00 | 0.00 | 100.00 |" in lines


def test_what_is_written_where_nobody_speaks_is_told_by_the_minute():
    loop = "no no no no no no"
    rows = (
        Utterance("a", "en", "", 20.0, "", 0.0, Counts()),
        Utterance("b", "en", "...", 10.0, loop, 0.0, Counts(insertions=6), looped=True),
        Utterance("c", "en", "go", 60.0, "go", 0.0, Counts(reference=1)),
    )
    made = report.build("m", [SetResult("s", rows, 1.0, {}, {})])["sets"][0]
    assert made["outputs"]["looped_percent"] == 33.333
    assert made["outputs"]["nonspeech"] == {
        "outputs": 2,
        "minutes": 0.5,
        "nonempty_percent": 50.0,
        "words": 6,
        "words_per_minute": 12.0,
        "looped_percent": 50.0,
    }


def test_where_nothing_is_said_the_table_has_no_error_rate():
    rows = (Utterance("a", "en", "", 1.0, "um", 0.0, Counts(insertions=1)),)
    made = report.build("m", [SetResult("nonspeech:1", rows, 1.0, {}, {})])
    assert made["sets"][0]["outputs"]["nonempty_percent"] == 100.0
    assert "| WER |  | 0 |" in report.to_markdown(made)


def test_names_are_told_where_there_are_some():
    dome = ("dome",)
    judged = Entities(("rome",), (), ("rome",), dome, dome, dome, dome)
    row = Utterance("a", "en", "go", 1.0, "go dome", 0.0, Counts(), entities=judged)
    result = SetResult("s", (row,), 1.0, {}, {}, "misleading")
    made = report.build("m", [result])
    assert made["sets"][0]["entities"]["hints"]["intruded_percent"] == 100.0
    table = report.to_markdown(made).splitlines()
    assert (
        table[-1] == "| s | misleading | 1 | 0.00 | 0.00 | 1 | 1 | 0.00 | 1 | 100.00 |"
    )
    (told,) = report.list_rows([result])
    assert told["hints"] == told["unsaid"] == told["intruded"] == dome
    assert told["inserted"] == dome
    assert "found" not in told


def test_files_are_written_whole(tmp_path):
    result = make_result()
    made = report.build("model", [result])
    report.write(str(tmp_path / "out"), made, [result])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.json", "report.md", "hyps.jsonl"}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == made
    lines = (tmp_path / "out" / "hyps.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    assert row["reference"] == "打开" and row["text"]["deletions"] == 1


def test_shuffled_audio_is_another_utterance_with_another_text():
    texts = [("en", "go"), ("en", "go"), ("en", "stop"), ("zh", "开")]
    rows = [
        Utterance(str(number), lang, text, 1.0, text, 0.0, Counts(reference=1))
        for number, (lang, text) in enumerate(texts)
    ]
    shuffled = evaluation.shuffle(rows)
    assert [row.shuffled for row in shuffled[:3]] == [Counts(1, 0, 0, 1)] * 3
    assert shuffled[3].shuffled is None
    assert [row.text for row in shuffled] == [row.text for row in rows]


@pytest.mark.parametrize("kind", ["text", "phonemes", "shuffled"])
def test_a_report_without_scores_is_empty(kind):
    result = SetResult("s", (Utterance("a", "en", "x", 1.0),), 1.0, {}, {})
    assert kind not in report.build("m", [result])["sets"][0]["scores"]
