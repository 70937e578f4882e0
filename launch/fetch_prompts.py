"""Fetch human English test speech: 540 telephone prompts of one speaker, 24 minutes.

    python launch/fetch_prompts.py --out=corpus/prompts

Needs ffmpeg, and apt-get on a Debian system; elsewhere pass --debs=FOLDER with
asterisk-core-sounds-en-g722_*.deb and asterisk-core-sounds-en_*.deb in it. Leaves
audio/*.ogg (16 kHz Opus) and test.jsonl in --out. The prompts are CC-BY-SA-3.0.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from nim4_jax import whole_file
from nim4_jax.data.corpora import prompts, synthesis
from nim4_jax.data.sources import builders

OUT = flags.DEFINE_string("out", "corpus/prompts", "Folder of recordings and manifest.")
DEBS = flags.DEFINE_string("debs", None, "Folder of the two .deb files.")
COUNT = flags.DEFINE_integer("count", 0, "A selection of 1 to 8 s; 0 means all.")
TFDS_DIR = flags.DEFINE_string("tfds_dir", None, "Also build the TFDS data set here.")


def write_prompts(chosen: list[prompts.Prompt], out: Path) -> Path:
    """Write recordings and manifest; returns the manifest's path."""
    (out / "audio").mkdir(parents=True, exist_ok=True)
    lines = []
    for prompt in tqdm(chosen, unit="prompt"):
        audio = prompts.decode_g722(prompt.g722)
        name = f"audio/{prompt.name.replace('/', '-')}.ogg"
        opus = synthesis.encode_opus(audio, compression=0.85)
        whole_file.write_bytes(out / name, opus)
        record = {
            "id": f"prompts-{prompt.name.replace('/', '-')}",
            "audio": name,
            "text": prompt.text,
            "lang": "en",
            "keywords": [],
            "voice": prompts.VOICE,
            "split": "test",
            "duration": round(len(audio) / prompts.SAMPLE_RATE, 3),
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    manifest = out / "test.jsonl"
    whole_file.write_text(manifest, "".join(lines))
    return manifest


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    out = Path(OUT.value)
    try:
        if DEBS.value:
            packages = prompts.find_packages(Path(DEBS.value))
        else:
            packages = prompts.download_packages(out / "packages")
        chosen = prompts.read_prompts(packages)
        if COUNT.value:
            chosen = prompts.choose_prompts(chosen, COUNT.value)
        manifest = write_prompts(chosen, out)
    except (RuntimeError, FileNotFoundError, ValueError) as error:
        raise app.UsageError(str(error)) from error
    seconds = sum(prompt.duration for prompt in chosen)
    print(f"{manifest}: {len(chosen)} prompts, {seconds / 60:.1f} min")
    if TFDS_DIR.value:
        print(builders.build(builders.Prompts, out, Path(TFDS_DIR.value)))


if __name__ == "__main__":
    app.run(main)
