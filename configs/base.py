"""What all stages share: the sizes of the model, and the defaults of a run.

Sizes: `nano` trains on a laptop, `smollm2` is nano's encoder before a pretrained LLM,
`base` hears people with the encoder of Whisper base before a small LLM, `small` trains
on one accelerator, `2b3` is NIM4-ASR's. Another encoder takes the place of a size's own
by name, as in `configs/stage1.py:2b3+whisper-large-v3`; `nim4 convert` brings its
weights for config.init_from.
"""

from ml_collections import ConfigDict

SIZES = ("nano", "smollm2", "base", "small", "2b3")
_LAPTOP = ("nano", "smollm2", "base")


def _conformer(layers: int, width: int, heads: int, **others: float) -> dict:
    """What reads Kaldi's features, 40 ms a frame."""
    return {
        "features": {"num_mels": 80},
        "encoder": {
            "num_mels": 80,
            "subsampling_channels": 32,
            "ffn_factor": 4,
            "conv_context": "chunk",
            "num_layers": layers,
            "width": width,
            "num_heads": heads,
            **others,
        },
        "speech_stride": 4,
    }


def _whisper(layers: int, width: int, mels: int = 80) -> dict:
    """What reads Whisper's features, 20 ms a frame."""
    return {
        # A floor that a stream can have, too; Whisper's own is of the whole clip.
        "features": {"num_mels": mels, "floor": -8.0},
        "encoder": {
            "num_mels": mels,
            "ffn_factor": 4,
            "max_frames": 1500,
            "num_layers": layers,
            "width": width,
            "num_heads": width // 64,
            "dropout": 0.0,
        },
        "speech_stride": 8,
    }


_NANO = _conformer(6, 144, 4, conv_kernel=15, conv_expansion=1, dropout=0.0)

# Each size's own encoder, and those that may stand in its place: SIZE+ENCODER.
_ENCODERS = {
    "nano": _NANO,
    "smollm2": _NANO,
    "base": _whisper(6, 512),
    "small": _conformer(12, 512, 8, conv_kernel=33, conv_expansion=1, dropout=0.1),
    # FireRedASR-AED's block and width; 14 layers come to the paper's "about 600 M".
    "2b3": _conformer(14, 1280, 20, conv_kernel=33, conv_expansion=2, dropout=0.05),
    "firered": _conformer(16, 1280, 20, conv_kernel=33, conv_expansion=2, dropout=0.05),
    "whisper-tiny": _whisper(4, 384),
    "whisper-base": _whisper(6, 512),
    "whisper-small": _whisper(12, 768),
    "whisper-medium": _whisper(24, 1024),
    "whisper-large-v2": _whisper(32, 1280),
    "whisper-large-v3": _whisper(32, 1280, 128),
}

_LLMS = {
    "nano": {
        "vocab_size": 2048,
        "width": 192,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 48,
        "ffn": 512,
        "rope_theta": 1e4,
    },
    # SmolLM2-135M, a Llama
    "smollm2": {
        "vocab_size": 49_152,
        "width": 576,
        "num_layers": 30,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
        "ffn": 1536,
        "rope_theta": 1e5,
        "norm_epsilon": 1e-5,
        "qk_norm": False,
    },
    # Qwen3's shape, 21 M parameters; ids of the packaged tokenizer
    "base": {
        "vocab_size": 9216,
        "width": 384,
        "num_layers": 10,
        "num_heads": 6,
        "num_kv_heads": 3,
        "head_dim": 64,
        "ffn": 1152,
        "rope_theta": 1e4,
    },
    # Qwen3-0.6B
    "small": {
        "vocab_size": 151_936,
        "width": 1024,
        "num_layers": 28,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "ffn": 3072,
    },
    # Qwen3-1.7B
    "2b3": {
        "vocab_size": 151_936,
        "width": 2048,
        "num_layers": 28,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "ffn": 6144,
    },
}

_LARGE = ("v5p", "h100", "h200", "a100")
_ACCELERATORS = ("v5e", "v6e", "v4", *_LARGE)
# Parameters and slots over all devices of a slice; −1: as many as there are.
CUT_MESHES = {name: (1, -1, 1) for name in _ACCELERATORS}
# Where one device holds them whole, only gradients need to travel.
WHOLE_MESHES = {**CUT_MESHES, **{name: (-1, 1, 1) for name in _LARGE}}

_NO_LORA = {
    "rank": 0,
    "alpha": 16.0,
    "targets": "query|key|value|output|gate|up|down",
}

_ADAPTOR_WIDTHS = {
    "nano": 1024,
    "smollm2": 1024,
    "base": 1024,
    "small": 2048,
    "2b3": 4096,
}

_BATCHES = {"base": ((40, 24, 16, 12, 8, 6), (2.5, 4.0, 6.0, 8.5, 12.0, 17.5))}
_LAPTOP_BATCHES = ((16, 10, 6), (2.5, 5.0, 9.0))
# Rows follow from the devices; 16 of them hear 560,000 h in the 2 M steps of stage 1.
_POD_BATCHES = ((), (2.5, 4.0, 6.5, 15.0, 30.0))
_DEVICE_SECONDS = 60.0

_TOKENIZERS = {
    "nano": "nano",
    "base": "base",
    "smollm2": "weights/smollm2/tokenizer.json",
}


def check_size(size: str) -> str:
    """The size of SIZE or SIZE+ENCODER, `nano` for an empty one.

    Raises:
        ValueError: an unknown size.
    """
    size = size.partition("+")[0] or "nano"
    if size not in SIZES:
        raise ValueError(
            f"size {size!r} is unknown; use --config=configs/STAGE.py:SIZE with one of "
            f"{', '.join(SIZES)}."
        )
    return size


def choose_encoder(size: str) -> dict:
    """Features, encoder and speech stride of SIZE, or of ENCODER in SIZE+ENCODER.

    Raises:
        ValueError: an unknown encoder.
    """
    own, _, other = size.partition("+")
    name = other or check_size(own)
    if name not in _ENCODERS:
        raise ValueError(
            f"encoder {name!r} is unknown; use --config=configs/STAGE.py:SIZE+ENCODER "
            f"with one of {', '.join(_ENCODERS)}."
        )
    return _ENCODERS[name]


def on_laptop(size: str) -> bool:
    """Whether the size trains on a few CPU cores, on an hour of speech."""
    return check_size(size) in _LAPTOP


def augment(
    *,
    warp: int = 80,
    freq_width: int = 27,
    time_masks: int = 25,
    time_fraction: float = 0.375,
) -> dict:
    """SpecAugment amounts; the defaults are CR-CTC's."""
    return {
        "warp": warp,
        "freq_masks": 2,
        "freq_width": freq_width,
        "time_masks": time_masks,
        "time_width": 100,
        "time_fraction": time_fraction,
    }


def chunks(size: str) -> dict:
    """How chunk masks are drawn, in encoder frames: of a second or so at most."""
    if choose_encoder(size)["speech_stride"] == 4:
        return {"full_share": 0.5, "smallest": 1, "largest": 25, "unlimited_left": 0.5}
    # 0.24 to 1.28 s: an encoder that was trained on whole clips.
    return {"full_share": 0.4, "smallest": 12, "largest": 64, "unlimited_left": 0.7}


def held_out(size: str) -> tuple[str, ...]:
    """Recordings that encoders are compared on.

    Beyond a laptop they have to be given: the bundled ones say nothing of such a run.
    """
    return ("bundled:commands:test",) if on_laptop(size) else ()


def set_length(config: ConfigDict, steps: int) -> None:
    """Let a stage train for so long, save ten times and measure five, at least."""
    config.steps = steps
    config.checkpoint_every = max(1, min(config.checkpoint_every, steps // 10))
    drift = config.get("probe")
    if drift is not None and drift.every:
        drift.every = max(1, min(drift.every, steps // 5))


def probe(size: str) -> ConfigDict:
    """How far the encoder drifts from stage 1's, for stages that train it on text.

    An empty reference is the encoder that the stage begins with.
    """
    return ConfigDict(
        {
            "every": 200 if on_laptop(size) else 5_000,
            "sources": held_out(size),
            "batches": 4,
            "reference": "",
        }
    )


def _make_model(size: str) -> ConfigDict:
    """Shapes and dtypes."""
    parts, tiny = choose_encoder(size), on_laptop(size)
    size = check_size(size)
    return ConfigDict(
        {
            **parts,
            "adaptor_width": _ADAPTOR_WIDTHS[size],
            "llm": {**_LLMS[size], "lora": _NO_LORA},
            "policy": {
                "compute": "float32" if tiny else "bfloat16",
                "weights": "float",
                "kernels": "auto",
                "operands": "compute",
            },
            "remat": "none" if tiny else "full",
        }
    )


def _make_data(size: str) -> ConfigDict:
    """What is heard, in which batches."""
    size, tiny = check_size(size), on_laptop(size)
    rows, seconds = _BATCHES.get(size, _LAPTOP_BATCHES if tiny else _POD_BATCHES)
    return ConfigDict(
        {
            "kind": "speech",
            "sources": ("bundled:commands:train",),
            # Rows of each bucket's batch, of all devices together; (): as many as
            # device_seconds of audio for each device, padding included, come to.
            "batch_size": rows,
            "device_seconds": 0.0 if rows else _DEVICE_SECONDS,
            "bucket_seconds": seconds,
            "speed_perturb": (0.9, 1.0, 1.1),
            # Share of the speech at which these factors leave the pitch as it is.
            "tempo_share": 0.0,
            # The paper's share; laptop sizes train and are measured on clean speech.
            "noise_share": 0.0 if tiny else 0.2,
            "noise_snr": (10.0, 5.0),
            # Folders or manifests of recordings; without any, noise is synthesised.
            "noise_sources": (),
            # Shares of the examples heard in a simulated room, at another level (a gain
            # between these dB; it clips as a recorder does), over the telephone.
            "room_share": 0.0,
            "gain_share": 0.5,
            "gain_db": (-30.0, 10.0),
            "telephone_share": 0.0,
            # Silence, noise and music with nothing to write, for stages 4 to 6.
            "nonspeech_share": 0.0,
            "seed": 0,
            "threads": 1 if tiny else 16,
            "cache_mb": 800.0 if tiny else 0.0,
        }
    )


def get_config(size: str = "") -> ConfigDict:
    """Everything but what a stage decides."""
    tiny = on_laptop(size)
    config = ConfigDict()
    config.model = _make_model(size)
    # A path to a tokenizer.json; "nano" and "base" come with the package.
    config.tokenizer = _TOKENIZERS.get(check_size(size), "tokenizer.json")
    # JSON from `nim4 cmvn`; empty: from so many hours of the training data, drawn at
    # random (0: all), when not inherited.
    config.cmvn = ""
    config.cmvn_hours = 3.0
    # Workdirs or .safetensors files to start from, comma-separated; later ones win.
    config.init_from = ""
    config.data = _make_data(size)
    # (data, fsdp, tensor); empty: of the accelerator, within each slice or node.
    config.mesh = (1, 1, 1) if tiny else ()
    config.meshes = ConfigDict(CUT_MESHES)
    # Parts that a batch is cut into, to save memory; the update stays the same.
    config.micro_batches = 1
    config.seed = 0
    config.log_every = 10
    config.checkpoint_every = 200 if tiny else 5_000
    # The newest ones stay, and for ever those at multiples of keep_every (0: none).
    config.checkpoint_keep = 2
    config.checkpoint_keep_every = 0
    # A step whose loss or gradient is not finite changes nothing; so many in a row end
    # the run.
    config.skip_limit = 10
    # A run in which nothing happens for so long names the host that hangs, and exits
    # to be started again; 0 waits for ever. The first step compiles within it.
    config.timeout_minutes = 30.0
    return config
