"""Names found in what is heard: from a list as from its database, in both passes."""

import jax.numpy as jnp
import numpy as np
import pytest

from nim4_jax.decode import hotwords
from nim4_jax.decode.hotwords import FindingRecogniser, HotwordList
from nim4_jax.eval.measures.hypotheses import simulate
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.serving import hotword_build, recognisers
from nim4_jax.types import Frames

NAMES = ("Wolfgang Mozart", "阿姆斯特丹", "Rotterdam", "Guadalajara")


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("list") / "names.txt"
    path.write_text("\n".join(NAMES) + "\n", encoding="utf8")
    return str(path)


@pytest.fixture(scope="module")
def names(listed) -> HotwordList:
    return HotwordList.open(listed)


@pytest.fixture(scope="module")
def recogniser(model_files):
    return recognisers.load(model_files[0]).recogniser


def test_each_name_is_found_where_it_is_said_and_nowhere_else(names, recogniser):
    for text in NAMES:
        spoken = list(pronounce(Name(text))[0])
        heard = simulate(spoken, 0.0, np.random.default_rng(0))
        assert names.find(heard.log_probs, recogniser.tokenizer, 0.04) == (text,)
    other = list(pronounce(Name("open the window please"))[0])
    heard = simulate(other, 0.0, np.random.default_rng(0))
    assert names.find(heard.log_probs, recogniser.tokenizer, 0.04) == ()
    assert names.find(heard.log_probs[:0], recogniser.tokenizer, 0.04) == ()


@pytest.mark.parametrize("near", ["lattice", "scann"])
def test_a_list_and_its_database_find_the_same(listed, recogniser, tmp_path, near):
    folder, names = str(tmp_path / "base"), HotwordList.open(listed, near)
    hotword_build.run(listed, folder, "bundled:commands:train", 1, near)
    built = HotwordList.open(folder, near)
    assert len(built.base) == len(names.base) == len(NAMES)
    for seed in range(6):
        spoken = list(pronounce(Name(NAMES[seed % len(NAMES)]))[0])
        heard = simulate(spoken, 0.2, np.random.default_rng(seed)).log_probs
        found = [
            each.find(heard, recogniser.tokenizer, 0.04) for each in (names, built)
        ]
        assert found[0] == found[1]
    digests = [hotwords.identify(path, near) for path in (folder, listed)]
    assert digests[0] != digests[1]
    if near == "lattice":
        with pytest.raises(ValueError, match="has no ScaNN index"):
            hotwords.identify(folder, "scann")


def test_it_writes_as_if_somebody_had_given_the_names(names, recogniser):
    """Whatever the random model hears; a padding row hears nothing."""
    audio = np.random.default_rng(0).normal(0, 0.1, (3, 9600)).astype(np.float32)
    mask = np.ones(audio.shape, bool)
    mask[2] = False
    frames = Frames(jnp.asarray(audio), jnp.asarray(mask))
    scores = recogniser.score_phonemes(frames)
    expected = [
        ("Anna", *names.find(scores[0], recogniser.tokenizer, 0.04)),
        names.find(scores[1], recogniser.tokenizer, 0.04),
        (),
    ]
    given = [("Anna",), (), ()]
    made = FindingRecogniser(recogniser, names).transcribe(frames, hints=given)
    assert [row.hints for row in made] == expected
    plain = recogniser.transcribe(frames, hints=expected)
    assert [row.text for row in made] == [row.text for row in plain]


def test_found_names_are_those_of_the_phonemes(names, recogniser, monkeypatch):
    """Each row has the names that its own phonemes say."""
    said = [NAMES[0], "", NAMES[2]]
    heard = [
        simulate(
            list(pronounce(Name(text))[0]) if text else [],
            0.0,
            np.random.default_rng(0),
        ).log_probs
        for text in said
    ]
    monkeypatch.setattr(type(recogniser), "score_phonemes", lambda self, audio: heard)
    audio = Frames(jnp.full((3, 9600), 0.1), jnp.ones((3, 9600), bool))
    made = FindingRecogniser(recogniser, names).transcribe(audio)
    assert [row.hints for row in made] == [(said[0],), (), (said[2],)]


def test_a_list_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "names.txt", tmp_path):
        with pytest.raises(ValueError, match="nim4 build_hotwords"):
            hotwords.identify(str(path))
    with pytest.raises(ValueError, match="no manifest of a hotword database"):
        HotwordList.open(str(tmp_path))
