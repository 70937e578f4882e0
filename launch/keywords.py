r"""Write the keywords of each text into a manifest, of which stages 5 and 6 make hints.

nim4 keywords --input=train.jsonl --out=train.keywords.jsonl
nim4 keywords --input=train.jsonl --out=train.keywords.jsonl --by=llm \
    --url=http://localhost:8000/v1 --model=Qwen3-30B-A3B-Instruct

By statistics: capitals, rare words that stand together, jieba's parts of speech. By an
LLM: any server of OpenAI's chat completions, such as vLLM's or llama.cpp's; the key, if
it wants one, is in $OPENAI_API_KEY. Texts that it gives no good answer to are done by
statistics and counted. Records that have keywords keep them (--replace looks anew).

The manifest appears whole or not at all. Finished pieces lie in OUT.parts until then:
after a kill the same command goes on.
"""

from __future__ import annotations

import os

from absl import app, flags

from nim4_jax.context import llm
from nim4_jax.data.corpora import keyword_manifest
from nim4_jax.data.corpora.keyword_manifest import Search
from nim4_jax.launch import program
from nim4_jax.retrieval import names

KINDS = ("statistics", "llm")
_PIECES = {"statistics": 100_000, "llm": 2_000}
_KEY = "OPENAI_API_KEY"


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("input", None, "Manifest (.jsonl).", required=True)
    flags.DEFINE_string("out", None, "New manifest; audio is named relative to it.")
    flags.DEFINE_bool("in_place", False, "Replace the input instead.")
    flags.DEFINE_enum("by", "statistics", KINDS, "Who finds keywords.")
    flags.DEFINE_string("url", None, "Of the LLM's server, http://HOST:PORT/v1.")
    flags.DEFINE_string("model", None, "Name of the LLM, as its server calls it.")
    flags.DEFINE_string(
        "names", None, "List of names: keywords wherever they are said."
    )
    flags.DEFINE_bool("replace", False, "Look anew where records have keywords.")
    flags.DEFINE_integer(
        "piece",
        None,
        "Lines that are counted, stored and repeated together; "
        f"default {_PIECES['statistics']} (an LLM: {_PIECES['llm']}). 2.5 kB of memory "
        "a line and process.",
        lower_bound=1,
    )
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes.", lower_bound=1)


def find_out(manifest: str, out: str | None, in_place: bool) -> str:
    """What is written.

    Raises:
        UsageError: neither a new manifest nor the input, both, or one as the other.
    """
    if bool(out) == in_place:
        raise app.UsageError(
            "give --out=NEW.jsonl, or --in_place to replace the input."
        )
    if out and os.path.realpath(out) == os.path.realpath(manifest):
        raise app.UsageError(f"{out} is the input; --in_place replaces it.")
    return out or manifest


def find_server(by: str, url: str | None, model: str | None) -> llm.ChatServer | None:
    """The LLM that was asked for, once it has answered.

    Raises:
        UsageError: flags that do not fit.
        ValueError: it does not answer.
    """
    if by != "llm":
        if url or model:
            raise app.UsageError("--url and --model are of --by=llm.")
        return None
    if not url or not model:
        raise app.UsageError(
            "--by=llm needs --url=http://HOST:PORT/v1 and --model=NAME."
        )
    server = llm.ChatServer(url, model, os.environ.get(_KEY, ""))
    server.check()
    return server


def run(search: Search, piece: int, workers: int) -> None:
    """Write the manifest and say what came of it."""
    counts = keyword_manifest.annotate(search, piece, workers)
    print(
        f"{search.out}: {counts.pop('records'):,} records; "
        f"{counts.pop('found', 0):,} of {counts.pop('searched', 0):,} texts that were "
        f"looked through say a keyword; {counts.pop('kept', 0):,} had theirs already"
    )
    for what, count in sorted(counts.items()):
        print(f"  LLM: {count:,} {what}")


def main(_) -> None:
    """Entry point of `nim4 keywords`."""
    given = flags.FLAGS
    out = find_out(given.input, given.out, given.in_place)
    listed = names.read_names(given.names) if given.names else ()
    search = Search(
        given.input,
        out,
        tuple(name.text for name in listed),
        find_server(given.by, given.url, given.model),
        given.replace,
    )
    run(search, given.piece or _PIECES[given.by], given.workers)


if __name__ == "__main__":
    program.launch(main, define_flags)
