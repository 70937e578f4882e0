"""Hints are drawn with the shares that the configuration gives."""

import collections
import dataclasses

import numpy as np
import pytest

from nim4_jax.context.choose import HintConfig, choose_hints
from nim4_jax.context.distractors import Distractors
from nim4_jax.context.keywords import collect, occurs, spell

TEXTS = ["meet the knight at the 公事 office", "播放月光 by luna", "go home", ""]
OWN = [("knight", "公事"), ("月光", "luna"), (), ()]
OTHERS = ["night", "攻势", "luma", "boston", "oslo", "rome", "paris", "北京", "上海"]
S = collect(TEXTS, lambda texts: [], own=OWN, names=[*OTHERS, "office", "go", "Luna"])
NEAR = Distractors.build(S.texts)
DRAWS = 10_000
SPREAD = 0.02  # four standard deviations of a share of 10,000


def draw(number=0, seed=0, config=None):
    return choose_hints(
        TEXTS[number],
        S.utterances[number],
        S.texts,
        NEAR,
        np.random.default_rng(seed),
        config or HintConfig(),
    )


def draw_many(number=0, config=None):
    return [draw(number, seed, config) for seed in range(DRAWS)]


def share(hints, condition):
    return sum(map(condition, hints)) / len(hints)


def is_said(number):
    return lambda name: occurs(spell(name), spell(TEXTS[number]))


def test_shares_are_those_of_the_configuration():
    config = HintConfig(extra=0, p_none=0.3, p_misleading=0.2)
    hints = draw_many(0, config)
    for keyword, alike in (("knight", "night"), ("公事", "攻势")):
        said = share(hints, lambda drawn, k=keyword: k in drawn)
        assert said == pytest.approx(0.5 * config.p_keyword, abs=SPREAD)
        joined = [drawn for drawn in hints if keyword in drawn]
        near = share(joined, lambda drawn, a=alike: a in drawn)
        assert near == pytest.approx(config.p_distractor, abs=SPREAD)
    misled = share(hints, lambda drawn: bool(drawn) and not any(map(is_said(0), drawn)))
    assert misled == pytest.approx(config.p_misleading, abs=SPREAD)
    none = share(hints, lambda drawn: not drawn)
    nothing_drawn = 0.5 * (1 - config.p_keyword) ** 2
    assert none == pytest.approx(config.p_none + nothing_drawn, abs=SPREAD)


def test_every_number_of_random_distractors_is_as_likely():
    """A text without keywords has hints too, all of which mislead."""
    config = HintConfig(p_none=0.2, p_misleading=0.0)
    counts = collections.Counter(map(len, draw_many(2, config)))
    assert counts[0] / DRAWS == pytest.approx(0.2 + 0.8 / 5, abs=SPREAD)
    for number in range(1, 5):
        assert counts[number] / DRAWS == pytest.approx(0.8 / 5, abs=SPREAD)


def test_random_distractors_are_all_equally_likely():
    config = HintConfig(p_none=0.0, p_misleading=0.0, extra=2)
    counts = collections.Counter(h for drawn in draw_many(3, config) for h in drawn)
    assert set(map(spell, counts)) == set(map(spell, S.texts))
    for count in counts.values():
        assert count / DRAWS == pytest.approx(1 / len(S), abs=SPREAD)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_no_distractor_is_said(number):
    own = set(S.utterances[number])
    for drawn in draw_many(number, HintConfig(extra=8))[:3000]:
        assert not any(map(is_said(number), set(drawn) - own))
        assert len({spell(name) for name in drawn}) == len(drawn) <= 10


def test_a_keyword_without_neighbours_is_joined_by_any_name():
    config = HintConfig(1.0, 1.0, 0.0, 0.0, extra=0, max_distance=0.0)
    hints = [draw(1, seed, config) for seed in range(300)]
    assert all({"月光", "luna"} < set(drawn) and len(drawn) == 4 for drawn in hints)
    assert len({name for drawn in hints for name in drawn}) > 8


def test_misleading_hints_are_never_empty():
    config = HintConfig(p_none=0.0, p_misleading=1.0, extra=0)
    for number in range(len(TEXTS)):
        for seed in range(300):
            drawn = draw(number, seed, config)
            assert drawn and not any(map(is_said(number), drawn))


def test_keywords_are_the_last_to_go():
    config = HintConfig(1.0, 1.0, 0.0, 0.0, extra=8, most=2)
    assert all(set(draw(0, seed, config)) == {"knight", "公事"} for seed in range(50))
    config = dataclasses.replace(config, most=4)
    alike = {"knight", "公事", "night", "攻势"}
    assert all(set(draw(0, seed, config)) == alike for seed in range(50))
    assert draw(0, 0, dataclasses.replace(config, most=0)) == ()
    single = {draw(0, s, dataclasses.replace(config, most=1)) for s in range(50)}
    assert single == {("knight",), ("公事",)}


def test_hints_stand_in_any_order():
    config = HintConfig(1.0, 1.0, 0.0, 0.0, extra=0)
    first = collections.Counter(drawn[0] for drawn in draw_many(0, config)[:4000])
    assert len(first) == 4
    assert all(abs(count / 4000 - 0.25) < 0.035 for count in first.values())


def test_the_same_rng_draws_the_same_hints():
    for number in range(len(TEXTS)):
        every = [draw(number, seed) for seed in range(200)]
        assert every == [draw(number, seed) for seed in range(200)]
        assert len(set(every)) > 20


def test_an_empty_set_leaves_the_keywords():
    nothing = collect([], lambda texts: [])
    config = HintConfig(1.0, 1.0, 0.0, 0.0)
    rng = np.random.default_rng(0)
    empty = Distractors.build(())
    assert choose_hints("boston", ("boston",), nothing, empty, rng, config) == (
        "boston",
    )
    assert choose_hints("", (), nothing, empty, rng, config) == ()


@pytest.mark.parametrize(
    "wrong",
    [{"p_keyword": 1.1}, {"p_none": 0.7, "p_misleading": 0.4}, {"most": -1}],
)
def test_a_configuration_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        HintConfig(**wrong)
