"""Keyword extraction by a large language model, any function from prompt to answer."""

from __future__ import annotations

import collections
import dataclasses
import http.client
import json
import re
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from nim4_jax.context.keywords import Extractor

INSTRUCTION = """\
Each line below is a transcript, a JSON string. For each one list the entities that it \
names: people, places, organisations, brands, products, works of art, technical terms. \
Copy them letter by letter; do not translate, correct or complete them. Leave out \
ordinary words. Answer with one JSON list and nothing else: for each transcript, in \
the same order, a list of strings, [] where there is none.
"""
_FENCED = re.compile(r"\s*```(?:json)?\n(.*)\n```\s*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ChatServer:
    """A server of OpenAI's chat completions, such as vLLM's or llama.cpp's.

    Attributes:
        url: of its API, http://HOST:PORT/v1.
        model: the LLM's name there.
        key: sent as a bearer token; "" for none.
        seconds: to wait for an answer.
    """

    url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    seconds: float = 300.0

    def ask(self, prompt: str) -> str:
        """The LLM's answer to a prompt.

        Raises:
            OSError: the server is not there, refuses, or takes too long.
            http.client.HTTPException, ValueError, LookupError, TypeError: it sends
                something else than an answer.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            json.dumps(body).encode(),
            headers,
        )
        with urllib.request.urlopen(request, timeout=self.seconds) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    def check(self) -> None:
        """Ask about nothing in particular, to learn early whether it answers.

        Raises:
            ValueError: it does not.
        """
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"got {self.url!r}; expected http://HOST:PORT/v1.")
        try:
            self.ask(write_prompt(["to Boston"]))
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
            LookupError,
            TypeError,
        ) as error:
            raise ValueError(
                f"no answer of {self.model!r} at {self.url} "
                f"({type(error).__name__}: {error}); expected a server of OpenAI's "
                "chat completions, such as vLLM's, and the name of a model there."
            ) from error


class LlmExtractor:
    """Asks in batches; where no good answer comes, another extractor does the work.

    Attributes:
        counts: texts by what became of them ("answered", or why the other extractor had
            to do), and "not in the text", the keywords that the LLM made up.
    """

    def __init__(
        self, ask: Callable[[str], str], fallback: Extractor, batch_size: int = 20
    ):
        """Nothing is asked yet.

        Args:
            ask: prompt → the LLM's answer; may raise whatever it likes.
            fallback: for texts without a good answer, such as a `StatisticalExtractor`.
            batch_size: texts in one prompt.

        Raises:
            ValueError: no text would fit a prompt.
        """
        if batch_size < 1:
            raise ValueError(f"got batch_size {batch_size}; expected 1 or more.")
        self._ask, self._fallback, self._size = ask, fallback, batch_size
        self.counts: collections.Counter[str] = collections.Counter()

    def __call__(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """Keywords of each text; empty texts are not asked about."""
        answers: list[tuple[str, ...] | None] = [() for _ in texts]
        asked = [index for index, text in enumerate(texts) if text.strip()]
        for start in range(0, len(asked), self._size):
            batch = asked[start : start + self._size]
            found = self._extract([texts[index] for index in batch])
            for index, keywords in zip(batch, found):
                answers[index] = keywords
        missing = [index for index, keywords in enumerate(answers) if keywords is None]
        instead = iter(self._fallback([texts[index] for index in missing]))
        return [next(instead) if found is None else found for found in answers]

    def _extract(self, texts: Sequence[str]) -> list[tuple[str, ...] | None]:
        """Keywords of a batch, None where the answer is of no use."""
        try:
            answer = self._ask(write_prompt(texts))
        except Exception as error:
            self.counts[f"failed: {type(error).__name__}"] += len(texts)
            return [None] * len(texts)
        lists = _parse(answer)
        if lists is None or len(lists) != len(texts):
            reason = "no JSON list" if lists is None else "lists of other texts"
            self.counts[f"failed: {reason}"] += len(texts)
            return [None] * len(texts)
        return [self._check(text, found) for text, found in zip(texts, lists)]

    def _check(self, text: str, found: Any) -> tuple[str, ...] | None:
        """The strings that the text holds; None if these are no strings."""
        if not isinstance(found, list) or not all(isinstance(k, str) for k in found):
            self.counts["failed: no strings"] += 1
            return None
        self.counts["answered"] += 1
        named = dict.fromkeys(keyword.strip() for keyword in found)
        kept = tuple(keyword for keyword in named if keyword and keyword in text)
        self.counts["not in the text"] += len(named) - len(kept)
        return kept


def write_prompt(texts: Sequence[str]) -> str:
    """What the LLM is asked about a batch of transcripts."""
    lines = (json.dumps(text, ensure_ascii=False) for text in texts)
    return INSTRUCTION + "\n" + "\n".join(lines)


def _parse(answer: Any) -> list[Any] | None:
    """A JSON list, alone or in a code fence; None for anything else."""
    try:
        fenced = _FENCED.fullmatch(answer)
        value = json.loads(fenced[1] if fenced else answer)
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None
