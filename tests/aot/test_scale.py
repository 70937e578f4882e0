"""The page of what full-size stages take, from reports that were saved."""

import json

import pytest

from nim4_jax.aot import compilation, scale_page, scale_reports, streaming
from nim4_jax.aot.compilation import Memory, Report
from nim4_jax.aot.scale_reports import Wanted


def make_report(program="train_step", rows=64, peak=5.0, fits=True) -> Report:
    memory = Memory(0.5, 1.0, 0.1, peak - 1.7, 0.1, peak, 15.75)
    return Report(
        program=program,
        topology="v5e:4x4",
        mesh={"data": 1, "fsdp": 16, "tensor": 1},
        remat="full",
        rows=rows,
        seconds=15.0,
        tokens=256,
        memory=memory if fits else None,
        refusal="" if fits else "Used 20G of 15.75G hbm.",
        flops={} if program == "tick" else {"llm": 4e15},
        traffic={"all-gather": {"count": 3, "bytes": 2**31}},
        step_seconds={"0.3": 2.0, "0.4": 1.5, "0.5": 1.2},
        audio_seconds=960.0,
        llm_tokens=2e4,
        compile_seconds=90.0,
        host_gib=3.0,
    )


def test_a_report_is_saved_whole():
    """Through JSON and back, refused ones too."""
    for report in (make_report(), make_report(fits=False)):
        assert (
            compilation.from_json(json.loads(json.dumps(compilation.to_json(report))))
            == report
        )


def test_reports_are_those_of_the_rows_asked_for(tmp_path):
    """Of what lies in the folder: the same rows, and the largest batch once."""

    def save(name: str, *reports: Report) -> None:
        rows = [compilation.to_json(report) for report in reports]
        (tmp_path / name).write_text(json.dumps(rows), encoding="utf8")

    def find(rows: int, largest: list[str]) -> list[int]:
        wanted = Wanted(["4"], ["v5p-8"], "2b3", rows, largest, compiles=False)
        (reports,) = scale_reports.compile_all(tmp_path, wanted).values()
        return [report.rows for report in reports]

    save("2b3-4-v5p-8-64.json", make_report())
    save("2b3-4-v5p-8-64-largest.json", make_report(), make_report(rows=320))
    save("2b3-4-v5p-8-512.json", make_report(rows=512))
    save("2b3-4-v5p-8-512-largest.json", make_report(rows=512))
    assert find(64, ["4"]) == [64, 320]
    assert find(64, ["1"]) == [64]
    assert find(512, ["4"]) == [512]
    assert find(128, ["4"]) == []


def test_the_page_has_a_row_for_every_program():
    """Sizes, speeds at 40 % of the peak, what does not fit, and what failed."""
    found = {
        ("4", "v5e-16"): [make_report(), make_report(rows=512, fits=False)],
        ("6", "v5e-16"): [make_report(), make_report("rollout")],
        ("stream", "v5e-16"): [make_report("tick", 32, 7.0), make_report("tick", 64)],
        ("1", "v5p-8"): [],
    }
    page = scale_page.format_page(found, "nim4 scale")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 6
    first = "| 4 joint | 1×16×1 | full | 64 | 5.00 | 0.50 | 1.00 | 3.30 | 4000 | 1.50 |"
    assert rows[2].startswith(first) and rows[2].endswith("| 640 | 2.0 | 90 |")
    assert "| 512 | does not fit | – |" in page
    assert "| 6 RL, rollout |" in page and "| streaming |" in page
    assert "Not compiled: stage 1 for v5p-8." in page
    assert "    nim4 scale\n" in page
    assert "streams fit one device" in page


def test_streams_that_fit_by_memory():
    """What two numbers of streams say of a third."""
    one, many = make_report("tick", 32, 6.0), make_report("tick", 64, 8.0)
    assert streaming.count_streams(one, many) == 64 + int(7.75 / (2.0 / 32))
    with pytest.raises(ValueError, match="32 or 64 streams do not fit"):
        streaming.count_streams(one, make_report("tick", 64, fits=False))
