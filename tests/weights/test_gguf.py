"""GGUF files: the same tensors, config and tokenizer under Hugging Face's names."""

import numpy as np
import pytest

from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.text.tokenizer import Tokenizer
from nim4_jax.weights import conversion, gguf_file, hf, rules

gguf = pytest.importorskip("gguf")

SIZES = {
    "width": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "ffn": 96,
}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BACK = {theirs: ours for ours, theirs in gguf_file._NAMES.items()}


def make_alphabet():
    """Byte-level BPE's 256 characters, in the order of GPT-2's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    return [chr(b) for b in plain] + [chr(256 + n) for n in range(len(moved))]


TOKENS = [*SPECIALS, *make_alphabet(), "he", "ll", "hell", "hello"]
MERGES = ["h e", "l l", "he ll", "hell o"]
CONFIGS = {
    "qwen3": LLMConfig(len(TOKENS), **SIZES),
    "qwen2": LLMConfig(len(TOKENS), **SIZES, qk_norm=False, qkv_bias=True),
    "llama": LLMConfig(len(TOKENS), **SIZES, qk_norm=False, tie_embeddings=False),
}


def rename(name):
    """Hugging Face's name as llama.cpp's."""
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{BACK[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{BACK[part]}.{kind}"


def pair_up(array, heads):
    """Rotary halves of each head → neighbouring pairs, as llama.cpp keeps Llama's."""
    split = array.reshape(heads, 2, -1, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def write(path, family, cut="smollm", quantised=()):
    """A GGUF file of random weights; returns them under Hugging Face's names."""
    config = CONFIGS[family]
    writer = gguf.GGUFWriter(path, family)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_feed_forward_length(config.ffn)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(TOKENS)
    kinds = [3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS))
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    rng = np.random.default_rng(0)
    shapes = conversion.llm_shapes(config)
    expected = {}
    for move in rules.plan([r for r in hf.RULES if r.ours in shapes], shapes):
        shape = move.layout.theirs(np.zeros(move.shape)).shape
        array = rng.normal(size=shape).astype(np.float32)
        expected[move.theirs] = array
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
        part = move.theirs.split(".")[-2]
        if family == "llama" and part in heads:
            array = pair_up(array, heads[part])
        kind = None
        if part in quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            array = gguf.quants.quantize(array, kind)
        writer.add_tensor(rename(move.theirs), array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("family", CONFIGS)
def test_tensors_and_config_come_back(tmp_path, family):
    """Every tensor to the bit, Llama's rotary pairs in Hugging Face's order."""
    path = str(tmp_path / "model.gguf")
    expected = write(path, family)
    file = gguf_file.GgufFile(path)
    assert file.specs.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(file.get(name), array)
    got, config = vars(file.config), vars(CONFIGS[family])
    assert got.pop("norm_epsilon") == pytest.approx(config["norm_epsilon"])
    assert got == {k: v for k, v in config.items() if k != "norm_epsilon"}


def test_a_quantised_file_is_imported_whole(tmp_path):
    """Eight-bit matrices are dequantised; the folder holds model and tokenizer."""
    path = str(tmp_path / "model.gguf")
    expected = write(path, "llama", quantised=("up_proj", "q_proj"))
    source, config, tokenizer = conversion.open_gguf(path)
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_allclose(source.get(name), expected[name], atol=0.02)
    conversion.import_llm(source, config, tokenizer, str(tmp_path / "out"), path)
    made = Tokenizer.from_file(str(tmp_path / "out" / conversion.TOKENIZER))
    assert made.vocab_size == len(TOKENS)


@pytest.mark.parametrize("cut", gguf_file._CUTS)
def test_the_tokenizer_is_the_files(tmp_path, cut):
    """Its merges, its special tokens, and every text back."""
    path = str(tmp_path / "model.gguf")
    write(path, "qwen3", cut)
    made = Tokenizer(gguf_file.GgufFile(path).make_tokenizer())
    assert made.encode("hello") == [TOKENS.index("hello")]
    assert made.end_id == SPECIALS.index("<|im_end|>")
    for text in ("hello 42 you", "导航去 NIO", "a  b\n"):
        assert made.decode(made.encode(text)) == text


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "cut off"),
        (lambda raw: b"nonsense" + raw, "cut off"),
        (
            lambda raw: raw.replace(b"\5\0\0\0\0\0\0\0qwen3", b"\5\0\0\0\0\0\0\0mamba"),
            "mamba",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, harm, message):
    """Truncated, foreign, or of another family."""
    path = tmp_path / "model.gguf"
    write(str(path), "qwen3")
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        gguf_file.GgufFile(str(path))


@pytest.mark.parametrize(
    "field",
    [b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges", b"tokenizer.ggml.token_type"],
)
def test_a_tokenizer_that_lacks_a_part_is_named(tmp_path, field):
    path = tmp_path / "model.gguf"
    write(str(path), "qwen3")
    path.write_bytes(path.read_bytes().replace(field, field[:-1] + b"?"))
    with pytest.raises(ValueError, match=rf"model\.gguf lacks {field.decode()}"):
        gguf_file.GgufFile(str(path)).make_tokenizer()


@pytest.mark.parametrize("field", [b"token_embd.weight", b"qwen3.block_count"])
def test_a_shape_that_cannot_be_read_is_named(tmp_path, field):
    path = tmp_path / "model.gguf"
    write(str(path), "qwen3")
    path.write_bytes(path.read_bytes().replace(field, field[:-1] + b"?"))
    with pytest.raises(ValueError, match=r"model\.gguf"):
        gguf_file.GgufFile(str(path))


def test_an_unknown_cut_asks_for_the_tokenizer(tmp_path):
    """The message says what to give."""
    path = str(tmp_path / "model.gguf")
    write(path, "qwen3", "klingon")
    with pytest.raises(ValueError, match="--tokenizer"):
        gguf_file.GgufFile(path).make_tokenizer()
