"""nim4 keywords: what the loader would find, written once; nothing half done."""

import http.server
import json
import threading

import pytest
from absl import app

from nim4_jax.context import keywords as finding
from nim4_jax.context.llm import ChatServer
from nim4_jax.context.statistical import StatisticalExtractor
from nim4_jax.data.corpora import keyword_manifest
from nim4_jax.data.corpora.keyword_manifest import Search
from nim4_jax.data.pipeline.keyword_pool import KeywordPool
from nim4_jax.data.sources import opening
from nim4_jax.launch import keywords


@pytest.fixture(scope="module")
def texts() -> list[str]:
    commands = opening.open_source("bundled:commands:test")
    return [commands[index]["text"] for index in range(len(commands))]


def write(path, texts, **keys):
    rows = [{"audio": f"{i}.wav", "text": text, **keys} for i, text in enumerate(texts)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf8")
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def annotate(manifest, out, piece=100_000, workers=1, **options):
    search = Search(str(manifest), str(out), **options)
    return keyword_manifest.annotate(search, piece, workers)


def open_pool(path) -> KeywordPool:
    corpus, _ = opening.open_sources([str(path)])
    return KeywordPool.open(corpus, (), 20_000, 0)


def test_law_offline_keywords_are_those_that_the_loader_found(tmp_path, texts):
    """And the loader reads them back; of S only names that nobody says are gone."""
    bare, out = write(tmp_path / "bare.jsonl", texts, extra=1), tmp_path / "new.jsonl"
    counts = annotate(bare, out)
    wanted = finding.collect(texts, StatisticalExtractor.fit(texts))
    rows = read(out)
    assert [tuple(row.pop("keywords")) for row in rows] == list(wanted.utterances)
    assert rows == read(tmp_path / "bare.jsonl")
    assert counts["found"] == sum(map(bool, wanted.utterances)) > 50
    searched, read_back = open_pool(bare), open_pool(out)
    assert searched.names == wanted.texts and searched.found
    assert read_back.names == tuple(k for k, n in wanted.counts.items() if n)
    assert not read_back.found
    for index in range(len(texts)):
        assert searched.read(index) == read_back.read(index)


def test_processes_change_nothing(tmp_path, texts):
    bare = write(tmp_path / "bare.jsonl", texts[:90])
    for workers in (1, 2):
        annotate(bare, tmp_path / f"{workers}.jsonl", 40, workers)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "1.jsonl",
        "2.jsonl",
        "bare.jsonl",
    ]


def test_a_killed_run_goes_on_with_the_pieces_that_are_missing(
    tmp_path, texts, monkeypatch
):
    bare, out = write(tmp_path / "bare.jsonl", texts[:60]), tmp_path / "new.jsonl"
    annotate(bare, tmp_path / "whole.jsonl", 10)
    work, done = keyword_manifest._annotate_piece, []

    def killed(*arguments):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(arguments[1])
        return work(*arguments)

    monkeypatch.setattr(keyword_manifest, "_annotate_piece", killed)
    with pytest.raises(KeyboardInterrupt):
        annotate(bare, out, 10)
    assert not out.exists()
    # What a kill leaves in the midst of a piece is no piece.
    (tmp_path / "new.jsonl.parts" / "0.jsonl.tmp").write_text("{")
    done.clear()
    counts = annotate(bare, out, 10)
    assert len(done) == 2 and counts["records"] == 60
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "new.jsonl.parts").exists()


def test_records_keep_their_keywords_unless_asked(tmp_path):
    rows = [
        {"audio": "a.wav", "text": "call Anna Reed now", "keywords": ["Anna Reed"]},
        {"audio_filepath": "b.wav", "text": "so call anna reed", "offset": 1},
        {"audio": "/c.wav", "text": "go home \ud83d", "keywords": []},
    ]
    path = tmp_path / "some.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-16")
    folder = tmp_path / "new"
    counts = annotate(path, folder / "out.jsonl")
    made = read(folder / "out.jsonl")
    assert [row["keywords"] for row in made] == [["Anna Reed"], ["anna reed"], []]
    assert (counts["kept"], counts["searched"]) == (2, 1)
    assert made[0]["audio"] == "../a.wav" and made[1]["audio_filepath"] == "../b.wav"
    assert made[2]["audio"] == "/c.wav" and "\ud83d" in made[2]["text"]
    opened = opening.open_source(str(folder / "out.jsonl"))
    assert (folder / opened[1]["audio"]).resolve() == tmp_path / "b.wav"
    counts = annotate(path, path, replace=True, names=("home",))
    assert [row["keywords"] for row in read(path)][1:] == [["anna reed"], ["home"]]
    assert counts["kept"] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"bad.jsonl:2: not JSON"),
        ('{"text": "a"}', r"bad.jsonl:2: the key 'audio' is missing"),
        ('{"audio": "a", "text": "a", "keywords": 3}', r"bad.jsonl:2: 'keywords' is 3"),
        ("\udcff", r"bad.jsonl:2: not UTF-8"),
    ],
)
def test_a_broken_line_is_named_before_any_work(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    text = f'{{"audio": "a", "text": "boston"}}\n{line}\n'
    path.write_bytes(text.encode("utf8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        annotate(path, tmp_path / "out.jsonl", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_what_cannot_be_read_or_written_is_told(tmp_path):
    for source in ("tfds:librispeech:train", str(tmp_path / "none.jsonl")):
        with pytest.raises(ValueError, match="no manifest at"):
            annotate(source, tmp_path / "out.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(ValueError, match="has no record"):
        annotate(empty, tmp_path / "out.jsonl")
    same = str(tmp_path / "x" / ".." / "empty.jsonl")
    with pytest.raises(app.UsageError, match="is the input"):
        keywords.find_out(str(empty), same, False)
    with pytest.raises(app.UsageError, match="--in_place"):
        keywords.find_out(str(empty), None, False)
    with pytest.raises(app.UsageError, match="--in_place"):
        keywords.find_out(str(empty), "other.jsonl", True)
    assert keywords.find_out("a", None, True) == "a"


# --- the LLM


class Server(http.server.BaseHTTPRequestHandler):
    """Says that the first word of each text is a keyword; knows one model and key."""

    broken = False

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        lines = body["messages"][0]["content"].splitlines()
        asked = [json.loads(line) for line in lines if line.startswith('"')]
        content = json.dumps([text.split()[:1] for text in asked])
        known = self.headers["Authorization"] == "Bearer secret"
        known = known and self.path == "/v1/chat/completions" and body["model"] == "m"
        self.send_response(200 if known else 404)
        self.end_headers()
        content = "no idea" if self.broken and len(asked) > 1 else content
        answer = {"choices": [{"message": {"content": content}}]}
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield ChatServer(f"http://127.0.0.1:{running.server_port}/v1/", "m", "secret", 10)
    running.shutdown()
    running.server_close()


def test_an_llm_lists_keywords(tmp_path, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    found = keywords.find_server("llm", server.url, "m")
    assert found == ChatServer(server.url, "m", "secret") and "secret" not in repr(
        found
    )
    bare = write(tmp_path / "bare.jsonl", ["oslo is cold", "boston too", "to oslo"])
    counts = annotate(bare, tmp_path / "out.jsonl", server=found)
    made = [row["keywords"] for row in read(tmp_path / "out.jsonl")]
    # Taken for a keyword once, it is looked for everywhere.
    assert made == [["oslo"], ["boston"], ["to", "oslo"]]
    assert counts["answered"] == 3


def test_an_llm_that_does_not_answer_ends_the_run(tmp_path, server, monkeypatch):
    for url, model in (
        (server.url, "other"),
        ("http://127.0.0.1:9/v1", "m"),
        ("x", "m"),
    ):
        with pytest.raises(ValueError, match=r"no answer of|expected http"):
            keywords.find_server("llm", url, model)
    for wrong in (("llm", None, "m"), ("statistics", server.url, None)):
        with pytest.raises(app.UsageError, match="--by=llm"):
            keywords.find_server(*wrong)
    monkeypatch.setattr(Server, "broken", True)
    bare = write(tmp_path / "bare.jsonl", ["oslo is cold", "boston too"])
    with pytest.raises(ValueError, match="0 texts answered, 2 failed: no JSON list"):
        annotate(bare, tmp_path / "out.jsonl", server=server)
    assert not (tmp_path / "out.jsonl").exists()
