"""Which package imports which: the floors of the house, and their picture.

python tests/import_graph.py      the picture in Mermaid, as docs/architecture.md has it
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH, ROW = 760, 46  # px
PARTS = ("configs", "data", "eval", "launch", "serving")
FLOORS = (
    ("configs", "line_file", "process", "rates", "settings", "struct", "whole_file"),
    ("accelerators", "types"),
    ("sharding",),
    ("text",),
    ("ops",),
    ("features", "layers"),
    ("context", "retrieval"),
    ("data",),
    ("models",),
    ("weights",),
    ("decode",),
    ("train",),
    ("rl",),
    ("model_files",),
    ("serving",),
    ("runs",),
    ("aot",),
    ("eval",),
    ("launch",),
)
"""Packages and top modules of `nim4_jax`: each imports what stands before it, and its
own floor's never."""

LEVELS = {name: level for level, names in enumerate(FLOORS) for name in names}


def name_module(path: Path) -> str:
    """Dotted name of a file, without the package's own."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    inner = parts if parts[0] in PARTS else parts[1:]
    return ".".join(inner[:-1] if inner[-1] == "__init__" else inner)


def find_modules() -> dict[str, Path]:
    """Module → its file, of the product."""
    folders = [ROOT / name for name in ("nim4_jax", *PARTS)]
    files = (path for folder in folders for path in folder.rglob("*.py"))
    return {name_module(path): path for path in files}


def find_imports(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Modules of the product that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            wanted.append(node.module)
        else:
            continue
        for name in wanted:
            package, _, inner = name.partition(".")
            if package == "nim4_jax" and inner in modules:
                yield inner


def read_graph() -> dict[str, set[str]]:
    """Module → modules that it imports."""
    modules = find_modules()
    return {
        name: set(find_imports(path, modules)) - {name, ""}
        for name, path in modules.items()
    }


def find_names(path: Path) -> set[str]:
    """What a module defines or imports at its top."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def find_unknown(paths: Iterable[Path]) -> list[str]:
    """Names that files import from the product, wherever they do, and that are gone.

    Imports of peers that few installations have are run by no test.
    """
    modules, unknown = find_modules(), []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
                continue
            package, _, inner = node.module.partition(".")
            if package != "nim4_jax" or not inner:
                continue
            known = find_names(modules[inner]) if inner in modules else set()
            unknown += [
                f"{path.relative_to(ROOT)}: {node.module}.{alias.name}"
                for alias in node.names
                if alias.name not in known and f"{inner}.{alias.name}" not in modules
            ]
    return unknown


def find_package(module: str) -> str:
    """The floor's entry that a module belongs to."""
    return module.partition(".")[0]


def find_rising(graph: dict[str, set[str]]) -> list[str]:
    """Imports of a package that does not stand before one's own."""
    return [
        f"{module} → {other}"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if module
        and find_package(module) != find_package(other)
        and LEVELS[find_package(other)] >= LEVELS[find_package(module)]
    ]


def find_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, however far around."""
    left = {module: set(others) for module, others in graph.items()}
    # Modules without imports, and without importers, are in no circle.
    while True:
        used = {other for others in left.values() for other in others}
        ends = {m for m, others in left.items() if not others or m not in used}
        if not ends:
            return [sorted(left)] if left else []
        left = {m: others - ends for m, others in left.items() if m not in ends}


def reduce(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Package → packages that it imports, but for those that another one implies."""
    edges: dict[str, set[str]] = {name: set() for name in LEVELS}
    for module, others in graph.items():
        if module:
            edges[find_package(module)] |= {find_package(other) for other in others}
    reach: dict[str, set[str]] = {}
    reduced = {}
    for name in LEVELS:  # from the lowest floor to the highest
        below = edges[name] - {name}
        implied = set().union(*(reach[other] for other in below))
        reach[name], reduced[name] = below | implied, below - implied
    return reduced


def place(names: tuple[str, ...], level: int) -> dict[str, tuple[float, float]]:
    """Package → middle of its box, px: a row a floor, the highest on top."""
    step = WIDTH / len(names)
    height = ROW * (len(FLOORS) - level - 0.5)
    # Rows of one are set apart in turn, so that arrows do not run through boxes.
    aside = (level % 3 - 1) * 150 if len(names) == 1 else 0
    return {
        name: (step * (number + 0.5) + aside, height)
        for number, name in enumerate(names)
    }


def draw(graph: dict[str, set[str]]) -> str:
    """SVG: a box for each package, an arrow for each import that no other implies.

    The lowest floor, which anyone imports, is left out.
    """
    places = {}
    for level, names in enumerate(FLOORS[1:], 1):
        places |= place(names, level)
    size = f'width="{WIDTH}" height="{ROW * (len(FLOORS) - 1)}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" '
        'font-size="13" text-anchor="middle">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<g fill="none" stroke="#8a97a8">',
    ]
    reduced = reduce(graph)
    for name, (x, y) in places.items():
        for other in sorted(reduced[name] & places.keys()):
            to, end = places[other]
            bend = (end - y) / 2
            lines.append(
                f'<path d="M{x:.0f} {y + 12:.0f}C{x:.0f} {y + bend:.0f} {to:.0f} '
                f'{end - bend:.0f} {to:.0f} {end - 12:.0f}"/>'
            )
    lines.append("</g>")
    for name, (x, y) in places.items():
        half = 5 + 4 * len(name)
        lines += [
            f'<rect x="{x - half:.0f}" y="{y - 12:.0f}" width="{2 * half}" height="24" '
            'rx="4" fill="#e8eef7" stroke="#1f4e79"/>',
            f'<text x="{x:.0f}" y="{y + 4:.0f}" fill="#12263a">{name}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    print(draw(read_graph()), end="")
