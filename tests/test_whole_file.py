"""A file is there whole or not at all."""

import json
import resource
import subprocess
import sys

import pytest

from nim4_jax import whole_file

FULL = """
import resource
import signal
import sys

from nim4_jax import whole_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
whole_file.write_text(sys.argv[1], "x" * 100_000)
"""


def test_text_is_replaced(tmp_path):
    """What was there is gone, what is new is there, and nothing beside it."""
    path = tmp_path / "names.txt"
    (tmp_path / "names.txt.tmp").write_text("left by a process that was killed")
    for text in ("Grüße, 你好\n", "shorter\n"):
        whole_file.write_text(path, text)
        assert path.read_text(encoding="utf8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_of_any_bytes_is_written_as_json_has_it(tmp_path):
    name, path = "caf\udce9.wav", tmp_path / "rows.json"
    whole_file.write_text(path, json.dumps({"file": name}, ensure_ascii=False))
    assert json.loads(path.read_text(encoding="utf8")) == {"file": name}


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="POSIX only")
def test_without_room_the_file_is_as_it_was(tmp_path):
    """An error, no half of the new text, and no leftover."""
    path = tmp_path / "names.txt"
    path.write_text("before\n")
    done = subprocess.run(
        [sys.executable, "-c", FULL, path], capture_output=True, text=True
    )
    assert done.returncode and "File too large" in done.stderr
    assert path.read_text() == "before\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
    """The system's error, which names it."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        whole_file.write_text(tmp_path / "nowhere" / "names.txt", "text")


def test_into_an_object_store(object_store):
    """There are no other names in a bucket."""
    whole_file.write_text("gs://bucket/names.txt", "text")
    names = [name.rpartition("/")[2] for name in object_store.store]
    assert names == ["names.txt"]
