"""The whole model: features, encoder, phoneme head, adaptor and LLM joined.

audio → features → encoder → adaptor → LLM → text, and encoder → phoneme scores.
Parameters exist only for the parts that a caller uses: initialising through a loss that
never reaches the LLM makes none for it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, Float, Int

from nim4_jax import features as front_end
from nim4_jax import settings, struct
from nim4_jax.layers import Policy
from nim4_jax.models.adaptor import Adaptor
from nim4_jax.models.conformer import ConformerConfig
from nim4_jax.models.encoder import EncoderState
from nim4_jax.models.llm_config import LLMConfig
from nim4_jax.models.phoneme_head import PhonemeHead
from nim4_jax.models.phoneme_reader import PhonemeReader
from nim4_jax.models.qwen3 import Qwen3
from nim4_jax.models.whisper_encoder import WhisperEncoderConfig
from nim4_jax.ops.chunking import Chunking
from nim4_jax.rates import Rates
from nim4_jax.types import Frames, Labels, Params


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Token ids around the speech: [prefix | speech | suffix | answer].

    Attributes:
        prefix: ids before the speech; the same for every utterance.
        suffix: ids of the instruction after it, up to the start of the answer.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class AsrConfig:
    """Shape of the whole model.

    Attributes:
        features: front end.
        encoder: its type says which encoder it is.
        adaptor_width: width between the adaptor's two layers.
        num_phonemes: P, blank included.
        llm: decoder.
        policy: dtypes.
        remat: "none", "dots" or "full": what is recomputed in the backward pass.
        speech_stride: encoder frames per speech token.
    """

    features: front_end.FeatureConfig | front_end.WhisperFeatures = dataclasses.field(
        metadata={settings.USUAL: front_end.FeatureConfig}
    )
    encoder: ConformerConfig | WhisperEncoderConfig
    adaptor_width: int
    num_phonemes: int
    llm: LLMConfig
    policy: Policy = Policy()
    remat: str = "none"
    speech_stride: int = 4

    def __post_init__(self):
        if self.features.num_mels != self.encoder.num_mels:
            raise ValueError(
                f"features of {self.features.num_mels} mels do not fit an encoder of "
                f"{self.encoder.num_mels}; set model.features.num_mels and "
                "model.encoder.num_mels to one number."
            )
        if self.speech_stride < 1:
            raise ValueError(f"speech_stride={self.speech_stride} must be at least 1.")

    @property
    def rates(self) -> Rates:
        """How samples, frames and tokens of the model follow each other."""
        features, encoder = self.features, self.encoder
        return Rates(
            features.hop,
            features.window,
            features.lead,
            features.tail,
            encoder.frame_stride,
            encoder.frames_before,
            encoder.frames_after,
            self.speech_stride,
            encoder.max_frames,
        )


@struct.dataclass
class Sequence:
    """What the LLM reads: embeddings, their RoPE positions, and which are real."""

    embeddings: Float[Array, "B L D"]
    positions: Int[Array, "B L"]
    mask: Bool[Array, "B L"]

    def frames(self) -> Frames:
        """The embeddings with their mask."""
        return Frames(self.embeddings, self.mask)


class Cmvn(nn.Module):
    """Global mean and variance normalisation; parameters that no recipe trains."""

    num_mels: int

    @nn.compact
    def __call__(self, features: Frames) -> Frames:
        shape = (self.num_mels,)
        partition = nn.with_logical_partitioning
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        mean: Any = self.param("mean", partition(zeros, (None,)), shape)
        scale: Any = self.param("scale", partition(ones, (None,)), shape)
        values = (features.values - mean[None, None]) * scale[None, None]
        return dataclasses.replace(features, values=values).masked()


class Asr(nn.Module):
    """Speech recogniser with an LLM as decoder.

    Attributes:
        config: shapes.
        dropout_in: parts in which dropout is on (needs the "dropout" rng).
        packed: the LLM is `qwen3.pack`ed for decoding.
    """

    config: AsrConfig
    dropout_in: tuple[str, ...] = ()
    packed: bool = False

    def setup(self):
        config, policy = self.config, self.config.policy
        width = config.encoder.width
        self.cmvn = Cmvn(config.features.num_mels)
        still = "encoder" not in self.dropout_in
        self.encoder = config.encoder.build(policy, config.remat, still)
        self.ctc_head = PhonemeHead(width, config.num_phonemes, policy)
        stride = config.speech_stride
        self.adaptor = Adaptor(
            width, config.adaptor_width, config.llm.width, stride, policy
        )
        self.phoneme_reader = PhonemeReader(
            config.num_phonemes, config.llm.width, stride, policy
        )
        self.llm = Qwen3(config.llm, policy, config.remat, self.packed)

    def extract(self, audio: Frames) -> Frames:
        """Samples [B, S] → normalised log-mel [B, T, M]."""
        return self.cmvn(front_end.log_mel(audio, self.config.features))

    def extract_piece(self, audio: Frames) -> Frames:
        """Samples of a stream's chunk, and those that it sees around it, the same."""
        config = self.config
        before = config.encoder.frames_before
        return self.cmvn(front_end.log_mel_piece(audio, config.features, before))

    def encode(self, features: Frames, chunking: Chunking) -> Frames:
        """Normalised log-mel [B, T, M] → encoder frames [B, U, D]."""
        return self.encoder(features, chunking)

    def encode_chunk(
        self, features: Frames, state: EncoderState, chunking: Chunking
    ) -> tuple[Frames, EncoderState]:
        """The next chunk of each stream, see `Encoder.advance`."""
        return self.encoder.advance(features, state, chunking)

    def score_phonemes(self, frames: Frames) -> Float[Array, "B U P"]:
        """Encoder frames → phoneme scores in float32, class 0 the CTC blank."""
        return self.ctc_head(frames.values)

    def adapt(self, frames: Frames) -> Frames:
        """Encoder frames [B, U, D] → speech tokens [B, ⌈U/stride⌉, LLM's width]."""
        return self.adaptor(frames)

    def read_phonemes(self, classes: Frames) -> Frames:
        """Phoneme weights at frame rate [B, U, P] → speech tokens, without audio."""
        return self.phoneme_reader(classes)

    def assemble(
        self,
        speech: Frames,
        prompt: Prompt,
        answer: Labels | None = None,
        suffix: Labels | None = None,
    ) -> Sequence:
        """Lay [prefix | speech | suffix | answer] out for the LLM.

        Padding of the speech stays where it is, as a masked gap; positions count real
        tokens only, so a row means the same alone and in a batch.

        Args:
            speech: tokens of the adaptor.
            prompt: what stands around them.
            answer: teacher forced; None to decode one.
            suffix: each row's own, where rows have hints; None for the prompt's.
        """
        batch = speech.mask.shape[0]

        def constant(ids: tuple[int, ...]) -> Frames:
            tokens = jnp.broadcast_to(jnp.asarray(ids, jnp.int32), (batch, len(ids)))
            return Frames(self.llm.embed(tokens), jnp.ones((batch, len(ids)), bool))

        def embed(tokens: Labels) -> Frames:
            return Frames(self.llm.embed(tokens.ids), tokens.mask)

        behind = constant(prompt.suffix) if suffix is None else embed(suffix)
        parts = [constant(prompt.prefix), speech.masked(), behind]
        if answer is not None:
            parts.append(embed(answer))
        policy = self.config.policy
        values = [policy.cast(part.values) for part in parts]
        mask = jnp.concatenate([part.mask for part in parts], axis=1)
        positions = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        return Sequence(jnp.concatenate(values, axis=1), positions, mask)

    def answer_states(
        self,
        speech: Frames,
        prompt: Prompt,
        answer: Labels,
        suffix: Labels | None = None,
    ) -> Float[Array, "B L D"]:
        """Hidden state that predicts each token of `answer` (teacher forced).

        The last real slot before the answer predicts its first token, as in decoding;
        a row's own suffix may have padding behind it.
        """
        sequence = self.assemble(speech, prompt, answer, suffix)
        hidden, _ = self.llm(sequence.embeddings, sequence.positions, sequence.mask)
        start = sequence.mask.shape[1] - answer.ids.shape[1]
        last = start - 1 - jnp.argmax(sequence.mask[:, :start][:, ::-1], axis=1)
        first = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
        return jnp.concatenate([first, hidden[:, start:-1]], axis=1)

    def unembed(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Hidden states → float32 logits."""
        return self.llm.unembed(hidden)

    def reach_all(self) -> None:
        """Run every part once, on almost nothing: makes every parameter there is."""
        audio = Frames(jnp.zeros((1, 16_000)), jnp.ones((1, 16_000), bool))
        tokens = Labels(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
        frames = self.encode(self.extract(audio), Chunking.full())
        self.read_phonemes(
            dataclasses.replace(frames, values=self.score_phonemes(frames))
        )
        states = self.answer_states(self.adapt(frames), Prompt((0,), (0,)), tokens)
        self.unembed(states)


def abstract_params(config: AsrConfig) -> Params:
    """Shapes of all parameters, in boxes that name their logical axes; no arrays."""
    init = nn.init(Asr.reach_all, Asr(config))
    return jax.eval_shape(lambda: init(jax.random.key(0)))["params"]


def param_shapes(config: AsrConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of every parameter that a model of that config can have."""
    flat: Any = flatten_dict(nn.unbox(abstract_params(config)), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}
