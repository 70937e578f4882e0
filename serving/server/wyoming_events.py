"""Events of the Wyoming protocol on a TCP connection, no larger than they may be.

    {"type": "audio-chunk", "data_length": 42, "payload_length": 3200}\n
    42 bytes of JSON
    3200 bytes

Source: github.com/OHF-Voice/wyoming, `wyoming/event.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

HEADER_BYTES = 1 << 16
DATA_BYTES = 1 << 18
PAYLOAD_BYTES = 1 << 20
"""Half a minute of 16 kHz; clients send some tens of milliseconds."""


class ProtocolError(Exception):
    """What came is no event, or a larger one than is taken; nothing behind it is read.

    Attributes:
        code: what programs look at.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class WyomingEvent:
    """An event.

    Attributes:
        kind: "transcribe", "audio-chunk" …
        data: its fields.
        payload: bytes behind them.
    """

    kind: str
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    payload: bytes = b""


async def read(reader: asyncio.StreamReader) -> WyomingEvent | None:
    """The next event; None where the connection ends.

    Lengths are checked before anything of that length is waited for. What does not
    begin with an event, as a request of HTTP, is not searched for one: no page in a
    browser can hide events in a request.

    Args:
        reader: whose limit is HEADER_BYTES.

    Raises:
        ProtocolError: see there.
    """
    try:
        line = await reader.readuntil(b"\n")
        header = _parse(line, "header")
        kind = header.get("type")
        if not isinstance(kind, str):
            raise ProtocolError("invalid_event", 'an event has a text "type".')
        data = header.get("data") or {}
        if not isinstance(data, dict):
            raise ProtocolError("invalid_event", "data is no JSON object.")
        if length := _read_length(header, "data_length", DATA_BYTES):
            data = {**data, **_parse(await reader.readexactly(length), "data")}
        length = _read_length(header, "payload_length", PAYLOAD_BYTES)
        return WyomingEvent(kind, data, await reader.readexactly(length))
    except asyncio.LimitOverrunError:
        told = f"a header has {HEADER_BYTES} bytes at most, and ends with its line."
        raise ProtocolError("event_too_large", told) from None
    except asyncio.IncompleteReadError:
        return None


def _read_length(header: dict[str, Any], name: str, most: int) -> int:
    length = header.get(name) or 0
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise ProtocolError("invalid_event", f"{name} is no number of bytes.")
    if length > most:
        raise ProtocolError("event_too_large", f"{name} is at most {most}.")
    return length


def _parse(content: bytes, what: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ProtocolError("invalid_event", f"the {what} is no JSON object.")
    return values


def encode(event: WyomingEvent) -> bytes:
    """An event without a payload as bytes."""
    data = json.dumps(event.data, ensure_ascii=False, allow_nan=False).encode()
    header: dict[str, Any] = {"type": event.kind}
    if event.data:
        header["data_length"] = len(data)
    line = json.dumps(header).encode() + b"\n"
    return line + data if event.data else line
