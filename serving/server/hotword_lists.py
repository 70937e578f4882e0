"""Hotword lists that the server holds and clients refer to by name."""

from __future__ import annotations

from collections.abc import Mapping

from nim4_jax.decode.hotwords import HotwordList
from nim4_jax.serving.server.errors import ServeError


class HotwordLists:
    """Lists by their names."""

    def __init__(self, lists: Mapping[str, HotwordList]):
        """Some lists."""
        self._lists = dict(lists)

    @classmethod
    def open(cls, paths: Mapping[str, str]) -> HotwordLists:
        """Databases of `nim4 build_hotwords`, or lists of names.

        Raises:
            ValueError: one that is not there or cannot be read.
        """
        return cls({name: HotwordList.open(path) for name, path in paths.items()})

    def __bool__(self) -> bool:
        return bool(self._lists)

    def find(self, name: str | None) -> HotwordList | None:
        """The list of a name; None for no name.

        Raises:
            ServeError: there is none.
        """
        if not name:
            return None
        if name not in self._lists:
            raise ServeError(
                404, "hotwords_not_found", "there is no such list.", param="hotwords"
            )
        return self._lists[name]
