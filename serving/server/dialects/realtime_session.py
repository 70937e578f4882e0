"""Session settings of OpenAI's Realtime transcription API."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from nim4_jax.decode.endpoint import EndpointConfig
from nim4_jax.serving.server.auth import Tenant
from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.engine import Options
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.hotword_finding import Asked
from nim4_jax.serving.server.hotword_messages import Keywords, ListNames
from nim4_jax.serving.server.languages import check_languages
from nim4_jax.serving.server.state import ServerState

PARTIALS = "nim4.partial"
"""Of `include`: whole partials beside the deltas; an extension."""
_NEVER = 1e6  # s
_EAGER = {"low": 1200, "auto": 600, "medium": 600, "high": 300}  # ms


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Format(_Part):
    """Of the audio: PCM16 little-endian, or G.711 at 8 kHz."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = pydantic.Field(default=None, ge=4_000, le=192_000)


class Transcription(_Part):
    """What is to be written; `prompt` and `delay` have no effect."""

    model: str | None = None
    language: str | None = None
    languages: tuple[str, ...] = ()
    keywords: Keywords = ()
    hotwords: ListNames = ()
    prompt: str | None = pydantic.Field(default=None, max_length=16_384)
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class TurnDetection(_Part):
    """When an utterance is over; both kinds go by silence."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: float | None = pydantic.Field(default=None, ge=0.05, le=1.0)
    prefix_padding_ms: int | None = pydantic.Field(default=None, ge=0, le=5_000)
    silence_duration_ms: int | None = pydantic.Field(default=None, ge=100, le=10_000)
    idle_timeout_ms: int | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None

    def make(self) -> EndpointConfig:
        """For the engine."""
        threshold = 0.5 if self.threshold is None else self.threshold
        silence = self.silence_duration_ms
        if silence is None:
            semantic = self.type == "semantic_vad"
            silence = _EAGER[self.eagerness or "auto"] if semantic else 500
        prefix = 300 if self.prefix_padding_ms is None else self.prefix_padding_ms
        return EndpointConfig(
            threshold=threshold,
            release=0.7 * threshold,
            end_silence=silence / 1000,
            pre_roll=prefix / 1000,
        )


class Input(_Part):
    """The client's audio; `noise_reduction` has no effect."""

    format: Format = Format()
    transcription: Transcription | None = Transcription()
    turn_detection: TurnDetection | None = TurnDetection()
    noise_reduction: dict[str, Any] | None = None


class Audio(_Part):
    """What is heard."""

    input: Input = Input()


class Session(_Part):
    """All of it."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: (
        tuple[
            Literal["item.input_audio_transcription.logprobs", "nim4.partial"],
            ...,
        ]
        | None
    ) = ()

    @property
    def heard(self) -> Input:
        """The audio's part."""
        return self.audio.input

    async def make(self, state: ServerState, tenant: Tenant) -> Options:
        """For the engine.

        Raises:
            ServeError: a value that this server has not.
        """
        asked = self.heard.transcription or Transcription()
        _check_model(asked.model, state.config)
        prefix = "session.audio.input.transcription"
        check_languages(
            [asked.language] if asked.language else [],
            state.config,
            f"{prefix}.language",
        )
        check_languages(asked.languages, state.config, f"{prefix}.languages")
        named = Asked(tenant, asked.keywords, asked.hotwords, f"{prefix}.hotwords")
        found = await state.find_names(named, state.config.chunk_ms[0])
        turns = self.heard.turn_detection
        return Options(
            state.config.chunk_ms[0],
            found.hints,
            found.follow(),
            turns.make() if turns else EndpointConfig(end_silence=_NEVER),
        )


def _check_model(name: str | None, config: ServerConfig) -> None:
    if name not in (None, config.model_name, *config.aliases):
        raise ServeError(
            400,
            "model_not_found",
            f"there is no such model; this server has {config.model_name}.",
            param="session.audio.input.transcription.model",
        )


def update(before: Session, given: Any) -> Session:
    """A session with some of its fields changed; those that are absent stay.

    Raises:
        ServeError: a field that is unknown, or has a value that it cannot have.
    """
    if not isinstance(given, dict):
        raise ServeError(400, "invalid_value", "session is no object.", param="session")
    merged = _merge(before.model_dump(), given)
    try:
        return Session.model_validate(merged)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(("session", *map(str, first["loc"])))
        unknown = first["type"] == "extra_forbidden"
        raise ServeError(
            400,
            "unknown_parameter" if unknown else "invalid_value",
            f"{param}: {first['msg']}.",
            param=param,
        ) from None


def _merge(before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Object into object; one of another type takes the whole place."""
    merged = dict(before)
    for key, value in given.items():
        old = before.get(key)
        merged[key] = value
        if isinstance(old, dict) and isinstance(value, dict):
            kind = old.get("type")
            if value.get("type", kind) == kind:
                merged[key] = _merge(old, value)
    return merged
