"""nim4 build_hotwords: lists in, databases out, each tenant's apart."""

import itertools

import numpy as np
import pytest

from nim4_jax.retrieval import database
from nim4_jax.retrieval.names import Name
from nim4_jax.retrieval.pronunciation import pronounce
from nim4_jax.serving import hotword_build


def build(tmp_path, content, workers=1, out="db"):
    path = tmp_path / "list.tsv"
    path.write_text(content, encoding="utf8")
    folder = str(tmp_path / out)
    return hotword_build.run(str(path), folder, "bundled:commands:test", workers)


def texts(base):
    return {base.name(number).text for number in range(len(base))}


def test_a_list_becomes_a_database(tmp_path, capsys):
    build(tmp_path, "NIO\nNIO House\nNIO\n😀\n" + "x y " * 2500 + "\n")
    base = database.load(str(tmp_path / "db"))
    assert texts(base) == {"NIO", "NIO House"}
    printed = capsys.readouterr().out
    assert "2 names under 2 keys" in printed and "2 that cannot be" in printed
    assert "1 listed twice" in printed and "by chance an hour" in printed


def test_no_name_of_a_tenant_is_in_another_database(tmp_path):
    content = "NIO\nWeilai\t\t\t\tacme\nTesla\t\t2\tcar\tbmw\n"
    build(tmp_path, content)
    found = {
        place: texts(database.load(str(tmp_path / "db" / place)))
        for place in ("", "tenants/acme", "tenants/bmw")
    }
    assert found == {"": {"NIO"}, "tenants/acme": {"Weilai"}, "tenants/bmw": {"Tesla"}}


@pytest.mark.parametrize("tenant", ["..", "a/b", "../../etc"])
def test_a_tenant_cannot_leave_the_folder(tmp_path, tenant):
    with pytest.raises(ValueError, match="cannot be the name of a folder"):
        build(tmp_path, f"NIO\t\t\t\t{tenant}\n")


def test_a_second_build_pronounces_only_what_is_new(tmp_path, monkeypatch):
    build(tmp_path, "NIO\ntomato\n")
    asked = []

    def listen(piece):
        asked.extend(name.text for name in piece)
        return [pronounce(name) for name in piece]

    monkeypatch.setattr(hotword_build, "_pronounce_all", listen)
    build(tmp_path, "tomato\nWeilai\n")
    assert asked == ["Weilai"]
    base = database.load(str(tmp_path / "db"))
    assert texts(base) == {"tomato", "Weilai"}
    assert len(base.machine.lengths) == 3  # tomato is said in two ways


def test_a_given_pronunciation_wins(tmp_path):
    build(tmp_path, "NIO\tW EY L AY\n")
    base = database.load(str(tmp_path / "db"))
    heard = np.frombuffer(pronounce(Name("x", "W EY L AY"))[0], np.uint8)
    _, matches = base.machine.scan(0, heard)
    assert [n.text for n in base.names_of(int(matches.keys[0]))] == ["NIO"]


def find(base, pronunciation):
    """Texts of the names that are said so."""
    (key,) = pronounce(Name("x", pronunciation))
    _, matches = base.machine.scan(0, np.frombuffer(key, np.uint8))
    return {n.text for key in matches.keys for n in base.names_of(int(key))}


@pytest.mark.parametrize("turn", [1, -1])
def test_a_name_listed_twice_has_the_readings_of_both_lines(tmp_path, turn):
    """In any order, of a folder that knows it already; one may be of no use."""
    build(tmp_path, "NIO\n")
    endless = "AH " * 200
    lines = ["NIO\tW EY L AY", f"NIO\t{endless}", "NIO"][::turn]
    build(tmp_path, "\n".join(lines))
    base = database.load(str(tmp_path / "db"))
    (usual, *_) = pronounce(Name("NIO"))
    spelled = {base.machine.spell(key) for key in range(len(base.machine.lengths))}
    assert usual in spelled and find(base, "W EY L AY") == {"NIO"}


def test_a_tenant_who_is_no_longer_listed_finds_nothing(tmp_path):
    build(tmp_path, "NIO\nWeilai\t\t\t\tacme\n")
    build(tmp_path, "NIO\n")
    assert not texts(database.load(str(tmp_path / "db" / "tenants" / "acme")))


def test_workers_change_nothing(tmp_path):
    letters = itertools.product("bdgk", "aeiou", "lmnr", "aeiou", "tsz")
    content = "\n".join("".join(name) for name in itertools.islice(letters, 600))
    one = build(tmp_path, content, 1, "one")[""]
    two = build(tmp_path, content, 2, "two")[""]
    assert len(one) == 600
    for name, array in database._arrays(one).items():
        np.testing.assert_array_equal(database._arrays(two)[name], array)


def test_frequent_sequences_are_expected_more_often(tmp_path):
    base = build(tmp_path, "the\nand\nKwyjibo Zhdanov\n")[""]
    chance = {base.name(i).text: 0.0 for i in range(3)}
    for key, expected in enumerate(base.chance):
        for name in base.names_of(key):
            chance[name.text] = max(chance[name.text], float(expected))
    assert chance["the"] > 1.0 > 1e-6 > chance["Kwyjibo Zhdanov"]


def test_an_index_is_built_with_the_list_or_later_for_every_tenant(tmp_path, capsys):
    path, tenant = tmp_path / "list.tsv", "tenants/acme"
    path.write_text("NIO House\nWeilai\t\t\t\tacme\n", encoding="utf8")
    text = "bundled:commands:test"
    hotword_build.run(str(path), str(tmp_path / "one"), text, 1, near="scann")
    hotword_build.run(str(path), str(tmp_path / "two"), text, 1)
    with pytest.raises(ValueError, match="has no ScaNN index"):
        database.load(str(tmp_path / "two" / tenant), "scann")
    hotword_build.add_indexes(str(tmp_path / "two"))
    assert "near matches also by" in capsys.readouterr().out
    for out in ("one", "two"):
        for place in ("", tenant):
            base = database.load(str(tmp_path / out / place), "scann")
            assert base.index is not None and len(base.index) == len(base.windows)
