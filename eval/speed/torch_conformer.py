"""The encoder's training step in torch: only a peer for `bench.py train_step`.

The block is FireRedASR's with full attention, as our encoder with an endless chunk; the
front end, augmentation, losses and optimizer do the same work as ours.
"""

from __future__ import annotations

import math

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from nim4_jax import features
from nim4_jax.models.asr import AsrConfig
from nim4_jax.models.conformer import ConformerConfig
from nim4_jax.ops import relative
from nim4_jax.ops.spec_augment import SpecAugmentConfig


class FrontEnd(nn.Module):
    """Samples [B, S] → log-mel [B, T, M]."""

    filters: Tensor
    window: Tensor

    def __init__(self, config: features.FeatureConfig):
        super().__init__()
        self.config = config
        self.register_buffer("filters", torch.tensor(features.mel_filters(config)))
        window = features.povey_window(config.window)
        self.register_buffer("window", torch.tensor(window))

    def forward(self, samples: Tensor) -> Tensor:
        config = self.config
        frames = samples.unfold(1, config.window, config.hop) * 32_768.0
        frames = frames - frames.mean(-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], -1)
        frames = (frames - config.preemphasis * previous) * self.window
        spectrum = torch.fft.rfft(frames, config.fft_size)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power @ self.filters).clamp_min(1e-7).log()


def make_feed_forward(config: ConformerConfig) -> nn.Sequential:
    """LN – linear – swish – linear."""
    wide = config.width * config.ffn_factor
    return nn.Sequential(
        nn.LayerNorm(config.width),
        nn.Linear(config.width, wide),
        nn.SiLU(),
        nn.Dropout(config.dropout),
        nn.Linear(wide, config.width),
        nn.Dropout(config.dropout),
    )


class RelativeAttention(nn.Module):
    """Transformer-XL attention with three norms in front."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        width = config.width
        self.heads, self.head_dim = config.num_heads, config.head_dim
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.projections = nn.ModuleList(
            nn.Linear(width, width, bias=False) for _ in range(5)
        )
        self.bias_u = nn.Parameter(torch.zeros(self.heads, self.head_dim))
        self.bias_v = nn.Parameter(torch.zeros(self.heads, self.head_dim))
        self.dropout = nn.Dropout(config.dropout)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2)

    def forward(self, x: Tensor, blocked: Tensor, distances: Tensor) -> Tensor:
        query, key, value = (
            self._split(project(norm(x)))
            for project, norm in zip(self.projections, self.norms)
        )
        position = self._split(self.projections[3](distances))
        content = (query + self.bias_u[:, None]) @ key.transpose(-1, -2)
        shifted = (query + self.bias_v[:, None]) @ position.transpose(-1, -2)
        batch, heads, size, rows = shifted.shape
        padded = functional.pad(shifted, (1, 0)).view(batch, heads, rows + 1, size)
        shifted = padded[:, :, 1:].reshape(batch, heads, size, rows)[..., :size]
        scores = (content + shifted) / math.sqrt(self.head_dim)
        weights = scores.masked_fill(blocked, -1e30).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return x + self.dropout(self.projections[4](mixed))


class ConvModule(nn.Module):
    """LN – GLU – depthwise – LN – swish – linear."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        inner, taps = config.conv_width, config.conv_kernel
        self.norm = nn.LayerNorm(config.width)
        self.enter = nn.Linear(config.width, 2 * inner, bias=False)
        self.depthwise = nn.Conv1d(
            inner, inner, taps, padding=taps // 2, groups=inner, bias=False
        )
        self.depthwise_norm = nn.LayerNorm(inner)
        self.leave = nn.Linear(inner, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, invalid: Tensor) -> Tensor:
        y = functional.glu(self.enter(self.norm(x)))
        y = y.masked_fill(invalid[..., None], 0.0).transpose(1, 2)
        y = self.depthwise_norm(self.depthwise(y).transpose(1, 2))
        return x + self.dropout(self.leave(functional.silu(y)))


class Block(nn.Module):
    """½·FFN – MHSA – conv – ½·FFN – LayerNorm, with FireRedASR's halves."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.ffn1, self.ffn2 = make_feed_forward(config), make_feed_forward(config)
        self.attention = RelativeAttention(config)
        self.conv = ConvModule(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, invalid: Tensor, distances: Tensor) -> Tensor:
        x = x + 0.5 * self.ffn1(x)
        x = self.attention(x, invalid[:, None, None], distances)
        x = self.conv(x, invalid)
        return self.norm(x + 0.5 * self.ffn2(x))


class Encoder(nn.Module):
    """Convolutional subsampling by 4 and the stack of blocks."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        channels = config.subsampling_channels
        bands = ((config.num_mels - 1) // 2 - 1) // 2
        self.width = config.width
        self.convolve = nn.Sequential(
            nn.Conv2d(1, channels, 3, 2), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2)
        )
        self.project = nn.Linear(bands * channels, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor, invalid: Tensor) -> Tensor:
        """Features [B, T, M] and invalid encoder frames [B, U] → [B, U, D]."""
        x = functional.pad(x, (0, 0, 0, 6))[:, None]
        x = self.convolve(x).relu().transpose(1, 2).flatten(2)
        x = self.project(x).masked_fill(invalid[..., None], 0.0)
        size = x.shape[1]
        distances = torch.from_numpy(relative.sinusoids(size, size, self.width))
        for block in self.blocks:
            x = block(x, invalid, distances)
        return x


class BatchRecogniser(nn.Module):
    """Front end, encoder and phoneme head."""

    def __init__(self, config: AsrConfig):
        super().__init__()
        width = config.encoder.width
        self.front_end = FrontEnd(config.features)
        self.encoder = Encoder(config.encoder)
        self.head = nn.Sequential(
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, config.num_phonemes),
        )

    def forward(self, x: Tensor, invalid: Tensor) -> Tensor:
        """Features [B, T, M] and invalid encoder frames [B, U] → log p [B, U, P]."""
        return self.head(self.encoder(x, invalid)).log_softmax(-1)


def augment(x: Tensor, config: SpecAugmentConfig) -> Tensor:
    """Bands and spans set to 0, as many and as wide as ours."""
    batch, length, mels = x.shape
    budget = math.floor(length * config.time_fraction)
    spans = max(1, min(math.ceil(budget / config.time_width), config.time_masks))
    for size, count, widest, axis in (
        (length, spans, min(budget // spans, config.time_width), 1),
        (mels, config.freq_masks, config.freq_width, 2),
    ):
        width = torch.rand(batch, count, 1) * widest
        start = torch.rand(batch, count, 1) * (size - width)
        place = torch.arange(size)
        hidden = ((place >= start) & (place < start + width)).any(1)
        x = x.masked_fill(hidden.unsqueeze(3 - axis), 0.0)
    return x


def count_frames(samples: Tensor) -> Tensor:
    """Samples of each row → its encoder frames, at a hop of 10 ms and 25 ms windows."""
    return ((samples - 400) // 160 + 4) // 4


class Trainer:
    """A model and its optimizer; subclasses say what is minimised."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), 1e-4, betas=(0.9, 0.98), weight_decay=1e-2
        )

    def count_parameters(self) -> int:
        """Number of trained scalars."""
        return sum(leaf.numel() for leaf in self.model.parameters())

    def compute_loss(self, arrays: dict[str, Tensor]) -> Tensor:
        """What one update makes smaller."""
        raise NotImplementedError

    def step(self, batch: dict[str, np.ndarray]) -> float:
        """One update; returns the loss."""
        arrays = {name: torch.from_numpy(array) for name, array in batch.items()}
        loss = self.compute_loss(arrays)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())


class PhonemeTrainer(Trainer):
    """Stage 1: CR-CTC per encoder frame."""

    def __init__(self, config: AsrConfig, augmentation: SpecAugmentConfig):
        self.recogniser = BatchRecogniser(config)
        self.augmentation = augmentation
        super().__init__(self.recogniser)

    def compute_loss(self, arrays: dict[str, Tensor]) -> Tensor:
        """½ CTC of each view and their distance."""
        with torch.no_grad():
            x = self.recogniser.front_end(arrays["audio"])
        views = torch.cat([augment(x, self.augmentation) for _ in range(2)])
        counts = count_frames(arrays["lengths"]).repeat(2)
        invalid = torch.arange((x.shape[1] + 3) // 4) >= counts[:, None]
        log_probs = self.recogniser(views, invalid)
        ctc = functional.ctc_loss(
            log_probs.transpose(0, 1),
            arrays["phonemes"].repeat(2, 1),
            counts,
            arrays["phoneme_lengths"].repeat(2),
            reduction="sum",
        )
        a, b = log_probs.chunk(2)
        both = [
            functional.kl_div(
                estimate, target.detach(), reduction="none", log_target=True
            )
            for estimate, target in ((a, b), (b, a))
        ]
        valid = ~invalid[: a.shape[0], :, None]
        agreement = 0.5 * ((both[0] + both[1]) * valid).sum()
        return (0.5 * ctc + 0.2 * agreement) / counts.sum() * 2
