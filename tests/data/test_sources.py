"""Manifests, selections and mixtures of sources."""

import json

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.pipeline import iterators
from nim4_jax.data.sources import opening, records, timings


def test_records_of_a_manifest(tmp_path, write_manifest):
    path = write_manifest(
        tmp_path / "m.jsonl",
        [
            {"audio": "a/b.wav", "text": "hi", "lang": "en", "duration": 1.5},
            {"audio": "/c.wav", "text": "", "keywords": ["北京"], "id": 7},
        ],
    )
    first, second = opening.open_source(str(path))
    assert first == {
        "audio": str(tmp_path / "a/b.wav"),
        "sample_rate": None,
        "text": "hi",
        "lang": "en",
        "keywords": (),
        "id": "b",
        "duration": 1.5,
        "offset": None,
        "channel": "mix",
        "origin": f"{path}:1",
    }
    assert second["audio"] == "/c.wav" and second["lang"] == "auto"
    assert second["keywords"] == ("北京",) and second["id"] == "7"
    assert second["origin"] == f"{path}:2" and second["duration"] is None


@pytest.mark.parametrize(
    "query, count",
    [
        ("", 22),
        ("split=train", 18),
        ("split=train|test", 22),
        ("split=test&lang=en", 2),
        ("duration=0.5|0.55", 2),
        ("id=u3", 1),
    ],
)
def test_selections(corpus_path, query, count):
    spec = f"{corpus_path}?{query}" if query else str(corpus_path)
    assert len(opening.open_source(spec)) == count


@given(st.sets(st.integers(0, 21), min_size=1))
def test_any_selection_keeps_the_order(corpus_path, chosen):
    query = "|".join(f"u{number}" for number in sorted(chosen, reverse=True))
    source = opening.open_source(f"{corpus_path}?id={query}")
    assert [record["id"] for record in source] == [f"u{n}" for n in sorted(chosen)]


def test_a_selection_of_nothing_lists_the_values(corpus_path):
    with pytest.raises(ValueError, match=r"no record matches.*test, train"):
        opening.open_source(f"{corpus_path}?split=dev")
    with pytest.raises(ValueError, match="no record has this key"):
        opening.open_source(f"{corpus_path}?speaker=me")
    with pytest.raises(ValueError, match="cannot read the selection"):
        opening.open_source(f"{corpus_path}?split")


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"audio": "a.wav", "text": ', "not JSON"),
        ('["a.wav"]', "expected an object"),
        ('{"audio": "a.wav"}', "'text' is missing"),
        ('{"text": "hi"}', "'audio' is missing"),
        ('{"audio": "a.wav", "text": 5}', "'text' is 5, expected a string"),
        ('{"audio": "a.wav", "text": "", "lang": "fr"}', "unknown lang 'fr'.*mixed"),
        ('{"audio": "a.wav", "text": "", "duration": "1"}', "'duration' is '1'"),
        ('{"audio": "a.wav", "text": "", "duration": -1}', "'duration' is -1"),
        ('{"audio": "a.wav", "text": "", "duration": NaN}', "'duration' is nan"),
        ('{"audio": "a.wav", "text": "", "duration": true}', "'duration' is True"),
        ('{"audio": "a.wav", "text": "", "keywords": "x"}', "'keywords' is 'x'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "m.jsonl"
    good = json.dumps({"audio": "a.wav", "text": "hi"})
    path.write_text(f"{good}\n\n{line}\n", encoding="utf8")
    with pytest.raises(ValueError, match=rf"m\.jsonl:3: .*{message}"):
        opening.open_source(str(path))


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match="no manifest"):
        opening.open_source(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="has no record"):
        opening.open_source(str(tmp_path / "empty.jsonl"))
    for spec in ("corpus.txt", "hub:x", ""):
        with pytest.raises(ValueError, match=r"expected 'manifest\.jsonl"):
            opening.open_source(spec)


def test_an_unknown_bundled_set_lists_the_choices():
    with pytest.raises(ValueError, match="commands, prompts"):
        opening.open_source("bundled:songs:train")


def test_a_corpus_joins_sources(corpus_path):
    train, test = f"{corpus_path}?split=train", f"{corpus_path}?split=test"
    corpus, weights = opening.open_sources([train, (test, 0.5)])
    assert weights == [1.0, 0.5] and len(corpus) == 22
    assert corpus.group(1).tolist() == [18, 19, 20, 21]
    assert [corpus[n]["id"] for n in (0, 17, 18, 21)] == ["u0", "u21", "u4", "u19"]
    for index in (-1, 22):
        with pytest.raises(IndexError):
            corpus[index]


def test_bad_mixtures(corpus_path):
    for weight in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected > 0"):
            opening.open_sources([(str(corpus_path), weight)])
    for specs in ((), str(corpus_path)):
        with pytest.raises(ValueError, match="expected a list"):
            opening.open_sources(specs)


def test_a_bundled_set_is_selected_like_a_manifest():
    """Only the wanted languages, in the set's order; an empty choice is named."""
    whole = opening.open_source("bundled:commands:test")
    part = opening.open_source("bundled:commands:test?lang=zh|mixed")
    expected = [row["id"] for row in whole if row["lang"] in ("zh", "mixed")]
    assert [part[index]["id"] for index in range(len(part))] == expected
    assert 0 < len(part) < len(whole)
    with pytest.raises(ValueError, match="lang=fr"):
        opening.open_source("bundled:commands:test?lang=fr")


@pytest.mark.parametrize(
    ("keys", "offset", "duration"),
    [
        ({}, None, None),
        ({"duration": 2}, None, 2),
        ({"offset": 1.5, "duration": 2}, 1.5, 2),
        ({"offset": 0, "duration": 2}, 0, 2),
        ({"offset": 1.5}, 1.5, None),
        ({"start": 1.5, "duration": 2, "channel": 0}, 1.5, 2),
        ({"begin": 1, "end": 3.5}, 1, 2.5),
        ({"start": 1, "stop": 3.5, "duration": 2.5}, 1, 2.5),
        ({"end": 3.5}, 0, 3.5),
        ({"start": None, "end": None, "duration": 2}, None, 2),
        ({"to": "Ann", "time": "noon", "from": "Bo", "offset_note": 3}, None, None),
    ],
)
def test_a_segment_in_every_usual_spelling(keys, offset, duration):
    row = {"audio": "a.wav", "text": "hi", **keys}
    assert timings.find_segment(row, "m:1") == (offset, duration)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"offset": "1.5"}, "'offset' is '1.5', expected seconds"),
        ({"begin": -1, "end": 2}, "'begin' is -1"),
        ({"begin": 3, "end": 3}, "'end' is 3, expected more than 'begin', 3"),
        ({"begin": 3, "end": 10**320}, "'end' is 10+, expected seconds"),
        ({"offset": 10**310, "duration": 1}, "'offset' is 10+, expected seconds"),
        ({"offset": 1, "duration": 10**310}, "'duration' is 10+, expected seconds"),
        ({"offset": 1, "begin": 2}, "mean the same"),
        ({"begin": 1, "end": 3, "duration": 7.5}, "'duration' is 7.5"),
        ({"start_time": 1.0}, "'start_time'.*looks like a timing"),
        ({"segment_end": 1.0}, "looks like a timing"),
        ({"begin_ms": 1500, "duration": 2}, "looks like a timing"),
        ({"offset_samples": 16000}, "looks like a timing"),
        ({"timestamp": [1.0, 2.0]}, "looks like a timing"),
        ({"channel": "middle"}, "'middle' is unknown"),
        ({"channel": -1}, "-1 is unknown"),
    ],
)
def test_a_segment_that_says_two_things_or_none_is_named(tmp_path, keys, message):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "text": "hi", **keys}))
    with pytest.raises(ValueError, match=rf"m\.jsonl:1: .*{message}"):
        opening.open_source(str(path))


def test_only_the_segment_is_read_everywhere(tmp_path, make_tone, write_manifest):
    """Training, evaluation and conditions hear the segment; its tone has its pitch."""
    tones = [make_tone(1.0, 16_000, pitch) for pitch in (300, 900, 600)]
    stereo = np.stack([np.concatenate(tones), np.zeros(48_000, np.float32)], axis=1)
    soundfile.write(tmp_path / "three.wav", stereo, 16_000)
    rows = [
        {"audio_filepath": "three.wav", "text": "a", "offset": 1.0, "duration": 1.0},
        {"audio": "three.wav", "text": "b", "begin": 2.0, "end": 3.0, "channel": 0},
        {"audio": "three.wav", "text": "c", "start": 2.0},
        {"audio": "three.wav", "text": "d", "offset": 2.5, "duration": 1.0},
    ]
    path = write_manifest(tmp_path / "m.jsonl", rows)
    source = opening.open_source(str(path))
    assert [row["id"] for row in source] == [
        "three@1",
        "three@2",
        "three@2",
        "three@2.5",
    ]
    heard = [records.decode(source[number]) for number in range(3)]
    for samples, pitch, level in zip(heard, (900, 600, 600), (0.5, 1.0, 0.5)):
        assert len(samples) == 16_000
        spectrum = np.abs(np.fft.rfft(samples))
        assert abs(spectrum.argmax() - pitch) <= 1
        assert samples.max() == pytest.approx(0.3 * level, rel=0.01)
    with pytest.raises(reading.AudioError, match=r"segment from 2.5 s holds 0.50 s"):
        records.decode(source[3])
    assert [records.measure(source[number]) for number in range(3)] == [1.0] * 3
    blocks = list(records.read_blocks(source[0], 0.4))
    np.testing.assert_array_equal(np.concatenate(blocks), heard[0])
    changed = opening.open_source(f"level:-6:{path}")[0]
    assert len(changed["audio"]) == 16_000
    assert len(records.decode(changed)) == 16_000
    config = iterators.DataConfig(
        sources=(str(path),), batch_size=2, bucket_seconds=(1.5,), needs=()
    )
    report = iterators.SkipReport()
    lengths = {
        int(index): int(mask.sum())
        for batch in iterators.iterate_eval(config, report=report)
        for index, mask in zip(batch["index"], batch["audio_mask"])
        if index >= 0
    }
    assert {lengths[number] for number in range(3)} == {16_000}
    assert report.counts == {"truncated": 1}


def test_halves_of_surrogate_pairs_in_texts_are_replaced(tmp_path):
    """A text that no file can hold would be lost after all of the set was decoded."""
    path = tmp_path / "m.jsonl"
    row = {"audio": "caf\udce9.wav", "text": "ok \ud83d", "keywords": ["\ude00", "x"]}
    path.write_text(json.dumps(row) + "\n", encoding="ascii")
    (record,) = opening.open_source(str(path))
    assert record["text"] == "ok \ufffd" and record["keywords"] == ("\ufffd", "x")
    assert record["id"] == "caf\ufffd"
    assert record["audio"] == str(tmp_path / "caf\udce9.wav")  # any bytes are a name


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_manifest_from_windows(tmp_path, encoding):
    path = tmp_path / "m.jsonl"
    line = '{"audio": "a.wav", "text": "循环\u2028播放"}\r\n'
    path.write_bytes(line.encode(encoding))
    (record,) = opening.open_source(str(path))
    assert record["text"] == "循环\u2028播放"


def test_a_manifest_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "gbk.jsonl"
    path.write_bytes('{"audio": "a.wav", "text": "循环"}\n'.encode("gbk"))
    with pytest.raises(ValueError, match=r"gbk\.jsonl:1: not UTF-8.*GB18030"):
        opening.open_source(str(path))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
FIELDS = st.sampled_from(["audio", "text", "lang", "duration", "keywords", "id", "x"])
ROWS = st.dictionaries(FIELDS, VALUES, max_size=6).map(
    lambda row: {"audio": "a.wav", "text": "hi", **row}
)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.booleans(), st.data())
def test_any_manifest_is_read_or_its_line_named(tmp_path_factory, row, ascii, data):
    """Values of any kind, and any bytes in the place of some."""
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    content = bytearray(
        json.dumps(row, ensure_ascii=ascii).encode("utf8", "backslashreplace")
    )
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3)
        )
    path.write_bytes(content)
    try:
        records = list(opening.open_source(str(path)))
    except ValueError as error:
        assert str(error).startswith(f"{path}:")
        return
    for record in records:
        record["text"].encode(), record["id"].encode()
        assert all(keyword.encode() for keyword in record["keywords"] if keyword)
        assert record["duration"] is None or float(record["duration"]) >= 0
