"""Sets in noise and joined sets: what stays, what is the same, and how loud it is."""

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data.audio import reading
from nim4_jax.data.noise import mixing
from nim4_jax.data.sources import conditions, examples, opening

CLEAN = "bundled:commands:test"
PLACES = st.integers(0, 169)


def read(record):
    return reading.decode(record["audio"], sample_rate=record["sample_rate"])


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A manifest of six utterances so quiet that noise does not clip them."""
    folder = tmp_path_factory.mktemp("quiet")
    bundled = opening.open_source(CLEAN)
    lines = []
    for number in range(6):
        record = bundled[number * 30]
        samples = 0.02 * reading.decode(record["audio"])
        soundfile.write(folder / f"{number}.wav", samples, 16_000, "FLOAT")
        text = record["text"].replace('"', "")
        lines.append(f'{{"audio": "{number}.wav", "text": "{text}", "lang": "en"}}')
    path = folder / "quiet.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return str(path)


@given(snr=st.sampled_from(["-5", "0", "2.5", "20"]), place=PLACES)
def test_noise_changes_the_audio_alone_and_always_alike(snr, place):
    spec = f"noisy:{snr}:{CLEAN}"
    source = opening.open_source(spec)
    clean, noisy = opening.open_source(CLEAN)[place], source[place]
    again = opening.open_source(spec)[place]
    np.testing.assert_array_equal(noisy["audio"], again["audio"])
    np.testing.assert_array_equal(noisy["audio"], source[place]["audio"])
    for key in ("text", "lang", "id", "keywords", "origin"):
        assert clean[key] == noisy[key]
    samples = reading.decode(clean["audio"])
    assert len(read(noisy)) == len(samples) == round(noisy["duration"] * 16_000)
    assert not np.array_equal(read(noisy), samples)
    assert examples.describe(source, place) == clean
    assert len(source) == 170


@pytest.mark.parametrize("kind", conditions.KINDS)
@pytest.mark.parametrize("snr", [-5, 0, 12.5, 20])
def test_noise_is_as_loud_as_it_should_be(quiet, snr, kind):
    source = opening.open_source(f"noisy:{snr}+{kind}:{quiet}")
    for place, record in enumerate(opening.open_source(quiet)):
        clean = read(record)
        active = mixing.find_active(clean)
        added = read(source[place]) - clean
        power = mixing.measure_power(clean[active]) / mixing.measure_power(
            added[active]
        )
        assert 10 * np.log10(power) == pytest.approx(snr, abs=0.1)


def test_all_levels_have_the_same_noise(quiet):
    clean = read(opening.open_source(quiet)[2])
    added = [
        read(opening.open_source(f"noisy:{snr}:{quiet}")[2]) - clean
        for snr in (0, 10, 20)
    ]
    for other in added[1:]:
        assert np.corrcoef(added[0], other)[0, 1] > 0.99
    kinds = {
        kind: read(opening.open_source(f"noisy:0+{kind}:{quiet}")[2])
        for kind in conditions.KINDS
    }
    assert any(np.allclose(added[0] + clean, kinds[kind]) for kind in kinds)


def test_what_says_nothing_or_cannot_be_read_stays_as_it_is(tmp_path, write_manifest):
    soundfile.write(tmp_path / "hum.wav", np.full(8000, 0.1), 16_000)
    rows = [{"audio": "hum.wav", "text": " "}, {"audio": "none.wav", "text": "hi"}]
    path = str(write_manifest(tmp_path / "m.jsonl", rows))
    for place in range(2):
        clean = opening.open_source(path)[place]
        assert opening.open_source(f"noisy:5:{path}")[place] == clean
    joined = opening.open_source(f"joined:9:{path}")
    with pytest.raises(reading.AudioError, match=r"none\.wav: missing file"):
        read(joined[0])


def test_one_utterance_alone_has_noise_but_no_babble(tmp_path, write_manifest):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(8000)), 16_000)
    path = write_manifest(tmp_path / "m.jsonl", [{"audio": "a.wav", "text": "hi"}])
    for kinds in ("", "+babble", "+babble+music"):
        (record,) = opening.open_source(f"noisy:0{kinds}:{path}")
        assert np.std(read(record)) > 0.09


@given(seconds=st.sampled_from(["4", "7.5", "20", "60"]))
def test_joined_utterances_are_all_there_in_their_order(seconds):
    clean = opening.open_source(CLEAN)
    joined = opening.open_source(f"joined:{seconds}:{CLEAN}")
    records = [examples.describe(joined, place) for place in range(len(joined))]
    for lang in ("en", "zh", "mixed"):
        said = [row["text"] for row in clean if row["lang"] == lang]
        texts = [row["text"] for row in records if row["lang"] == lang]
        assert " ".join(texts) == " ".join(said)
    assert len({row["id"] for row in records}) == len(records)
    longest = max(row["duration"] for row in clean)
    assert all(row["duration"] <= max(float(seconds), longest) for row in records)
    if seconds == "60":
        assert len(records) < 20
        assert sum(map(len, (row["keywords"] for row in records))) > 50


def test_joined_audio_is_the_utterances_with_pauses_between():
    joined = opening.open_source(f"joined:12:{CLEAN}")
    record, again = joined[3], opening.open_source(f"joined:12:{CLEAN}")[3]
    np.testing.assert_array_equal(record["audio"], again["audio"])
    told = examples.describe(joined, 3)
    assert record["duration"] == pytest.approx(told["duration"], abs=0.01)
    assert {**record, "audio": 0, "duration": 0} == {**told, "audio": 0, "duration": 0}
    samples = read(record)
    assert len(samples) / 16_000 == record["duration"] <= 12.0
    members = [row for row in opening.open_source(CLEAN) if row["text"] in told["text"]]
    first = next(row for row in members if told["text"].startswith(row["text"]))
    start = reading.decode(first["audio"])
    np.testing.assert_allclose(samples[: len(start)], start, atol=1e-4)
    # The pause behind it is quiet, but no digital silence, and of the length it says.
    pause = samples[len(start) : len(start) + int(conditions.PAUSE[0] * 16_000)]
    assert 0.0 < np.abs(pause).max() < 0.01


@given(
    spec=st.sampled_from(
        ["room:0.4", "room:0.7+3", "level:-20", "level:+12.5", "telephone:mulaw"]
    ),
    place=PLACES,
)
def test_a_channel_changes_the_audio_alone_and_always_alike(spec, place):
    source = opening.open_source(f"{spec}:{CLEAN}")
    clean, changed = opening.open_source(CLEAN)[place], source[place]
    again = opening.open_source(f"{spec}:{CLEAN}")[place]
    np.testing.assert_array_equal(changed["audio"], again["audio"])
    for key in ("text", "lang", "id", "keywords", "origin"):
        assert clean[key] == changed[key]
    samples = reading.decode(clean["audio"])
    assert len(read(changed)) == len(samples) == round(changed["duration"] * 16_000)
    assert not np.array_equal(read(changed), samples)
    assert examples.describe(source, place) == clean and len(source) == 170


def test_levels_are_gains_that_clip(quiet):
    clean = read(opening.open_source(quiet)[1])
    changed = read(opening.open_source(f"level:-20:{quiet}")[1])
    np.testing.assert_allclose(changed, clean / 10, atol=1 / 32_768)
    loud = read(opening.open_source(f"level:60:{quiet}")[1])
    assert loud.max() == 32_767 / 32_768 and loud.min() == -1
    hum = read(opening.open_source("nonspeech:1?kinds=music")[0])
    faint = read(opening.open_source("level:-10:nonspeech:1?kinds=music")[0])
    assert mixing.measure_power(faint) < mixing.measure_power(hum)


def test_all_reverberation_times_have_the_same_rooms(quiet):
    clean = read(opening.open_source(quiet)[1])
    heard = [
        read(opening.open_source(f"room:{time}:{quiet}")[1]) for time in (0.3, 0.31, 1)
    ]
    near, _, far = ((other - clean).std() for other in heard)
    assert np.corrcoef(heard[0] - clean, heard[1] - clean)[0, 1] > 0.9
    assert far > near


@pytest.mark.parametrize("form", ["noise", "noise/all.jsonl", "noise/all.jsonl?k=1"])
def test_noise_of_recordings(quiet, tmp_path, make_tone, write_manifest, form):
    folder = tmp_path / "noise"
    folder.mkdir()
    soundfile.write(folder / "tone.wav", make_tone(9.0, pitch=1000.0), 16_000)
    rows = [{"audio": "tone.wav", "text": "", "k": 1}]
    write_manifest(folder / "all.jsonl", rows)
    spec = f"noisy:0@{tmp_path}/{form}:{quiet}"
    clean, noisy = read(opening.open_source(quiet)[3]), opening.open_source(spec)[3]
    added = read(noisy) - clean
    power = np.abs(np.fft.rfft(added)) ** 2
    pitch = np.argmax(power) * 16_000 / len(added)
    assert pitch == pytest.approx(1000, abs=5)
    np.testing.assert_array_equal(noisy["audio"], opening.open_source(spec)[3]["audio"])
    assert conditions.find_noise(f"level:3:{spec}") == [f"{tmp_path}/{form}"]
    both = opening.open_source(f"noisy:0+babble@{tmp_path}/{form}:{quiet}")
    equal = [
        np.array_equal(both[n]["audio"], opening.open_source(spec)[n]["audio"])
        for n in range(6)
    ]
    assert any(equal) and not all(equal)
    (folder / "tone.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="noise"):
        opening.open_source(spec)


def test_noise_that_is_not_there_or_broken_is_told(quiet, tmp_path, make_tone):
    with pytest.raises(ValueError, match="no noise at /none; give a folder"):
        opening.open_source(f"noisy:0@/none:{quiet}")
    soundfile.write(tmp_path / "a.wav", make_tone(1.0), 16_000)
    (tmp_path / "b.wav").touch()
    with pytest.raises(ValueError, match=r"(?s)cannot be used.*b\.wav.*take them out"):
        opening.open_source(f"noisy:0@{tmp_path}:{quiet}")


def test_conditions_of_conditions():
    source = opening.open_source(f"noisy:10+vehicle:joined:30:{CLEAN}")
    assert source[0]["duration"] > 20.0
    assert conditions.find_origin("noisy:1:joined:2:a.jsonl?x=y:z") == "a.jsonl?x=y:z"
    assert conditions.find_origin(CLEAN) == CLEAN


@pytest.mark.parametrize(
    "spec",
    [
        "noisy:ten:bundled:commands:test",
        "noisy:10",
        "noisy:10:",
        "noisy:nan:a.jsonl",
        "joined:0:bundled:commands:test",
        "joined:-3:bundled:commands:test",
        "joined::a.jsonl",
        "noisy:5@:a.jsonl",
        "room:0:a.jsonl",
        "room:0.5+0:a.jsonl",
        "room:0.5m:a.jsonl",
        "level:quiet:a.jsonl",
        "level:-20",
        "telephone:gsm:a.jsonl",
    ],
)
def test_a_misspelt_condition_shows_the_form(spec):
    with pytest.raises(ValueError, match=r"'noisy:SNR\[\+KIND…\]\[@NOISE\]:SOURCE'"):
        opening.open_source(spec)


def test_bad_kinds_and_sources_are_told():
    with pytest.raises(ValueError, match=r"\['rain'\]; choose from babble"):
        opening.open_source(f"noisy:10+rain:{CLEAN}")
    with pytest.raises(ValueError, match=r"no manifest at none\.jsonl"):
        opening.open_source("noisy:10:none.jsonl")
    with pytest.raises(IndexError, match="joined"):
        examples.describe(opening.open_source(f"joined:60:{CLEAN}"), 99)
