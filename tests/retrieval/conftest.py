"""Ways of looking for near matches: all must hear the same."""

import pytest

from nim4_jax.retrieval import phonetic_index
from nim4_jax.retrieval.gate import LATTICE, SCANN


@pytest.fixture(scope="module", params=["lattice", "scann", "scann's twin"])
def near(request):
    """`near` of a layer; the twin stands where the scann package is not installed."""
    if request.param == "scann":
        pytest.importorskip("scann")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "scann's twin":
            patch.setattr(phonetic_index, "has_scann", lambda: False)
        yield LATTICE if request.param == "lattice" else SCANN
