"""The fields of OpenAI's transcription requests, read and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal

import pydantic
from starlette.datastructures import FormData, UploadFile

from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.hotword_messages import Keywords, ListNames
from nim4_jax.serving.server.languages import check_languages

_LISTS = ("hotwords", "include", "keywords", "languages", "timestamp_granularities")
_SPEAKERS = ("known_speaker_names", "known_speaker_references")
_INNER = re.compile(r"(\w+)\[(\w+)\]")
_MOST_TEXT = 16_384  # characters of a prompt


class ServerVad(pydantic.BaseModel):
    """How the client would cut the audio; the server cuts where nobody speaks."""

    type: Literal["server_vad"]
    prefix_padding_ms: int = pydantic.Field(default=300, ge=0)
    silence_duration_ms: int = pydantic.Field(default=200, ge=0)
    threshold: float = pydantic.Field(default=0.5, ge=0, le=1)


class Fields(pydantic.BaseModel):
    """All but the file.

    Attributes:
        model: that is asked for.
        language: that is spoken.
        languages: that may be spoken.
        prompt: text before; the model takes names only, so it is not used.
        keywords: names for every prompt.
        hotwords: lists of the server, of which names are found; an extension.
        response_format: form of the answer.
        temperature: not used: decoding is greedy.
        timestamp_granularities: what gets times in verbose_json.
        chunking_strategy: not used: long files are cut where nobody speaks.
        include: "logprobs" or nothing.
        stream: whether the text comes as it is written.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    model: str
    language: str | None = None
    languages: tuple[str, ...] = pydantic.Field(default=(), max_length=16)
    prompt: str = pydantic.Field(default="", max_length=_MOST_TEXT)
    keywords: Keywords = ()
    hotwords: ListNames = ()
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: float = pydantic.Field(default=0.0, ge=0, le=1)
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = ("segment",)
    chunking_strategy: Literal["auto"] | ServerVad | None = None
    include: tuple[Literal["logprobs"], ...] = ()
    stream: bool = False

    def check(self, config: ServerConfig) -> None:
        """See that the server can do it.

        Raises:
            ServeError: it cannot.
        """
        if self.model not in (config.model_name, *config.aliases):
            raise ServeError(
                404,
                "model_not_found",
                f"there is no such model; this server has {config.model_name}.",
                param="model",
            )
        check_languages([self.language] if self.language else [], config, "language")
        check_languages(self.languages, config, "languages")
        if self.stream and self.response_format not in ("json", "text"):
            raise ServeError(
                400,
                "invalid_value",
                "streams are of response_format json or text.",
                param="response_format",
            )


def read(form: FormData) -> tuple[UploadFile, Fields]:
    """File and fields of a form.

    Raises:
        ServeError: one that is missing, unknown or wrong, by name.
    """
    values: dict[str, Any] = {}
    for key in form:
        given = form.getlist(key)
        name = key.removesuffix("[]")
        if name == "file":
            continue
        if name in _SPEAKERS:
            raise ServeError(
                400, "unsupported_field", "the model tells no speakers.", param=name
            )
        if any(isinstance(value, UploadFile) for value in given):
            raise ServeError(400, "invalid_value", "expected a text.", param=name)
        if inner := _INNER.fullmatch(key):
            own = values.setdefault(inner[1], {})
            if isinstance(own, dict):
                own[inner[2]] = given[-1]
        elif name in _LISTS:
            values[name] = [*values.get(name, ()), *_split(name, given)]
        elif given[-1] != "":
            values[name] = given[-1]
    _read_strategy(values)
    files = form.getlist("file")
    if len(files) != 1 or not isinstance(files[0], UploadFile):
        raise ServeError(
            400, "missing_required_parameter", "expected one file.", param="file"
        )
    try:
        return files[0], Fields(**values)
    except pydantic.ValidationError as error:
        raise _explain(error) from None


def _split(name: str, given: Iterable[Any]) -> list[str]:
    """Values of a list; names may also be a line each, or parted by commas."""
    if name not in ("hotwords", "keywords", "languages"):
        return [str(value) for value in given]
    parts = (part for value in given for part in re.split("[,\n]", str(value)))
    return [part.strip() for part in parts if part.strip()]


def _read_strategy(values: dict[str, Any]) -> None:
    """`chunking_strategy` may be JSON."""
    given = values.get("chunking_strategy")
    if isinstance(given, str) and given.startswith("{"):
        try:
            values["chunking_strategy"] = json.loads(given)
        except ValueError:
            return  # told as a value that it cannot have


def _explain(error: pydantic.ValidationError) -> ServeError:
    """The first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    param = str(first["loc"][0])
    if first["type"] == "missing":
        code, message = "missing_required_parameter", f"{param} is missing."
    elif first["type"] == "extra_forbidden":
        code, message = "unknown_parameter", f"{param} is no field of this request."
    else:
        code, message = "invalid_value", f"{param}: {first['msg']}."
    return ServeError(400, code, message, param=param)
