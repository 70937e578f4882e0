"""The plan of the house: namespaced imports, small files, and the size of the model."""

import ast
import re
from pathlib import Path

from nim4_jax.configs import stage4
from nim4_jax.model_files import loading
from nim4_jax.train import parameter_count

ROOT = Path(__file__).parents[1]
FOLDERS = ("nim4_jax", "configs", "data", "eval", "launch", "serving", "tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PARTS = {"configs", "data", "eval", "launch", "serving", "tests"}
GENERIC = {"utils.py", "helpers.py", "common.py", "misc.py"}


# Distributions that are imported under another name, and those that others import.
MODULES = {
    "absl-py": "absl",
    "etils[epath]": "etils",
    "ml-collections": "ml_collections",
    "orbax-checkpoint": "orbax",
    "tensorflow-datasets": "tensorflow_datasets",
}
INDIRECT = {
    "array-record": "tensorflow_datasets and grain read with it",
    "flatbuffers": "jax.export serialises with it, undeclared",
    "importlib-resources": "tensorflow_datasets imports it, undeclared",
}


def find_imports(path: Path) -> set[str]:
    """First parts of all absolute imports of a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def test_imports_are_namespaced():
    """`import data` would load a module a second time under another name."""
    wrong = {
        f"{path.relative_to(ROOT)}: {sorted(found)}"
        for path in FILES
        if (found := find_imports(path) & PARTS)
    }
    assert not wrong


def test_only_the_server_needs_what_it_is_made_of():
    """The extra `serve`: nothing else imports it, so that all else runs without."""
    extra = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client"}
    allowed = (ROOT / "serving" / "server", ROOT / "tests")
    others = (path for path in FILES if not any(map(path.is_relative_to, allowed)))
    assert [str(path) for path in others if find_imports(path) & extra] == []


def test_files_are_small_and_named():
    """At most 500 lines; a file is one noun, not a drawer."""
    long = {
        str(path.relative_to(ROOT)): count
        for path in FILES
        if (count := len(path.read_text(encoding="utf8").splitlines())) > 500
    }
    assert not long
    assert not [path for path in FILES if path.name in GENERIC]


def test_no_import_goes_up_and_none_in_a_circle(import_graph):
    """Each package imports what stands below it; text needs no JAX."""
    graph = import_graph.read_graph()
    assert import_graph.find_rising(graph) == []
    assert import_graph.find_circles(graph) == []
    for path in (ROOT / "nim4_jax" / "text").rglob("*.py"):
        assert not find_imports(path) & {"jax", "flax"}, path


def test_what_is_imported_is_there(import_graph):
    """Also inside functions, and of modules that need what is not installed."""
    assert import_graph.find_unknown(FILES) == []


def test_the_picture_of_imports_is_true(import_graph):
    """docs/imports.svg is what `python tests/import_graph.py` prints."""
    picture = (ROOT / "docs" / "imports.svg").read_text(encoding="utf8")
    assert import_graph.draw(import_graph.read_graph()) == picture


def _count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    docs = ast.get_docstring(function, clean=False)
    return function.end_lineno - function.lineno + 1 - len((docs or "").splitlines())


def _count_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    names = [arg.arg for arg in [*given.posonlyargs, *given.args, *given.kwonlyargs]]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_functions_are_short_and_take_little():
    """At most 60 lines and 7 parameters; more of either wants an object, or a cut."""
    product = (path for path in FILES if ROOT / "tests" not in path.parents)
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in product
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (_count_lines(node) > 60 or _count_parameters(node) > 7)
    ]
    assert wrong == []


def test_commands_are_thin():
    """launch/ parses flags, calls the library and prints: 120 lines a command."""
    lengths = {
        path.name: len(path.read_text(encoding="utf8").splitlines())
        for path in (ROOT / "launch").rglob("*.py")
    }
    assert {name for name, length in lengths.items() if length > 120} == set()


def test_the_full_model_counts_as_published():
    """`2b3` initialises abstractly with 2.2 to 2.4 billion parameters."""
    values = stage4.get_config("2b3").model.to_dict()
    counts = parameter_count.count_parts(
        parameter_count.trace_params(loading.build_model_config(values))
    )
    assert 2.2e9 <= sum(counts.values()) <= 2.4e9
    assert 0.55e9 < counts["encoder: blocks"] < 0.65e9
    assert all(counts.values())


def test_the_table_adds_up():
    """Markdown rows with shares and the sum."""
    table = parameter_count.format_table({"a": 4_000, "b": 6_000})
    assert "| a | 4,000 | 40.0 % |" in table and "**10,000**" in table


def test_what_is_required_is_used():
    """Every dependency of setup.py is imported by the product, or says by whom."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf8"))
    (required,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "REQUIRES"
    ]
    names = {re.split("[<>=,]", requirement)[0] for requirement in required}
    product = (path for path in FILES if ROOT / "tests" not in path.parents)
    imported = set().union(*map(find_imports, product))
    wanted = {MODULES.get(name, name): name for name in names - set(INDIRECT)}
    assert {name for module, name in wanted.items() if module not in imported} == set()


def test_every_module_says_what_it_is():
    """Its first line does; "TODO." says nothing."""
    product = (path for path in FILES if ROOT / "tests" not in path.parents)
    told = {
        str(path.relative_to(ROOT)): ast.get_docstring(ast.parse(path.read_bytes()))
        for path in product
        if path.stat().st_size
    }
    assert [name for name, text in told.items() if len(text or "TODO.") < 12] == []
