"""Error responses of the server: codes, messages and their JSON."""

from __future__ import annotations

from typing import Any

INVALID = "invalid_request_error"
OVERLOADED = "overloaded_error"
SERVER = "server_error"
RETRY_SECONDS = 5


class ClientGone(Exception):
    """A client that has not read what it was sent for too long."""


class ServeError(Exception):
    """An error that a client is told, in OpenAI's shape.

    Attributes:
        status: of HTTP.
        code: what programs look at.
        message: what people read; names neither paths nor addresses.
        param: field that is wrong, None if it is not a field.
        kind: OpenAI's "type".
        retry_after: seconds after which to try again, None if that would not help.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        kind: str = INVALID,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.kind, self.retry_after = param, kind, retry_after

    def describe(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }


def refuse(code: str, message: str) -> ServeError:
    """Too much at the moment: 503, to be tried again."""
    return ServeError(503, code, message, kind=OVERLOADED, retry_after=RETRY_SECONDS)


def limit(code: str, message: str, retry_after: int = RETRY_SECONDS) -> ServeError:
    """More than the client may have: 429, to be tried again."""
    return ServeError(
        429, code, message, kind="rate_limit_error", retry_after=retry_after
    )


def die(message: str) -> ServeError:
    """The server's own fault: 500."""
    return ServeError(500, "server_error", message, kind=SERVER)
