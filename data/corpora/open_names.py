"""Generation of new names of people and places, in no list of this project.

An LLM that has only ever written a few hundred names writes those whatever it hears,
and never looks at its prompt. So English names are drawn from the words of CMUdict,
which has most surnames and towns, and Chinese ones from the people and places of
jieba's dictionary. One in twelve is held out, for testing on names never written.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

from nim4_jax.text import g2p

HELD_OUT_SHARE = 12
_TWO_WORDS = 0.4  # share of English names of two words
_PERSON = 0.6  # share of Chinese names that are people's
_SURNAMES = frozenset(
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林郑谢罗梁宋唐许韩冯邓曹彭曾萧田董袁潘蒋蔡余"
    "杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙"
    "史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)


def sample(rng: np.random.Generator, lang: str, held_out: bool = False) -> str:
    """Draw one name, as the grammar writes names.

    Args:
        rng: the source of randomness, advanced by the draw.
        lang: "en" or "zh".
        held_out: only of the names, or words of names, that training never draws.
    """
    if lang == "zh":
        people, places = _load_chinese(held_out)
        names = people if rng.random() < _PERSON else places
        return names[int(rng.integers(len(names)))]
    words = _load_english(held_out)
    count = 2 if rng.random() < _TWO_WORDS else 1
    return " ".join(words[int(rng.integers(len(words)))] for _ in range(count))


def is_held_out(name: str) -> bool:
    """Whether a name (in English, a word of one) is kept for testing, by a hash."""
    digest = hashlib.sha256(b"name " + name.encode("utf8")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


@functools.cache
def _load_english(held_out: bool) -> tuple[str, ...]:
    words = (word for word in g2p.load_dictionary() if word.isascii())
    fitting = (word for word in words if word.isalpha() and 4 <= len(word) <= 9)
    return tuple(word for word in fitting if is_held_out(word) == held_out)


@functools.cache
def _load_chinese(held_out: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """People and places of jieba's dictionary."""
    # Its dictionary takes a second to load; only those who draw names pay for it.
    import jieba

    people, places = [], []
    with jieba.get_dict_file() as lines:
        for line in lines:
            name, _, tag = line.decode("utf8").split()
            if is_held_out(name) != held_out:
                continue
            if tag == "nr" and 2 <= len(name) <= 3 and name[0] in _SURNAMES:
                people.append(name)
            elif tag == "ns" and 2 <= len(name) <= 4:
                places.append(name)
    return tuple(people), tuple(places)
