"""Damaged files of every format: each is read, or its reader's documented error comes.

    python tests/fuzz/fuzz.py --count=200000             # about 20 minutes on 2 cores
    python tests/fuzz/fuzz.py --first=4711 --count=1     # one input again, with a trace

Input n hangs on (--seed, n) alone. Inputs are read in a child process, which is started
again where it dies; what it dies of is counted as an error of the input.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import mutation
import numpy as np
import seeds
from formats import Target

from nim4_jax.data.audio import ffmpeg

_SLOW = 5.0  # s of this thread's work that an input may take
_HANG = 20.0  # s of the process's work after which it is stopped
_ROOM = 2 << 30  # bytes that the process may take for an input
_MEMORY_MB = 500.0  # growth of the peak over all inputs
_SHOWN = 3  # inputs of one error


class Hang(BaseException):
    """An input took too long."""


@dataclasses.dataclass
class Account:
    """What has become of the inputs.

    Attributes:
        count: of all.
        errors: (format, error and where) → inputs.
        slowest: (seconds, format, input).
        peak_mb: most memory of the process after an input.
        grown: inputs at which it grew by 20 MB or more: (MB, format, input).
    """

    count: int = 0
    errors: dict[tuple[str, str], list[int]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    slowest: tuple[float, str, int] = (0.0, "", 0)
    peak_mb: float = 0.0
    grown: list[tuple[float, str, int]] = dataclasses.field(default_factory=list)


def schedule(targets: dict[str, Target]) -> list[str]:
    """Formats in the order in which inputs take turns."""
    turns = [name for name, it in targets.items() for _ in range(it.share)]
    random.Random(0).shuffle(turns)
    return turns


def make_input(target: Target, seed: int, number: int) -> tuple[bytes, int]:
    """Content of an input, and the seed that it was made of."""
    rng = random.Random(f"{seed}:{number}")
    chosen = rng.randrange(len(target.seeds))
    parts = target.parts[chosen] if target.parts else b""
    if target.wrap and parts and rng.random() < 0.7:
        return target.wrap(mutation.mutate(rng, parts, target.parts)), chosen
    return mutation.mutate(rng, target.seeds[chosen], target.seeds), chosen


def measure_peak() -> float:
    """Most memory that the process ever had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe(error: BaseException) -> str:
    """An error's type, its place in the code, and its first words."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "tests/fuzz" not in frame.filename
    ]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    ours = [f for f in frames if "site-packages" not in f.filename]
    via = f" via {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__} at {place}{via}: {str(error)[:90]!r}"


def iterate(
    targets: dict[str, Target], folder: Path, seed: int, numbers: Sequence[int]
) -> Iterator[tuple[int, str, BaseException | None, float]]:
    """Read inputs; yields (number, format, error, seconds) of each."""

    def stop(*_):
        raise Hang(f"more than {_HANG} s")

    turns = schedule(targets)
    signal.signal(signal.SIGVTALRM, stop)
    for number in numbers:
        name = turns[number % len(turns)]
        content, chosen = make_input(targets[name], seed, number)
        begin, found = time.thread_time(), None
        signal.setitimer(signal.ITIMER_VIRTUAL, _HANG)
        try:
            targets[name].read(folder, content, chosen)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            found = error
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        yield number, name, found, time.thread_time() - begin


def run(
    targets: dict[str, Target], folder: Path, seed: int, numbers: Sequence[int]
) -> Account:
    """Read inputs in this process."""
    account, last = Account(), measure_peak()
    account.peak_mb = last
    for number, name, error, seconds in iterate(targets, folder, seed, numbers):
        account.count += 1
        account.slowest = max(account.slowest, (seconds, name, number))
        if error is not None:
            account.errors[name, describe(error)].append(number)
        if seconds > _SLOW:
            account.errors[name, f"slow: more than {_SLOW} s"].append(number)
        peak = measure_peak()
        if peak > last + 20:
            account.grown.append((round(peak - last), name, number))
        last = account.peak_mb = peak
    return account


# --- a child process, and who watches it


def _quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    np.seterr(all="ignore")
    ffmpeg.find = lambda: None  # the same on machines with ffmpeg


def work(given: argparse.Namespace) -> None:
    """The child: one line of JSON for what is worth telling, and every 200 inputs."""
    _quiet()
    scratch = Path(given.folder)
    targets = choose(seeds.make_targets(scratch), given.formats)
    numbers = range(given.first, given.first + given.count)
    at, told = (scratch / "at").open("w+"), os.fdopen(os.dup(1), "w")
    if given.count > 1:
        for stream in (1, 2):  # what libraries mutter
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    _tell(told, kind="begin", peak=measure_peak(), turns=len(schedule(targets)))
    since = time.monotonic()
    at.write(f"{given.first:012d}")
    at.flush()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever watches ends this
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    last = measure_peak()
    for number, name, error, seconds in iterate(targets, scratch, given.seed, numbers):
        at.seek(0)
        at.write(f"{number + 1:012d}")
        at.flush()
        if error is not None:
            if given.count == 1:
                traceback.print_exception(error)
            _tell(told, kind="error", name=name, number=number, what=describe(error))
        if seconds > _SLOW:
            what = f"slow: more than {_SLOW} s"
            _tell(told, kind="error", name=name, number=number, what=what)
        peak = measure_peak()
        if peak > last + 20:
            grown = round(peak - last)
            _tell(told, kind="grown", name=name, number=number, mb=grown)
        last = peak
        _tell(told, kind="took", name=name, number=number, seconds=seconds)
        if number % 200 == 199 or number == numbers[-1]:
            spent = time.monotonic() - since
            _tell(told, kind="at", number=number, peak=peak, spent=spent)


def _tell(stream, **facts) -> None:
    if facts["kind"] == "took" and facts["seconds"] < 0.2:
        return
    stream.write(json.dumps(facts) + "\n")
    stream.flush()


def choose(targets: dict[str, Target], wanted: str) -> dict[str, Target]:
    """The formats that a comma-separated list names, all for an empty one."""
    listed = wanted.split(",") if wanted else list(targets)
    return {name: targets[name] for name in listed}


def watch(given: argparse.Namespace) -> Account:
    """Read inputs in child processes, one after the other; Ctrl-C ends it early."""
    account, first, end = Account(), given.first, given.first + given.count
    base = 0.0
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    while first < end:
        with tempfile.TemporaryDirectory(dir=shared) as scratch:
            command = [sys.executable, __file__, "--child", f"--folder={scratch}"]
            command += [f"--seed={given.seed}", f"--first={first}"]
            command += [f"--count={end - first}", f"--formats={given.formats}"]
            stopped = False
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                try:
                    for line in child.stdout or ():
                        base = max(base, _note(account, json.loads(line)))
                except KeyboardInterrupt:
                    stopped = True
                    child.kill()
            at = Path(scratch, "at")
            if not at.exists():
                raise SystemExit("the child died before its first input")
            number = int(at.read_text())
            account.count += number - first
            if stopped:
                break
            if number < end:  # it died of this one
                made = choose(seeds.make_targets(Path(scratch)), given.formats)
                name = schedule(made)[number % len(schedule(made))]
                died = f"the process died: {child.returncode}"
                account.errors[name, died].append(number)
                account.count += 1
                number += 1
            first = number
    account.peak_mb -= base
    print(f"memory: {base:.0f} MB before the first input, {account.peak_mb:.0f} more")
    return account


def _note(account: Account, facts: dict) -> float:
    """Enter what a child told; returns the memory before its first input."""
    kind = facts["kind"]
    if kind == "begin":
        return facts["peak"]
    if kind == "error":
        found = account.errors[facts["name"], facts["what"]]
        found.append(facts["number"])
        if len(found) == 1:
            print(f"{facts['name']}, input {found[0]}: {facts['what']}", flush=True)
    elif kind == "grown":
        account.grown.append((facts["mb"], facts["name"], facts["number"]))
    elif kind == "took":
        took = (facts["seconds"], facts["name"], facts["number"])
        account.slowest = max(account.slowest, took)
    elif kind == "at":
        account.peak_mb = max(account.peak_mb, facts["peak"])
        if facts["number"] % 5000 == 4999:
            print(f"{facts['number'] + 1} inputs, {facts['spent']:.0f} s", flush=True)
    return 0.0


def report(account: Account) -> int:
    """Print the account; returns the exit code."""
    for (name, what), numbers in sorted(account.errors.items()):
        shown = ", ".join(map(str, numbers[:_SHOWN]))
        print(f"{len(numbers):6d} × {name}: {what} (inputs {shown})")
    seconds, name, number = account.slowest
    print(f"slowest: {seconds:.2f} s, {name}, input {number}")
    for mb, name, number in sorted(account.grown, reverse=True)[:5]:
        print(f"grew by {mb} MB: {name}, input {number}")
    failed = sum(map(len, account.errors.values()))
    print(f"{account.count} inputs, {failed} of them with errors of another kind")
    return int(bool(failed) or account.peak_mb > _MEMORY_MB)


def main() -> int:
    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends two
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default="", help="comma-separated; all if empty")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        work(given)
        return 0
    return report(watch(given))


if __name__ == "__main__":
    sys.exit(main())
