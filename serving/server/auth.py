"""Authentication: API keys, each with a tenant and limits.

# keys.toml
[acme]
keys = ["…"]
streams = 8
requests_a_minute = 60
lists = 20
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pydantic

from nim4_jax.serving.server import config, errors

QUERY = ("api_key", "token")
SUBPROTOCOLS = ("openai-insecure-api-key.", "nim4-key.")
_SHORTEST = 16


class Tenant(pydantic.BaseModel):
    """A tenant: its keys and limits.

    Attributes:
        name: of the tenant.
        keys: of the tenant, secret.
        streams: most at once.
        requests_a_minute: files and streams that are begun, and changes of lists.
        lists: of hotwords, that it may have.
        names_a_list: that each may hold.
        list_mib: of a request that sends names.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    keys: tuple[pydantic.SecretStr, ...] = ()
    streams: int = pydantic.Field(default=1_000_000, ge=1)
    requests_a_minute: int = pydantic.Field(default=1_000_000, ge=1)
    lists: int = pydantic.Field(default=100, ge=0)
    names_a_list: int = pydantic.Field(default=1_000_000, ge=1)
    list_mib: int = pydantic.Field(default=64, ge=1)


ANYONE = Tenant(name="anyone")


class Keys:
    """The keys of all tenants, as digests."""

    def __init__(self, tenants: Iterable[Tenant]):
        """Of some tenants.

        Raises:
            ValueError: a key that is too short, or has two owners.
        """
        self._owners: dict[bytes, Tenant] = {}
        for tenant in tenants:
            for secret in tenant.keys:
                key = secret.get_secret_value()
                if len(key) < _SHORTEST:
                    raise ValueError(
                        f"a key of tenant {tenant.name!r} has {len(key)} characters; "
                        f"give {_SHORTEST} or more: openssl rand -hex 24."
                    )
                if _digest(key) in self._owners:
                    raise ValueError(f"a key of tenant {tenant.name!r} is there twice.")
                self._owners[_digest(key)] = tenant

    def __bool__(self) -> bool:
        return bool(self._owners)

    def find(self, key: str) -> Tenant | None:
        """Whose key it is; takes as long for any other."""
        given, found = _digest(key), None
        for digest, tenant in self._owners.items():
            if hmac.compare_digest(digest, given):
                found = tenant
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf8", "replace")).digest()


def read_keys(file: str, environment: Mapping[str, str] = os.environ) -> Keys:
    """Keys of a file and of the environment (NIM4_SERVE_KEYS=TENANT:KEY,…).

    Raises:
        ValueError: the file cannot be read, or says something else.
    """
    tenants = []
    if file:
        try:
            content = tomllib.loads(Path(file).read_text(encoding="utf8"))
            tenants = [Tenant(name=name, **own) for name, own in content.items()]
        except (tomllib.TOMLDecodeError, TypeError) as error:
            raise ValueError(f"{file} is no list of keys: {error}.") from error
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{file}: {place}: {first['msg']}.") from None
    for part in filter(None, environment.get(config.KEYS, "").split(",")):
        name, _, key = part.rpartition(":")
        tenants.append(Tenant(name=name or "default", keys=(key,)))
    return Keys(tenants)


def find_key(
    headers: Mapping[str, str],
    query: Mapping[str, str],
    subprotocols: Iterable[str] = (),
) -> str | None:
    """The key of a request: of its headers, its subprotocols (browsers) or its query.

    Args:
        headers: by their names in lower case.
        query: of the address.
        subprotocols: that a WebSocket offers.
    """
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key:
        return key.strip()
    if key := headers.get("x-api-key", ""):
        return key
    for offered in subprotocols:
        for prefix in SUBPROTOCOLS:
            if offered.startswith(prefix):
                return offered.removeprefix(prefix)
    return next((query[name] for name in QUERY if query.get(name)), None)


def check_origin(
    headers: Mapping[str, str], origins: Iterable[str], keys: bool
) -> None:
    """Refuse pages of other sites; programs send no origin.

    Without keys the name that the server was called by must be this machine's: a page
    whose name is made to point here is a page of another site.

    Args:
        headers: by their names in lower case.
        origins: that are allowed beside the server's own.
        keys: whether clients have keys.

    Raises:
        ServeError: 403.
    """
    host = headers.get("host", "")
    if not keys and not config.is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise errors.ServeError(
            403,
            "host_not_allowed",
            "without keys the server answers to localhost only.",
        )
    origin = headers.get("origin")
    if origin is None or origin in origins:
        return
    if urlsplit(origin).netloc != host or not host:
        raise errors.ServeError(
            403, "origin_not_allowed", "pages of this origin may not call the server."
        )


class Admission:
    """Open streams and recent requests of tenants, held to their limits."""

    def __init__(self, most_streams: int):
        """Nothing is open.

        Args:
            most_streams: of all tenants together.
        """
        self._most = most_streams
        self._open: dict[str, int] = {}
        self._tokens: dict[str, tuple[float, float]] = {}

    def count_request(self, tenant: Tenant) -> None:
        """One more request.

        Raises:
            ServeError: 429, more than the tenant may send in a minute.
        """
        most, now = float(tenant.requests_a_minute), time.monotonic()
        left, before = self._tokens.get(tenant.name, (most, now))
        left = min(most, left + (now - before) * most / 60.0)
        if left < 1.0:
            wait = int((1.0 - left) * 60.0 / most) + 1
            raise errors.limit("rate_limit_exceeded", "too many requests.", wait)
        self._tokens[tenant.name] = left - 1.0, now

    def take_place(self, tenant: Tenant) -> None:
        """A place for a stream, to be given back by `leave`.

        Raises:
            ServeError: 503, all are taken; or 429, all of the tenant's.
        """
        if sum(self._open.values()) >= self._most:
            raise errors.refuse("no_free_stream", "all streams are taken.")
        own = self._open.get(tenant.name, 0)
        if own >= tenant.streams:
            raise errors.limit("too_many_streams", "all of your streams are open.")
        self._open[tenant.name] = own + 1

    def leave(self, tenant: Tenant) -> None:
        """Give a place back."""
        self._open[tenant.name] -= 1
        if not self._open[tenant.name]:
            del self._open[tenant.name]

    @property
    def streams(self) -> int:
        """That are open."""
        return sum(self._open.values())
