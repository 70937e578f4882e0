"""The server as a deployment of Ray Serve: a replica is a server, and has its streams.

    serve run nim4_jax.serving.server.ray_serve:build model=/models/stage4 \
        keys_file=/keys/keys.toml streams=16 max_replicas=4

Arguments are settings of `config`, and those of `Replicas`. Ray's proxies listen: host
and port are Ray's, keys are needed since others may reach them, and Wyoming, which is
not HTTP, is not served.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from nim4_jax.decode.recogniser import Loaded
from nim4_jax.serving.server import app, auth, config, running
from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.door import App

_TELL_SECONDS = 5.0  # that clients of a device that failed are told in
_FULL = 0.75
"""Share of a replica's streams at which there are more of them."""

_REST = 32  # probes and refusals that may be under way in a full replica


class Replicas(pydantic.BaseModel):
    """How many, and what each needs.

    Attributes:
        min_replicas: fewest.
        max_replicas: most.
        num_cpus: of each.
        num_gpus: of each.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = pydantic.Field(default=1, ge=1)
    max_replicas: int = pydantic.Field(default=1, ge=1)
    num_cpus: float = pydantic.Field(default=2.0, ge=0)
    num_gpus: float = pydantic.Field(default=0.0, ge=0)


def read_arguments(arguments: Mapping[str, Any]) -> tuple[Replicas, ServerConfig]:
    """Those of `serve run`.

    Raises:
        ValueError: an unknown one, or a value that it cannot have.
    """
    own = {name: arguments[name] for name in Replicas.model_fields if name in arguments}
    # As in the environment: texts, tuples by commas.
    settings = {
        f"{config.PREFIX}{name.upper()}": str(value)
        for name, value in arguments.items()
        if name not in own
    }
    return Replicas(**own), config.read("", settings)


def make_app(settings: ServerConfig, load: Callable[[], Loaded] | None = None) -> App:
    """The application of a replica, which is there when it can serve.

    Args:
        settings: of the replica.
        load: makes the recogniser; None for that of `settings.model`.

    Raises:
        ValueError: no keys, or a model that cannot be served.
    """
    keys = auth.read_keys(settings.keys_file)
    if not keys:
        raise ValueError(
            "Ray's proxies may be reached by others, and there are no API keys: give "
            "keys_file, or NIM4_SERVE_KEYS=TENANT:KEY in the replicas' environment "
            "(runtime_env)."
        )
    state = running.make_state(settings, keys, load)
    running.log_to_stdout()
    state.engine.on_end = _die
    state.engine.start()
    state.engine.wait_ready()
    return app.create(state)


def _die() -> None:
    """The device has failed: Ray starts another replica."""

    def leave() -> None:
        time.sleep(_TELL_SECONDS)
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def build(arguments: dict[str, Any]) -> Any:
    """What `serve run` calls: an application of Ray Serve.

    Args:
        arguments: see `read_arguments`.

    Raises:
        ValueError: see `read_arguments`.
    """
    return deploy(*read_arguments(arguments))


def deploy(
    replicas: Replicas,
    settings: ServerConfig,
    load: Callable[[], Loaded] | None = None,
) -> Any:
    """An application of Ray Serve.

    Args:
        replicas: how many.
        settings: of each.
        load: see `make_app`.
    """
    from ray import serve  # the extra `ray-serve`

    def make() -> App:
        return make_app(settings, load)

    places = settings.streams + settings.files + settings.waiting_files
    deployment = serve.deployment(
        name="nim4-serve",
        # A full one refuses; what Ray would queue hears nothing.
        max_ongoing_requests=places + _REST,
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": max(1.0, _FULL * settings.streams),
            "downscale_delay_s": 900.0,
        },
        ray_actor_options={
            "num_cpus": replicas.num_cpus,
            "num_gpus": replicas.num_gpus,
        },
        # Streams of a replica that goes may end by themselves for so long.
        graceful_shutdown_timeout_s=settings.grace_seconds,
    )
    return deployment(serve.ingress(make)()).bind()
