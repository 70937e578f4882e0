"""nim4 evaluate --config=configs/evaluate.py --models=runs/demo/stage4 --out=DIR

A sweep: every model on every benchmark, in every mode, with every kind of hotwords.
Flags such as --models, --benchmarks, --modes, --hotwords and --limit come before what
stands here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What runs from a checkout in minutes, but for the models."""
    config = ConfigDict()
    # Workdirs, .safetensors files, bundles or peers (whisper-base, whisper-tiny.en,
    # pocketsphinx); NAME=PATH gives a name. Reports compare the others with the first.
    config.models = ()
    # Names of eval/sweep/benchmarks.py or sources; absent data are reported, and
    # no error.
    config.benchmarks = ("commands", "prompts", "names", "nonspeech", "commands-10db")
    # offline, and stream:MS in chunks of a multiple of 160 ms.
    config.modes = ("offline", "stream:640", "stream:320")
    # none, said, misleading, both, and list:PATH for names found in what is heard.
    config.hotwords = ("none",)
    config.near = "lattice"  # where such names are looked for: lattice, scann, none
    config.limit = 0  # utterances per benchmark, spread evenly; 0 for all
    config.left = 4  # chunks that a stream's chunk sees to its left
    config.phonemes = False  # score the phoneme head too
    config.hint_count = 4  # misleading names an utterance
    config.hint_names = ""  # further misleading names: a list or a source
    config.hint_seed = 0
    config.seen = ()  # transcripts of the training: other names are held out
    config.find_keywords = False  # by counting words, where records list none
    return config
