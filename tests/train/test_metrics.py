"""Metrics: rows by step, none twice after a resume, on disks and in object stores."""

import jax
import pytest

from nim4_jax.train.metrics import MetricWriter, read_metrics


@pytest.fixture(params=["disk", "store"])
def workdir(request, tmp_path, object_store) -> str:
    """A folder on either."""
    return str(tmp_path / "run") if request.param == "disk" else "gs://bucket/run"


def test_a_resumed_run_drops_what_it_will_redo(workdir):
    """Rows up to the step that it begins with stay."""
    for first, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = MetricWriter(workdir, first)
        for step in steps:
            writer.write(step, {"loss": first + step / 2})
        writer.close()
    rows = read_metrics(workdir)
    assert [(row["step"], row["loss"]) for row in rows] == [
        (1, 0.5),
        (2, 1.0),
        (3, 3.5),
        (4, 4.0),
    ]
    assert (writer.path.parent / "tensorboard").exists()


def test_other_hosts_write_nothing(workdir, monkeypatch):
    """Only host 0's metrics are kept, and nothing else is touched."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = MetricWriter(workdir)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert not writer.path.parent.exists()
