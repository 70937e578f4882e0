"""What every test runs under: 8 CPU devices, loud ranks and dtypes, checked shapes."""

import functools
import gc
import importlib.util
import inspect
import os
import sys
from pathlib import Path

import fsspec
import hypothesis
import jax
import jaxtyping
import pytest
from etils.epath import backend


def check_arrays(function):
    """Decorator: every array argument and result has its annotated shape and dtype.

    Only jaxtyping's annotations are checked, and not those of struct constructors: JAX
    rebuilds structs with shapes, specs or sentinels in the places of arrays.
    """
    signature = inspect.signature(function)

    def verify(annotation, value, place):
        is_array = isinstance(annotation, type) and issubclass(
            annotation, jaxtyping.AbstractArray
        )
        # jaxtyping cannot compare the symbols in the sizes of an exported program.
        shape = getattr(value, "shape", ())
        if not is_array or not all(isinstance(size, int) for size in shape):
            return
        if not isinstance(value, annotation):
            raise TypeError(f"{place} is {value!r}, expected {annotation}")

    @functools.wraps(function)
    def checked(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            verify(signature.parameters[name].annotation, value, name)
        result = function(*args, **kwargs)
        verify(signature.return_annotation, result, "the result")
        return result

    return function if function.__name__ == "__init__" else checked


# The hook finds its checker by a module's name. It must be set before the package is
# imported anywhere.
sys.modules["nim4_array_checks"] = sys.modules[__name__]
jaxtyping.install_import_hook(
    ["nim4_jax.features", "nim4_jax.ops", "nim4_jax.models", "nim4_jax.types"],
    "nim4_array_checks.check_arrays",
)

# Compiled programs are kept for other files, processes and runs: two thirds of the
# time of many tests is XLA's. A program that changes has another key.
COMPILED = str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tests compile much and compute little. Without MLIR's emitters, and each program as
# one LLVM module, XLA takes a quarter of the time. It reads the flags once, when the
# backend starts; programs that tests start see the user's environment again.
_QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
_flags = os.environ.get("XLA_FLAGS")
os.environ["XLA_FLAGS"] = " ".join([_flags or "", *_QUICK])
jax.devices()
if _flags is None:
    del os.environ["XLA_FLAGS"]
else:
    os.environ["XLA_FLAGS"] = _flags

hypothesis.settings.register_profile(
    "laws",
    deadline=None,
    derandomize=True,
    max_examples=int(os.environ.get("NIM4_EXAMPLES", "15")),
    suppress_health_check=list(hypothesis.HealthCheck),
    database=None,
    # Shrinking a failing example recompiles for hours and rarely says more.
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("laws")

_STRICT_FOLDERS = ("ops", "models")


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """No implicit dtype promotion in tests of pure functions and of models."""
    folder = Path(request.node.path).parent.name
    kind = "strict" if folder in _STRICT_FOLDERS else "standard"
    with jax.numpy_dtype_promotion(kind):
        yield


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Forget compiled programs in time.

    Each takes some memory maps, of which Linux gives a process 65,530; beyond them the
    compiler dies of a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def compilation_cache() -> str:
    """A folder for compiled programs that processes that tests start may share."""
    return COMPILED


def load_beside(name: str):
    """A module of this folder; tests are no package, so it is loaded by path."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def import_graph():
    """The module that reads which package imports which."""
    return load_beside("import_graph")


@pytest.fixture(scope="session")
def tiny():
    """The module tests/tiny_training.py."""
    return load_beside("tiny_training")


@pytest.fixture(scope="session")
def tiny_model():
    """The module tests/tiny_model.py."""
    return load_beside("tiny_model")


@pytest.fixture(scope="session")
def model_files(tiny_model, tmp_path_factory):
    """Paths of the whole tiny model and of the one with stage 1 only."""
    return tiny_model.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def whisper_files(tiny_model, tmp_path_factory):
    """The same two with Whisper's kind of encoder and features."""
    return tiny_model.write(tmp_path_factory.mktemp("whisper_models"), "whisper")


@pytest.fixture
def object_store(monkeypatch):
    """gs:// as a store in memory, which has neither folders nor renames."""
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr(type(memory), "store", {})
    monkeypatch.setattr(type(memory), "pseudo_dirs", [""])

    def choose(_, path):
        remote = str(path).startswith("gs://")
        return memory if remote else fsspec.filesystem("file")

    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", choose)
    return memory
