"""Evaluating manifests with a tiny random model."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from nim4_jax.data.sources import opening
from nim4_jax.decode.recogniser import BatchRecogniser
from nim4_jax.eval import scoring
from nim4_jax.eval.hints import HintConfig
from nim4_jax.launch import compare, evaluate
from nim4_jax.runs import feature_statistics
from nim4_jax.text import phonemes
from nim4_jax.train import cmvn as statistics


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> str:
    """Eight recordings that fit a shape, one that does not, one missing, one NaN."""
    folder = tmp_path_factory.mktemp("set")
    rows = []
    for number in range(11):
        seconds = 0.3 + 0.15 * number if number < 8 else 2.0 if number == 8 else 0.7
        samples = np.random.default_rng(number).normal(0, 0.1, int(16_000 * seconds))
        if number == 10:
            samples[5] = np.nan
        if number != 9:
            soundfile.write(folder / f"{number}.wav", samples, 16_000, "FLOAT")
        lang, text = [("en", f"open window {number}"), ("zh", "打开窗户")][number % 2]
        rows.append(
            {"audio": f"{number}.wav", "text": text, "lang": lang, "id": str(number)}
        )
    rows[7]["text"] = ""
    path = folder / "set.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return str(path)


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> str:
    """Four recordings of different lengths, two of which say a name."""
    folder = tmp_path_factory.mktemp("named")
    rows = []
    for number, text in enumerate(("to rome", "go", "call anna", "stop")):
        samples = np.random.default_rng(number).normal(0, 0.1, 6400 + 1600 * number)
        soundfile.write(folder / f"{number}.wav", samples, 16_000, "FLOAT")
        keywords = [word for word in ("rome", "anna") if word in text]
        row = {"audio": f"{number}.wav", "text": text, "keywords": keywords}
        rows.append(json.dumps({**row, "lang": "en"}))
    path = folder / "named.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf8")
    return str(path)


@pytest.fixture(scope="module")
def report(model_files, manifest, tmp_path_factory):
    """A report with everything, and the folder that it was written to."""
    out = tmp_path_factory.mktemp("out")
    made = scoring.run(
        model_files[0],
        [manifest],
        str(out),
        scoring.Options(phonemes=True, shuffle_audio=True),
        show_progress=False,
    )
    return made["sets"][0], out


def test_every_usable_utterance_is_scored_once_and_skips_are_counted(report):
    part, out = report
    lines = (out / "hyps.jsonl").read_text(encoding="utf8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == list("012345678")
    assert part["utterances"] == 9
    assert part["skipped"] == {"missing file": 1, "not finite": 1}
    assert part["audio_seconds"] == pytest.approx(
        2.0 + sum(int(16_000 * (0.3 + 0.15 * n)) / 16_000 for n in range(8)), abs=1e-3
    )
    assert part["real_time_factor"] > 0.0


def test_scores_are_sums_over_the_utterances(report, manifest):
    part, out = report
    rows = [json.loads(line) for line in (out / "hyps.jsonl").open(encoding="utf8")]
    for kind in ("text", "phonemes", "shuffled"):
        for lang, row in part["scores"][kind]["languages"].items():
            mine = [r[kind] for r in rows if r["lang"] == lang and kind in r]
            for field in ("substitutions", "deletions", "insertions", "reference"):
                assert row[field] == sum(counts[field] for counts in mine)
    spoken = [phonemes.encode_phonemes(row["reference"]) for row in rows[::2]]
    assert part["scores"]["phonemes"]["languages"]["en"]["reference"] == sum(
        map(len, spoken)
    )
    assert len(opening.open_source(manifest)) == 11


def test_a_limit_takes_utterances_evenly(model_files, manifest, tmp_path):
    scoring.run(
        model_files[0],
        [manifest],
        str(tmp_path),
        scoring.Options(limit=3),
        show_progress=False,
    )
    rows = [json.loads(line) for line in (tmp_path / "hyps.jsonl").open()]
    assert [row["id"] for row in rows] == ["0", "5"]  # the third, 10, is unreadable


def test_stage_one_alone_is_scored_by_its_phonemes(model_files, manifest, report):
    made = scoring.run(
        model_files[1],
        [manifest],
        options=scoring.Options(phonemes=True),
        show_progress=False,
    )
    scores = made["sets"][0]["scores"]
    assert scores["phonemes"] == report[0]["scores"]["phonemes"]
    assert set(scores) == {"phonemes"}
    with pytest.raises(ValueError, match="no LLM: train stages 2 and 4"):
        scoring.run(model_files[1], [manifest], show_progress=False)


def test_a_set_of_no_use_says_why(model_files, manifest, tmp_path):
    rows = Path(manifest).read_text(encoding="utf8").splitlines()[9:10]
    path = tmp_path / "bad.jsonl"
    path.write_text(rows[0] + "\n", encoding="utf8")
    with pytest.raises(ValueError, match=r"(?s)bad\.jsonl:1: missing file"):
        scoring.run(model_files[0], [str(path)], show_progress=False)


def test_audio_without_speech_is_a_set(model_files):
    made = scoring.run(model_files[0], ["nonspeech:40"], show_progress=False)
    (part,) = made["sets"]
    assert part["utterances"] == 40 and not part["skipped"]
    counted = part["outputs"]
    assert counted["outputs"] == 40
    assert counted["empty_percent"] + counted["nonempty_percent"] == pytest.approx(100)


def test_streams_are_evaluated_by_a_flag(model_files, tmp_path):
    sets = ["bundled:commands:test?lang=zh"]
    made = scoring.run(
        model_files[0],
        sets,
        str(tmp_path),
        scoring.Options(stream=True, limit=8),
        show_progress=False,
    )
    measured = made["streaming"]
    (part,) = made["sets"]
    assert measured["streams"] == part["utterances"] > 3
    assert measured["finals"] >= 0.9 * measured["streams"]
    assert "words revised %" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("mode", ["said", "misleading", "both"])
def test_hints_reach_the_prompts_row_by_row(
    model_files, named, tmp_path, monkeypatch, mode
):
    told = []
    transcribe = BatchRecogniser.transcribe

    def spy(self, audio, *, hints=None, timings=True):
        rows = np.asarray(audio.mask).sum(axis=1)
        told.extend(zip(rows.tolist(), hints))
        return transcribe(self, audio, hints=hints, timings=timings)

    monkeypatch.setattr(BatchRecogniser, "transcribe", spy)
    config = HintConfig(mode, 2, ("berlin", "dome"), seen=("to rome",))
    out = str(tmp_path)
    made = scoring.run(
        model_files[0], [named], out, scoring.Options(names=config), show_progress=False
    )
    rows = [json.loads(line) for line in (tmp_path / "hyps.jsonl").open()]
    given = {
        round(row["seconds"] * 16_000): tuple(row.get("hints", ())) for row in rows
    }
    for samples, hints in told:
        assert given.get(samples, ()) == tuple(hints)
    assert len(told) >= len(rows) == 4
    said = [tuple(row.get("said", ())) for row in rows]
    assert said == [("rome",), (), ("anna",), ()]
    entities = made["sets"][0]["entities"]
    assert entities["said"] == 2 and entities["held_out"]["said"] == 1
    assert entities["hints"]["mode"] == mode
    if mode != "said":
        assert all(len(row["unsaid"]) == 2 for row in rows)


def test_hints_are_refused_where_they_mean_nothing(model_files, manifest):
    with pytest.raises(ValueError, match="leave out --shuffle_audio"):
        scoring.run(
            model_files[0],
            [manifest],
            options=scoring.Options(shuffle_audio=True, names=HintConfig("said")),
            show_progress=False,
        )
    with pytest.raises(ValueError, match="needs a model that writes"):
        scoring.run(
            model_files[1],
            [manifest],
            options=scoring.Options(phonemes=True, names=HintConfig("said")),
            show_progress=False,
        )
    with pytest.raises(ValueError, match=r"set\.jsonl: hints 'both' need names"):
        scoring.run(
            model_files[0],
            [manifest],
            options=scoring.Options(names=HintConfig("both")),
            show_progress=False,
        )


def test_two_evaluations_are_compared(model_files, named, tmp_path):
    for name, mode in (("a", "none"), ("b", "said")):
        scoring.run(
            model_files[0],
            [named],
            str(tmp_path / name),
            scoring.Options(names=HintConfig(mode)),
            show_progress=False,
        )
    out = tmp_path / "new" / "figures.json"
    folders = [str(tmp_path / name) for name in "ab"]
    made = compare.run(*folders, str(out), resamples=50)
    measures = {line["measure"] for line in json.loads(out.read_text())["lines"]}
    assert {"WER", "entity recall", "empty outputs"} <= measures
    assert len(made.lines) == len(json.loads(out.read_text())["lines"])


def test_the_program_prints_the_table(model_files, manifest, capsys, monkeypatch):
    off = {"phonemes": False, "shuffle_audio": False, "limit": 0}
    off |= {"chunk_ms": 0, "left": 4}
    off |= {"hints": "none", "hint_count": 4, "hint_names": None, "hint_seed": 0}
    off |= {"seen": None, "find_keywords": False, "stream": False}
    off |= {"config": None, "models": None}
    given = SimpleNamespace(model=model_files[0], sets=[manifest], out=None, **off)
    # The process's own flags belong to the test runner and to other commands.
    monkeypatch.setattr(evaluate, "flags", SimpleNamespace(FLAGS=given))
    evaluate.main(["evaluate"])
    table = capsys.readouterr().out
    assert "| WER |" in table and "| CER |" in table
    assert "skipped 1, missing file" in table


def test_cmvn_of_a_set_is_written(manifest, tmp_path, capsys):
    path = str(tmp_path / "cmvn.json")
    made = feature_statistics.run([manifest], path)
    assert statistics.read(path) == made
    assert len(made["mean"]) == 80 and made["frames"] > 100
    assert "skipped 1: missing file" in capsys.readouterr().out
