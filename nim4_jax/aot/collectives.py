"""Collectives in compiled programs: kinds, counts and bytes, read from the HLO text."""

from __future__ import annotations

import collections
import dataclasses
import re

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}
_SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_OPERATION = re.compile(
    r"= (?P<result>.*?) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\("
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ASYNC = re.compile(r'custom_call_target="AsyncCollective(\w+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\](?:\{[^}]*\})? constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\([^,]*, %?([\w.\-]+)\), direction=LT")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one run of a program.

    Attributes:
        count: how often one is done, loops counted as often as they turn.
        bytes: sum of the results on one device.
    """

    count: int
    bytes: int


def read(text: str) -> dict[str, Traffic]:
    """Kind → traffic, from a compiled program's text.

    A loop counts as often as the compiler says that it turns, or else as the number is
    that its counter is compared with.
    """
    bodies, entry = _split(text)
    turns = _count_turns(bodies, entry)
    counts: dict[str, int] = collections.Counter()
    sizes: dict[str, int] = collections.Counter()
    for name, lines in bodies.items():
        if _goes_on(name, lines):
            continue
        for line in lines:
            if found := _OPERATION.search(line):
                times = turns[name]
                counts[found["kind"]] += times
                whole = _measure(found["result"])
                # A start gives its operand back beside the result.
                sizes[found["kind"]] += times * (max(whole) if whole else 0)
    return {kind: Traffic(counts[kind], sizes[kind]) for kind in KINDS if counts[kind]}


def read_open_loops(text: str) -> set[str]:
    """Kinds within loops whose length is not known beforehand: the decoding ones."""
    bodies, _ = _split(text)
    lines = [line for body in bodies.values() for line in body]
    loops = [line for line in lines if " while(" in line]
    seen: set[str] = set()
    waiting = [
        name
        for line in loops
        if _count_trips(line, bodies) == 1
        for name in _CALLED.findall(line)
    ]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _find_called(bodies.get(name, []))
    inside = [line for name in seen for line in bodies.get(name, [])]
    return {found["kind"] for line in inside if (found := _OPERATION.search(line))}


def _find_called(lines: list[str]) -> list[str]:
    """Computations that these lines call."""
    names = []
    for line in lines:
        names += _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            names += [branch.strip(" %") for branch in branches.split(",")]
    return names


def _goes_on(name: str, lines: list[str]) -> bool:
    """Whether a computation only carries on a collective that another one began.

    TPU programs spread one over fusions: a start, steps beside arithmetic, an end.
    """
    if name.startswith("async_collective_fusion"):
        return True
    targets = {found[1] for line in lines if (found := _ASYNC.search(line))}
    return bool(targets) and "Start" not in targets


def _split(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines by computation, and the name of the one that is run."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found["name"]
            bodies[name] = []
            if line.startswith("ENTRY"):
                entry = name
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _count_turns(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs."""
    turns: dict[str, int] = collections.Counter()

    def visit(name: str, times: int) -> None:
        turns[name] += times
        for line in bodies.get(name, ()):
            trips = _count_trips(line, bodies) if " while(" in line else 1
            for callee in _find_called([line]):
                visit(callee, times * trips)

    visit(entry, 1)
    return turns


def _count_trips(line: str, bodies: dict[str, list[str]]) -> int:
    """How often a loop turns; 1 where its end is not known beforehand."""
    if told := _TRIPS.search(line):
        return int(told[1])
    found = _CONDITION.search(line)
    condition = "\n".join(bodies.get(found[1], ())) if found else ""
    constants = dict(_CONSTANT.findall(condition))
    compared = _BELOW.search(condition)
    return int(constants.get(compared[1], 1)) if compared else 1


def _measure(result: str) -> list[int]:
    """Bytes of each array in a result's type."""
    sizes = []
    for kind, shape in _SHAPE.findall(result):
        bits = _BITS.get(kind) or int(kind[1:])
        count = 1
        for length in filter(None, shape.split(",")):
            count *= int(length)
        sizes.append(count * bits // 8)
    return sizes
