"""Lists of names that the server finds in what is heard; clients name them.

A list of a tenant is one of its own; behind those come the lists of the settings, which
are everybody's. A version never changes: readers see the old one or the new one whole.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from nim4_jax.decode.hotwords import HotwordList
from nim4_jax.retrieval import names
from nim4_jax.retrieval.database import Database
from nim4_jax.retrieval.layer import Served
from nim4_jax.serving.server import errors, hotword_builder, hotword_finding
from nim4_jax.serving.server.auth import Tenant
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.hotword_builder import Job
from nim4_jax.serving.server.hotword_finding import Asked, Finding
from nim4_jax.serving.server.hotword_messages import Made, Stored
from nim4_jax.serving.server.hotword_store import HotwordStore
from nim4_jax.serving.server.hotword_versions import (
    Condition,
    ListVersion,
    make_version,
    share,
)
from nim4_jax.serving.server.metrics import Metrics
from nim4_jax.serving.server.worker_process import WorkerProcess
from nim4_jax.text.tokenizer import Tokenizer

LOG = logging.getLogger("nim4_jax.serving.server")
_WAITING = 8  # changes of a tenant that may wait for each other


class HotwordLists:
    """The lists of all tenants, and those of the settings.

    The event loop calls its methods; `look` of a `Finding` any thread may call.

    Attributes:
        store: where they are on disk.
    """

    def __init__(
        self,
        shared: Mapping[str, Database],
        store: HotwordStore,
        metrics: Metrics,
        *,
        builders: int = 2,
        build_mib: int = 8192,
        build_seconds: float = 900.0,
    ):
        """The lists of a folder.

        Args:
            shared: lists of the settings.
            store: where the others are; it is closed with this.
            metrics: to count in.
            builders: processes that build lists; a tenant has one at a time.
            build_mib: memory of each.
            build_seconds: that a list may take.
        """
        self.store, self._metrics = store, metrics
        self._shared = {name: share(name, base) for name, base in shared.items()}
        self._lists = {
            (stored.tenant, stored.name): make_version(stored, bases)
            for stored, bases in store.load()
        }
        self._idle = [
            WorkerProcess(hotword_builder.__name__, (str(build_mib),), build_seconds)
            for _ in range(builders)
        ]
        self._builders = list(self._idle)
        self._free = asyncio.Semaphore(builders)
        self._turns: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
        self._waiting: collections.Counter[str] = collections.Counter()
        self._count()

    @classmethod
    def open(
        cls, paths: Mapping[str, str], folder: str, metrics: Metrics, **limits: Any
    ) -> HotwordLists:
        """Lists of the settings and of a folder.

        Args:
            paths: by name, databases of `nim4 build_hotwords` or lists of names.
            folder: of the clients' lists; "" for one that goes with the process.
            metrics: to count in.
            **limits: of `HotwordLists`.

        Raises:
            ValueError: one that is not there or cannot be read, or the folder.
        """
        shared = {name: HotwordList.open(path).base for name, path in paths.items()}
        return cls(shared, HotwordStore(folder), metrics, **limits)

    def close(self) -> None:
        """End the processes, and let another server have the folder."""
        for process in self._builders:
            process.close()
        self.store.close()

    def list(self, tenant: Tenant) -> list[ListVersion]:
        """Those that a tenant may name, its own first."""
        own = [one for (owner, _), one in self._lists.items() if owner == tenant.name]
        own.sort(key=lambda one: one.facts.id)
        hidden = {one.facts.id for one in own}
        return [*own, *(s for name, s in self._shared.items() if name not in hidden)]

    def find(self, tenant: Tenant, name: str, param: str = "name") -> ListVersion:
        """A list that a tenant may name.

        Raises:
            ServeError: there is none.
        """
        found = self._find(tenant.name, name)
        if found is None:
            raise ServeError(
                404, "hotwords_not_found", "there is no such list.", param=param
            )
        return found

    def _find(self, tenant: str, name: str) -> ListVersion | None:
        return self._lists.get((tenant, name)) or self._shared.get(name)

    async def prepare(
        self, asked: Asked, tokenizer: Tokenizer, room: int, reserve: bool = False
    ) -> Finding:
        """Names for a stream or a file.

        Keywords stand in every prompt where all of them have room in it; of more, the
        first do, and the others where they are heard.

        Args:
            asked: the names.
            tokenizer: of the LLM.
            room: tokens of a prompt behind the speech.
            reserve: whether names that are heard have to share it.

        Raises:
            ServeError: an unknown list.
        """
        for name in asked.lists:
            self.find(asked.tenant, name, asked.param)
        keywords = tuple(dict.fromkeys(filter(None, map(names.clean, asked.keywords))))
        hints, own = keywords, None
        if keywords:
            hints, rest = await asyncio.to_thread(
                hotword_finding.split, keywords, tokenizer, room, reserve
            )
            if rest:
                own = await asyncio.to_thread(hotword_finding.build_own, rest)
        tenant, lists = asked.tenant.name, tuple(dict.fromkeys(asked.lists))

        def look() -> tuple[Served, ...]:
            found = (self._find(tenant, name) for name in lists)
            served = tuple(version.served for version in found if version)
            return served if own is None else (*served, own)

        return Finding(hints, look if lists or own else None)

    async def replace(
        self, tenant: Tenant, name: str, upload: Path, form: str, condition: Condition
    ) -> ListVersion:
        """Create a list, or give it other names.

        Args:
            tenant: whose it is.
            name: of the list.
            upload: file with the body.
            form: of the body, one of `hotword_messages.FORMS`.
            condition: what must be there.

        Raises:
            ServeError: it is as it was.
        """
        async with self._turn(tenant):
            before = self._lists.get((tenant.name, name))
            condition.check(before)
            own = sum(owner == tenant.name for owner, _ in self._lists)
            if before is None and own >= tenant.lists:
                raise ServeError(
                    403, "too_many_lists", f"you may have {tenant.lists} lists."
                )
            return await self._build(tenant, name, upload, form, before)

    async def change(
        self, tenant: Tenant, name: str, upload: Path, condition: Condition
    ) -> ListVersion:
        """Add and remove names, see `replace`; the body is a `Change`."""
        async with self._turn(tenant):
            before = self._find_own(tenant, name, condition)
            return await self._build(tenant, name, upload, "", before)

    async def remove(self, tenant: Tenant, name: str, condition: Condition) -> None:
        """A list goes; streams that use it go on without it.

        Raises:
            ServeError: there is none, or it is another version.
        """
        async with self._turn(tenant):
            self._find_own(tenant, name, condition)
            try:
                await asyncio.to_thread(self.store.remove, tenant.name, name)
            except OSError as error:
                raise hotword_builder.explain(error) from None
            del self._lists[tenant.name, name]
            self._count()

    def _find_own(self, tenant: Tenant, name: str, condition: Condition) -> ListVersion:
        before = self._lists.get((tenant.name, name))
        condition.check(before)
        if before is None:
            shared = name in self._shared
            raise ServeError(
                403 if shared else 404,
                "hotwords_read_only" if shared else "hotwords_not_found",
                "the list is the server's own." if shared else "there is no such list.",
                param="name",
            )
        return before

    @contextlib.asynccontextmanager
    async def _turn(self, tenant: Tenant) -> AsyncIterator[None]:
        """One change of a tenant at a time.

        Raises:
            ServeError: 429, too many wait.
        """
        if self._waiting[tenant.name] >= _WAITING:
            raise errors.limit("too_many_changes", "too many changes of lists wait.")
        self._waiting[tenant.name] += 1
        try:
            async with self._turns[tenant.name]:
                yield
        finally:
            self._waiting[tenant.name] -= 1
            if not self._waiting[tenant.name]:
                del self._waiting[tenant.name]
                self._turns.pop(tenant.name, None)

    async def _build(
        self,
        tenant: Tenant,
        name: str,
        upload: Path,
        form: str,
        before: ListVersion | None,
    ) -> ListVersion:
        """The next version of a list; who waits for it may go."""
        stored = before.stored if before else None
        version = stored.version + 1 if stored else 1
        place = self.store.draw_place(version)
        job = Job(
            source=str(upload),
            form=form,
            folder=str(self.store.find_folder(tenant.name, name)),
            out=place,
            most=tenant.names_a_list,
            before=None if form or stored is None else stored.made,
        )
        now = int(time.time())
        key = stored.key if stored else secrets.token_hex(4)
        try:
            made = await self._ask(job)
            fresh = Stored(
                tenant=tenant.name,
                name=name,
                key=key,
                version=version,
                created=stored.created if stored else now,
                updated=now,
                made=made,
            )
            served = await asyncio.to_thread(self._commit, fresh)
        except (OSError, ValueError) as error:
            await asyncio.to_thread(self.store.discard, tenant.name, name, place)
            raise hotword_builder.explain(error) from error
        except ServeError:
            await asyncio.to_thread(self.store.discard, tenant.name, name, place)
            raise
        self._lists[tenant.name, name] = served
        self._count()
        return served

    def _commit(self, fresh: Stored) -> ListVersion:
        """In a thread: open what was made, then let it count."""
        version = make_version(fresh, self.store.open(fresh))
        self.store.commit(fresh)
        return version

    async def _ask(self, job: Job) -> Made:
        """What a process makes.

        Raises:
            ServeError: what is wrong with the body, or with the process.
        """
        async with self._free:
            process, began = self._idle.pop(), time.monotonic()
            try:
                told = await asyncio.to_thread(process.ask, job.model_dump())
            except TimeoutError:
                raise errors.refuse(
                    "build_too_slow", "the list took too long; it is as it was."
                ) from None
            finally:
                self._idle.append(process)
                self._metrics.hotword_build_seconds.observe(time.monotonic() - began)
        if told is None:
            LOG.error("a process that built a hotword list has died")
            raise errors.refuse(
                "build_broken_off", "the list could not be made; it is as it was."
            )
        if error := told.get("error"):
            raise ServeError(
                error["status"],
                error["code"],
                error["message"],
                param=error["param"],
                kind=error["type"],
            )
        return Made.model_validate(told["made"])

    def _count(self) -> None:
        known = [*self._lists.values(), *self._shared.values()]
        self._metrics.hotword_lists.set(len(known))
        total = sum(one.facts.statistics.names for one in known)
        self._metrics.hotword_names.set(total)
