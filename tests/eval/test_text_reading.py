"""Held-out text, read from misheard phonemes by an LLM that knows nothing yet."""

import pytest

from nim4_jax.eval import text_reading

NANO = "package:nano_llm.safetensors"


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    texts = [f"call number {n} please" for n in range(900)]
    path.write_text("\n".join([*texts, *[f"打开第{n}个" for n in range(900)]]))
    return f"{path}?style=plain"


def test_held_out_texts_of_each_language_are_read(lines):
    made = text_reading.measure(NANO, [lines], rates=(0.0, 0.3), limit=3)
    assert set(made) == {"0", "0.3"}
    for row in made["0"].values():
        assert row["texts"] <= 3 and 1 < row["perplexity"] < 1e4
        assert 0 <= row["error_rate"] <= 3
    assert set(made["0"]) == {"en", "zh"}
    assert made["0"]["en"]["perplexity"] < made["0.3"]["en"]["perplexity"]


def test_a_model_without_an_llm_is_refused(lines):
    with pytest.raises(ValueError, match=r"no llm.*give a warm-up's workdir"):
        text_reading.measure("package:nano_stage1.safetensors", [lines])
