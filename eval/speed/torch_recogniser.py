"""The stage-4 training step in torch: only a peer for `bench.py train_step`.

The encoder of `torch_conformer`, an adaptor, and Qwen3 as `transformers` has it, of the
sizes of our model; the layout [prefix | speech | suffix | answer] is ours.
"""

from __future__ import annotations

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from nim4_jax.eval.speed import torch_conformer
from nim4_jax.models.asr import AsrConfig, Prompt
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.ops.spec_augment import SpecAugmentConfig

_IGNORED = -100
"""Target behind the end of an answer."""


def make_llm(config: LLMConfig) -> nn.Module:
    """`transformers`' Qwen3 of our LLM's sizes.

    Raises:
        ValueError: the config is of another family.
    """
    if not config.qk_norm or config.qkv_bias or config.lora.rank:
        raise ValueError(f"the peer is a plain Qwen3; got {config}.")
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.ffn,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
            use_cache=False,
        )
    )


class Recogniser(nn.Module):
    """Front end, encoder, adaptor and LLM."""

    def __init__(self, config: AsrConfig):
        super().__init__()
        self.front_end = torch_conformer.FrontEnd(config.features)
        self.encoder = torch_conformer.Encoder(config.encoder)
        self.stride = config.speech_stride
        self.adaptor = nn.Sequential(
            nn.Linear(
                config.speech_stride * config.encoder.width, config.adaptor_width
            ),
            nn.ReLU(),
            nn.Linear(config.adaptor_width, config.llm.width),
        )
        self.llm = make_llm(config.llm)

    def hear(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Features and encoder frames of each row → speech tokens, which are real."""
        invalid = torch.arange((x.shape[1] + 3) // 4) >= counts[:, None]
        frames = self.encoder(x, invalid).masked_fill(invalid[..., None], 0.0)
        stride = self.stride
        frames = functional.pad(frames, (0, 0, 0, -frames.shape[1] % stride))
        speech = self.adaptor(frames.unflatten(1, (-1, stride)).flatten(2))
        real = ~invalid[:, ::stride]
        return speech.masked_fill(~real[..., None], 0.0), real

    def forward(
        self, x: Tensor, counts: Tensor, prompt: Prompt, answer: Tensor, real: Tensor
    ) -> Tensor:
        """Logits of each token of the answer, [B, L, V]."""
        speech, heard = self.hear(x, counts)
        rows = x.shape[0]
        prefix, suffix = (
            torch.tensor(ids).expand(rows, -1) for ids in (prompt.prefix, prompt.suffix)
        )
        llm: Any = self.llm
        embed = llm.get_input_embeddings()
        parts = (embed(prefix), speech, embed(suffix), embed(answer))
        around = (prefix, suffix)
        before, behind = (torch.ones_like(ids, dtype=torch.bool) for ids in around)
        mask = torch.cat([before, heard, behind, real], 1)
        return self.llm(
            inputs_embeds=torch.cat(parts, 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            # The last token of the suffix predicts the first of the answer.
            logits_to_keep=answer.shape[1] + 1,
        ).logits[:, :-1]


class TranscriptTrainer(torch_conformer.Trainer):
    """Stage 4: cross-entropy per token of the transcript."""

    def __init__(
        self, config: AsrConfig, augmentation: SpecAugmentConfig, prompt: Prompt
    ):
        self.recogniser = Recogniser(config)
        self.augmentation, self.prompt = augmentation, prompt
        super().__init__(self.recogniser)

    def compute_loss(self, arrays: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of the answers' tokens."""
        with torch.no_grad():
            x = self.recogniser.front_end(arrays["audio"])
            x = torch_conformer.augment(x, self.augmentation)
        answer = arrays["tokens"]
        real = torch.arange(answer.shape[1]) < arrays["token_lengths"][:, None]
        counts = torch_conformer.count_frames(arrays["lengths"])
        logits = self.recogniser(x, counts, self.prompt, answer, real)
        targets = answer.masked_fill(~real, _IGNORED)
        return functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED
        )
