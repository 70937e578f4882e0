"""`--hotwords` of `nim4 transcribe`: names for every prompt, or a list to be found.

--hotwords=Anna,小明                  in every prompt
--hotwords=list:hotwords             a database of nim4 build_hotwords, or a list of
                                     names: those in the prompt that are heard
"""

from __future__ import annotations

import re
from typing import Any

from absl import flags

from nim4_jax.decode import hotwords
from nim4_jax.decode.hotwords import HotwordList
from nim4_jax.eval.sweep.systems import LIST
from nim4_jax.retrieval import gate, names


def define_flags() -> None:
    """The two flags."""
    flags.DEFINE_string(
        "hotwords",
        "",
        "With --stream, names for every prompt, by commas; or list:PATH, a hotword "
        "database or a list of names, of which those that are heard come into the "
        "prompt.",
    )
    flags.DEFINE_enum(
        "near",
        gate.LATTICE,
        gate.WAYS,
        "Where names of list:PATH are looked for nearly: the lattice of what was "
        "heard, ScaNN's index of a folder (nim4 build_hotwords --near=scann), nowhere.",
    )


def read(given: Any) -> hotwords.Hotwords:
    """From the values of the flags.

    Raises:
        ValueError: no database and no list at PATH, or one without the index.
    """
    path = given.hotwords.removeprefix(LIST)
    if path != given.hotwords and path:
        return hotwords.Hotwords(found=HotwordList.open(path, given.near))
    listed = map(names.clean, re.split("[,，]", given.hotwords))
    return hotwords.Hotwords(names=tuple(name for name in listed if name))
