"""Metrics: rows by step, none twice after a resume, on disks and in object stores."""

import threading

import jax
import pytest

from nim4_jax.train import metrics
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


def test_training_does_not_wait_for_the_object_store(object_store, monkeypatch, log):
    """A slow copy goes on beside it, a failed one is told, and the last has all."""
    monkeypatch.setattr(metrics, "_COPY_SECONDS", 0.0)
    monkeypatch.setattr(metrics, "_REST", 0.0)
    put, copies = metrics._Mirror._copy, []
    begun, let = threading.Event(), threading.Event()

    def copy(mirror):
        copies.append(threading.current_thread())
        begun.set()
        if len(copies) == 1:
            assert let.wait(60)
            raise OSError("out of reach")
        put(mirror)

    monkeypatch.setattr(metrics._Mirror, "_copy", copy)
    writer = MetricWriter("gs://bucket/run")
    for step in range(1, 4):
        writer.write(step, {"loss": 1.0})
        assert begun.wait(60)
    assert len(copies) == 1 and not read_metrics("gs://bucket/run")
    let.set()
    writer.close()
    assert copies == [copies[0], threading.current_thread()]
    assert copies[0] is not threading.current_thread()
    assert [row["step"] for row in read_metrics("gs://bucket/run")] == [1, 2, 3]
    assert any("could not be copied" in line for line in log)
