"""`--hotwords`: names for every prompt, or a list that is looked for in the stream."""

from types import SimpleNamespace

import pytest

from nim4_jax.launch import hotword_flags
from nim4_jax.serving import live_transcription


class Listener:
    """Notes what a stream is opened with; the stream is over at once."""

    def open(self, **given):
        self.given = given
        return SimpleNamespace(closed=True, seconds=0.0)

    def drop(self, session):
        """Nothing to drop."""


def open_stream(hotwords, near="lattice"):
    given = hotword_flags.read(SimpleNamespace(hotwords=hotwords, near=near))
    listener = Listener()
    live_transcription.run_stream(listener, [], print, hotwords=given)
    return listener.given["hints"], listener.given["retriever"]


def test_names_are_for_every_prompt():
    assert open_stream("Ann, 小明，Bo,") == (("Ann", "小明", "Bo"), None)
    assert open_stream("") == ((), None)


@pytest.mark.parametrize("near", ["lattice", "scann", "none"])
def test_a_list_is_looked_for_in_the_stream(tmp_path, near):
    path = tmp_path / "names.txt"
    path.write_text("Wolfgang Mozart\n", encoding="utf8")
    names, retriever = open_stream(f"list:{path}", near)
    (layer,) = retriever._layers
    assert names == () and layer.near == near
    assert len(layer.served.base.database) == 1
