"""The tiny model, written once per session."""

import importlib.util
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[1] / "tiny_model.py"


@pytest.fixture(scope="session")
def tiny_model():
    """The module tests/tiny_model.py; tests are no package, so it is loaded by path."""
    spec = importlib.util.spec_from_file_location("tiny_model", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model_files(tiny_model, tmp_path_factory):
    """Paths of the whole model and of the one with stage 1 only."""
    return tiny_model.write(tmp_path_factory.mktemp("models"))
