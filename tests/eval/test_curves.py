"""Pictures of metrics: one panel a metric, one line a run."""

import json
import math

import pytest
from matplotlib import image

from nim4_jax.eval.reports import curves


@pytest.fixture
def runs(tmp_path):
    """Two seeds; only the first has recorded a KL."""
    folders = []
    for seed in range(2):
        folder = tmp_path / f"seed{seed}" / "stage6"
        folder.mkdir(parents=True)
        rows = [{"step": n, "train/reward": seed + n / 10} for n in range(1, 20)]
        rows[3]["train/reward"] = math.nan
        if not seed:
            rows.append({"step": 20, "train/kl": 0.1})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text, encoding="utf8")
        folders.append(str(folder))
    return folders


def test_a_panel_for_each_metric_and_a_line_for_each_run(runs, tmp_path, monkeypatch):
    drawn = []
    draw = curves._draw

    def spy(axis, points, color, label):
        drawn.append((label, points))
        draw(axis, points, color, label)

    monkeypatch.setattr(curves, "_draw", spy)
    out = str(tmp_path / "new" / "rl.png")
    assert curves.plot_metrics(runs, ["train/reward", "train/kl"], out) == out
    assert [label for label, _ in drawn] == [
        "seed0/stage6",
        "seed1/stage6",
        "seed0/stage6",
    ]
    assert len(drawn[0][1]) == 18  # without the value that is no number
    height, width = image.imread(out).shape[:2]
    assert width > 2 * height


def test_runs_are_drawn_for_good(runs, tmp_path):
    out = curves.plot_metrics(runs, ["train/reward"], str(tmp_path / "rl.png"))
    assert image.imread(out).std() > 0


def test_what_nobody_recorded_lists_what_there_is(runs, tmp_path):
    out = str(tmp_path / "rl.png")
    with pytest.raises(ValueError, match=r"'train/rewards'.*train/kl, train/reward"):
        curves.plot_metrics(runs, ["train/rewards"], out)
    with pytest.raises(ValueError, match="give a run's workdir"):
        curves.plot_metrics([str(tmp_path / "none")], ["train/reward"], out)
    with pytest.raises(ValueError, match="one or more"):
        curves.plot_metrics([], ["train/reward"], out)
    assert not (tmp_path / "rl.png").exists()


def test_losses_of_stages(tmp_path):
    (tmp_path / "stage1").mkdir()
    row = json.dumps({"step": 1, "train/ctc": 2.0})
    (tmp_path / "stage1" / "metrics.jsonl").write_text(row + "\n", encoding="utf8")
    out = curves.plot_losses(
        str(tmp_path), ["stage1", "stage2"], str(tmp_path / "losses.png")
    )
    assert image.imread(out).std() > 0
    with pytest.raises(ValueError, match="no losses recorded"):
        curves.plot_losses(str(tmp_path), ["stage2"], out)


def test_one_run_is_called_by_its_folder(tmp_path):
    assert curves._name_runs([str(tmp_path / "a")]) == ["a"]
