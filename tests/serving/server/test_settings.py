"""Settings, keys and limits."""

import numpy as np
import pytest

from nim4_jax.model_files import loading
from nim4_jax.serving.server import auth, config, running
from nim4_jax.serving.server.auth import Admission, Keys, Tenant
from nim4_jax.serving.server.config import ServerConfig
from nim4_jax.serving.server.errors import ServeError
from nim4_jax.serving.server.shared_programs import SharedPrograms
from nim4_jax.text import prompt
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.types import Frames, Labels

KEY = "k" * 24


def test_flags_are_over_the_environment_and_that_over_the_file(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('streams = 3\nport = 1\nhost = "::1"\n[hotwords]\nfirm = "a.txt"\n')
    environment = {
        "NIM4_SERVE_PORT": "2",
        "NIM4_SERVE_STREAMS": "4",
        "NIM4_SERVE_CHUNK_MS": "640,320",
        "NIM4_SERVE_KEYS": f"acme:{KEY}",
        "HOME": "/",
    }
    made = config.read(str(file), environment, {"streams": 5})
    assert (made.host, made.port, made.streams) == ("::1", 2, 5)
    assert made.chunk_ms == (640, 320) and made.hotwords == {"firm": "a.txt"}
    assert KEY not in made.describe() and "streams = 5" in made.describe()


@pytest.mark.parametrize(
    ("environment", "flags", "told"),
    [
        ({"NIM4_SERVE_COLOUR": "red"}, {}, "NIM4_SERVE_COLOUR: there is no setting"),
        ({"NIM4_SERVE_STREAMS": "many"}, {}, "NIM4_SERVE_STREAMS: streams='many'"),
        ({}, {"port": 65_536}, "--port"),
        ({}, {"chunk_ms": ()}, "--chunk_ms"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(environment, flags, told):
    with pytest.raises(ValueError, match=told):
        config.read("", environment, flags)


@pytest.mark.parametrize(
    "content",
    [
        '[acme]\nkeys = ["short"]',
        f'[acme]\nkeys = ["{KEY}"]\n[other]\nkeys = ["{KEY}"]',
        "[acme]\ncolour = 1",
        "acme = 1",
        "[acme",
    ],
)
def test_a_wrong_file_of_keys_is_refused_without_its_keys(tmp_path, content):
    file = tmp_path / "keys.toml"
    file.write_text(content)
    with pytest.raises(ValueError) as told:
        auth.read_keys(str(file), {})
    assert KEY not in str(told.value) and "short" not in str(told.value)


def test_keys_are_found_and_never_shown():
    tenant = Tenant(name="acme", keys=(KEY,))
    keys = Keys([tenant, Tenant(name="other", keys=(KEY + "x",))])
    assert keys.find(KEY) is tenant and keys.find(KEY[:-1]) is None
    assert keys.find("") is None and keys.find("\ud800") is None
    assert KEY not in repr(tenant) and KEY not in repr(keys)


def test_without_keys_only_this_machine_is_served():
    with pytest.raises(ValueError, match="NIM4_SERVE_KEYS"):
        running.run(ServerConfig(host="0.0.0.0", model="x"))
    with pytest.raises(ValueError, match="--model"):
        running.make_state(ServerConfig(), Keys([]))
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert ServerConfig(host=host).local
    for host in ("0.0.0.0", "::", "example.org", ""):
        assert not ServerConfig(host=host).local


def test_places_are_counted_by_tenant_and_together():
    admission = Admission(2)
    one, other = Tenant(name="one", streams=1), Tenant(name="other")
    admission.take_place(one)
    with pytest.raises(ServeError) as told:
        admission.take_place(one)
    assert told.value.status == 429
    admission.take_place(other)
    with pytest.raises(ServeError) as told:
        admission.take_place(other)
    assert told.value.status == 503
    admission.leave(one)
    admission.take_place(other)
    assert admission.streams == 2


def test_requests_come_back_with_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(auth.time, "monotonic", lambda: now[0])
    admission, tenant = Admission(1), Tenant(name="one", requests_a_minute=2)
    for _ in range(2):
        admission.count_request(tenant)
    with pytest.raises(ServeError) as told:
        admission.count_request(tenant)
    now[0] += told.value.retry_after
    admission.count_request(tenant)


def test_a_model_that_is_not_there_ends_the_server_with_its_reason():
    """It listens already while it loads; what went wrong is raised where it was run."""
    with pytest.raises(ValueError, match="nowhere"):
        running.run(ServerConfig(model="/nowhere", port=0))


def test_prompts_of_files_have_few_widths():
    """So that all programs are compiled beforehand; what fits in none is refused."""
    seen = []

    class Programs:
        def transcribe(self, audio, suffix):
            seen.append((suffix.ids.shape, suffix.mask.sum(axis=1).tolist()))

    tokenizer = Tokenizer.from_file(loading.find_tokenizer("nano"))
    shared = SharedPrograms(Programs(), tokenizer, (32, 96), lambda work: work())
    audio = Frames(np.zeros((2, 8), np.float32), np.ones((2, 8), bool))
    bare = len(prompt.encode_suffix(tokenizer))
    shared.transcribe(audio, None)
    for width in (32, 64, 128):
        mask = np.arange(width) < np.array([[5], [width - 20]])
        shared_mask = Labels(np.ones((2, width), np.int32) * mask, mask)
        if width - 20 > 96:
            with pytest.raises(ValueError, match="room for 96"):
                shared.transcribe(audio, shared_mask)
        else:
            shared.transcribe(audio, shared_mask)
    assert seen == [
        ((2, 32), [bare, bare]),
        ((2, 32), [5, 12]),
        ((2, 96), [5, 44]),
    ]
