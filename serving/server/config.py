"""Settings of the server: a TOML file, NIM4_SERVE_* and flags, each over the last."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

PREFIX = "NIM4_SERVE_"
KEYS = f"{PREFIX}KEYS"
"""Of the environment: keys by commas, TENANT:KEY each; never printed."""


class ServerConfig(pydantic.BaseModel):
    """All settings.

    Attributes:
        model: workdir, .safetensors file or bundle.
        model_name: what clients call it.
        aliases: other names of models that clients may ask for and get this one.
        languages: that it writes, ISO 639-1.
        host: address to listen at.
        port: to listen at; 0 for any.
        keys_file: TOML with API keys, see `auth`; "" for none.
        origins: of pages that may call from elsewhere, as https://example.org.
        streams: most streams at once.
        chunk_ms: lengths of chunks that streams may ask for, the default first. Each
            takes the device's memory for all streams.
        left: chunks that a chunk sees to its left.
        window_ms: how long a chunk waits for those of other streams.
        waiting_seconds: audio of a stream that may wait to be heard; who sends more has
            to wait.
        unsent_events: of a stream; a client that leaves more of them unread is dropped.
        send_seconds: that a client may take to read one event.
        idle_seconds: without audio after which a stream is ended.
        stream_seconds: longest stream.
        message_kib: largest message of a WebSocket.
        files: whole files at once.
        waiting_files: that may wait for those.
        file_rows: segments of files in one call of the device.
        file_share: of the device's time that files may have while streams wait.
        upload_mib: largest request.
        upload_seconds: that an upload may take.
        file_seconds: longest audio of a file.
        decode_seconds: of processor time that a file's decoding may take.
        decode_mib: memory that it may take.
        hotwords: lists that clients may name: name to database or list of names.
        hotwords_dir: folder for the lists that clients make; "" for one that goes with
            the process.
        hotword_builders: processes that build those lists; a tenant has one at a time.
        hotword_mib: memory of each.
        hotword_seconds: that a list may take.
        grace_seconds: that streams have for their finals after SIGTERM.
        wyoming_port: of the Wyoming protocol, which knows no keys; None for none, 0 for
            any.
        wyoming_host: address to listen at for it.
        wyoming_streams: most streams of its clients, all together.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=()
    )

    model: str = ""
    model_name: str = "nim4-asr"
    aliases: tuple[str, ...] = (
        "whisper-1",
        "gpt-4o-transcribe",
        "gpt-4o-mini-transcribe",
        "gpt-transcribe",
    )
    languages: tuple[str, ...] = ("en", "zh")
    host: str = "127.0.0.1"
    port: int = pydantic.Field(default=8000, ge=0, lt=65536)
    keys_file: str = ""
    origins: tuple[str, ...] = ()
    streams: int = pydantic.Field(default=16, ge=1)
    chunk_ms: tuple[int, ...] = pydantic.Field(default=(640,), min_length=1)
    left: int = pydantic.Field(default=4, ge=0)
    window_ms: float = pydantic.Field(default=10.0, ge=0, le=1000)
    waiting_seconds: float = pydantic.Field(default=10.0, gt=0)
    unsent_events: int = pydantic.Field(default=256, ge=8)
    send_seconds: float = pydantic.Field(default=20.0, gt=0)
    idle_seconds: float = pydantic.Field(default=300.0, gt=0)
    stream_seconds: float = pydantic.Field(default=24 * 3600.0, gt=0)
    message_kib: int = pydantic.Field(default=20 * 1024, ge=1)
    files: int = pydantic.Field(default=2, ge=1)
    waiting_files: int = pydantic.Field(default=32, ge=0)
    file_rows: int = pydantic.Field(default=1, ge=1)
    file_share: float = pydantic.Field(default=0.25, gt=0, lt=1)
    upload_mib: int = pydantic.Field(default=512, ge=1)
    upload_seconds: float = pydantic.Field(default=600.0, gt=0)
    file_seconds: float = pydantic.Field(default=4 * 3600.0, gt=0)
    decode_seconds: int = pydantic.Field(default=600, ge=1)
    decode_mib: int = pydantic.Field(default=2048, ge=256)
    hotwords: dict[str, str] = {}
    hotwords_dir: str = ""
    hotword_builders: int = pydantic.Field(default=2, ge=1)
    hotword_mib: int = pydantic.Field(default=8192, ge=512)
    hotword_seconds: float = pydantic.Field(default=900.0, gt=0)
    grace_seconds: float = pydantic.Field(default=30.0, ge=0)
    wyoming_port: int | None = pydantic.Field(default=None, ge=0, lt=65536)
    wyoming_host: str = "127.0.0.1"
    wyoming_streams: int = pydantic.Field(default=4, ge=1)

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host) and (
            self.wyoming_port is None or is_loopback(self.wyoming_host)
        )

    def describe(self) -> str:
        """A line a setting; there are no secrets among them."""
        return "\n".join(f"  {name} = {value!r}" for name, value in self)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read(
    file: str = "",
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, Any] | None = None,
) -> ServerConfig:
    """Settings of the file, over them those of the environment, over them the flags.

    Args:
        file: TOML; "" for none.
        environment: NIM4_SERVE_STREAMS=32 sets `streams`; tuples by commas.
        flags: those that were given.

    Raises:
        ValueError: an unknown setting, or a value that it cannot have.
    """
    values: dict[str, Any] = {}
    if file:
        try:
            values = tomllib.loads(Path(file).read_text(encoding="utf8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{file} is no TOML: {error}.") from error
    told = {name: file for name in values}
    for name, value in environment.items():
        if name.startswith(PREFIX) and name != KEYS:
            field = name.removeprefix(PREFIX).lower()
            values[field], told[field] = _split(field, value), name
    for name, value in (flags or {}).items():
        values[name], told[name] = value, f"--{name}"
    try:
        return ServerConfig(**values)
    except pydantic.ValidationError as error:
        raise ValueError(_explain(error, told)) from error


def _split(name: str, value: str) -> Any:
    """A value of the environment; tuples are written with commas."""
    field = ServerConfig.model_fields.get(name)
    if field is not None and str(field.annotation).startswith("tuple"):
        return tuple(part for part in value.split(",") if part)
    return value


def _explain(error: pydantic.ValidationError, told: Mapping[str, str]) -> str:
    """The first thing that is wrong, and where it was said."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return (
            f"{told.get(name, name)}: there is no setting {name!r}; known are "
            f"{', '.join(ServerConfig.model_fields)}."
        )
    return f"{told.get(name, name)}: {name}={first['input']!r}: {first['msg']}."
