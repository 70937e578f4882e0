"""A bundle of the tiny model, made once."""

import dataclasses

import pytest

from nim4_jax.decode.live.stream_config import StreamConfig
from nim4_jax.serving import bundle_source, export

SIZES = StreamConfig(chunk=4, left=4, chunks=40, text_tokens=24, suffix_tokens=40)


@pytest.fixture(scope="session")
def stream_sizes() -> StreamConfig:
    """Of the streams that the bundle has programs for."""
    return SIZES


@pytest.fixture(scope="session")
def whisper_bundle(whisper_files, tmp_path_factory):
    """The tiny model with Whisper's kind of encoder, exported, and sizes of streams."""
    folder = str(tmp_path_factory.mktemp("exported_whisper") / "bundle")
    source = bundle_source.make_source(whisper_files[0], seconds=(1.6,))
    rates = source.programs.rates
    sizes = dataclasses.replace(SIZES, chunk=rates.frames_of_chunk(160), rates=rates)
    export.write(folder, dataclasses.replace(source, streams=(sizes,)))
    return folder, sizes


@pytest.fixture(scope="session")
def bundle_folder(model_files, tmp_path_factory) -> str:
    """The tiny model, exported."""
    folder = str(tmp_path_factory.mktemp("exported") / "bundle")
    source = bundle_source.make_source(model_files[0], streams=(SIZES,))
    export.write(folder, source)
    return folder
