"""The house rules, enforced: size, direction of imports, who writes files, who speaks SQL."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (ROOT / "qigstore", ROOT / "core" / "qigkernels")
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
EVERYTHING = sorted(
    [*SOURCES, *(p for d in ("tests", "benchmarks", "examples", "migrations")
                 for p in (ROOT / d).rglob("*.py"))]
)  # fmt: skip

# Lower may not import higher; rooms on one level do not know each other (run.py wires them).
LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "compiled"}),
    frozenset({"records", "encoding"}),
    frozenset({"settings"}),
    frozenset({"database"}),
    frozenset({"repository"}),
    frozenset({"recording", "safety", "checkpoints"}),
    frozenset({"recovery", "leftovers", "query"}),
    frozenset({"attempt", "exchange"}),
    frozenset({"link"}),
    frozenset({"rooms", "place"}),
    frozenset({"opening", "closing"}),
    frozenset({"run"}),
    frozenset({"server"}),
    frozenset({"cli", "demo", "integrations", "__main__", "__init__"}),
)
MAY_KNOW_EACH_OTHER = frozenset({"cli", "demo", "__main__", "__init__"})
BLIND_TO_THE_DATABASE = frozenset({"safety", "checkpoints"})
"""Rooms that receive callables and repositories, and import neither database nor repository."""

# `exchange/files.py` opens the one file that a user asked for by name, and nothing else.
WRITES_FILES = (
    "recording/spool/", "recording/event_log.py", "checkpoints/", "database/embedded",
    "exchange/files.py",
)  # fmt: skip
SPEAKS_SQL = ("repository/", "database/")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room_of(path: Path) -> str:
    inside = path.relative_to(ROOT / "qigstore")
    return inside.parts[0].removesuffix(".py")


def level_of(room: str) -> int:
    for level, rooms in enumerate(LEVELS):
        if room in rooms:
            return level
    pytest.fail(f"qigstore/{room} has no place in the direction of imports (tests/test_tidy.py)")


def imports_of(tree: ast.Module, *, at_run_time: bool = False) -> Iterator[tuple[int, str]]:
    hidden: set[ast.AST] = set()
    if at_run_time:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                hidden |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "qigstore":
                yield from ((node.lineno, f"qigstore.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500, "a file has at most 500 lines: find the two rooms in it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name} (line {node.lineno}) has {length} lines, 60 allowed"


def test_most_functions_are_short() -> None:
    lengths = sorted(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert lengths[int(0.9 * len(lengths))] <= 30, "nine functions in ten have at most 30 lines"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if (ROOT / "qigstore") in p.parents], ids=name_of
)
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    for line, module in imports_of(tree_of(path), at_run_time=True):
        if not module.startswith("qigstore.") or room == "__init__":
            continue
        other = module.split(".")[1]
        if other == room or (room in MAY_KNOW_EACH_OTHER and other in MAY_KNOW_EACH_OTHER):
            continue
        if other == "__version__":
            continue
        assert level_of(other) < level_of(room), (
            f"line {line}: {room} imports {other}; the direction is "
            + " → ".join("·".join(sorted(rooms)) for rooms in reversed(LEVELS))
        )
        if room in BLIND_TO_THE_DATABASE:
            assert other not in {"database", "repository"}, f"line {line}: {room} must not block"


def test_the_geometry_core_knows_nothing_above_it() -> None:
    for path in (ROOT / "core" / "qigkernels").rglob("*.py"):
        for line, module in imports_of(tree_of(path)):
            assert not module.startswith("qigstore"), f"{name_of(path)}:{line} imports {module}"


def _writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name.split(".")[-1] in {"write_text", "write_bytes", "mkstemp", "NamedTemporaryFile"}:
        return True
    if name == "os.open":
        return "O_WRONLY" in ast.unparse(call) or "O_RDWR" in ast.unparse(call)
    if name == "open" or name.endswith(".open"):
        modes = [a.value for a in [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
                 if isinstance(a, ast.Constant) and isinstance(a.value, str)]  # fmt: skip
        return any(re.fullmatch(r"[rwxab+t]{1,3}", m) and set(m) & set("wxa+") for m in modes)
    return False


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_spool_and_the_checkpoints_write_files(path: Path) -> None:
    inside = path.relative_to(path.parents[len(path.relative_to(ROOT).parts) - 2]).as_posix()
    inside = inside.removeprefix("qigstore/")
    if inside.startswith(WRITES_FILES) or inside.startswith("demo/"):
        return
    writing = [node.lineno for node in ast.walk(tree_of(path))
               if isinstance(node, ast.Call) and _writes(node)]  # fmt: skip
    assert not writing, f"lines {writing} write files; that is {', '.join(WRITES_FILES)}'s work"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_repository_and_the_database_speak_sql(path: Path) -> None:
    inside = path.relative_to(ROOT).as_posix().removeprefix("qigstore/")
    if inside.startswith(SPEAKS_SQL):
        return
    for line, module in imports_of(tree_of(path), at_run_time=True):
        assert module.split(".")[0] not in {"sqlalchemy", "psycopg", "alembic"}, f"line {line}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_swallowed_pickled_or_left_over(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            silent = all(isinstance(part, ast.Pass | ast.Continue) for part in node.body)
            assert not (broad and silent), f"line {node.lineno} swallows every exception"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            forbidden = names & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
            assert not forbidden, f"line {node.lineno}: {forbidden} can run code from a file"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "__main__.py"], ids=name_of)
def test_every_module_says_what_it_is_and_what_is_public(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), "a module says in its docstring what it owns"
    public = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    if not public:
        return
    names = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert names, "a module lists its public names in __all__"
    documented = {n.name: ast.get_docstring(n) for n in tree.body
                  if isinstance(n, ast.FunctionDef | ast.ClassDef)}  # fmt: skip
    missing = [name for name in names[0] if name in documented and not documented[name]]
    assert not missing, f"public and without a docstring: {missing}"


def test_the_error_tree_in_the_docstring_is_the_error_tree() -> None:
    from qigstore import errors

    drawn = set(re.findall(r"[├└]── (\w+)|^    (\w+) ", errors.__doc__ or "", re.MULTILINE))
    drawn_names = {name for pair in drawn for name in pair if name}
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert drawn_names | {"QigstoreError"} == defined == set(errors.__all__) - {"EXIT_EMERGENCY"}


def test_the_map_in_the_readme_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    for package in PACKAGES:
        for entry in sorted(package.iterdir()):
            if entry.name.startswith("_") or entry.suffix not in {"", ".py"}:
                continue
            shown = f"{entry.name}/" if entry.is_dir() else entry.name
            assert shown in readme, f"the README's map does not name {shown}"


def test_no_file_names_a_folder_of_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    machine = re.compile(r"(?<![\w.$}])/(?:work|root|home)/\w")
    found = [
        f"{name}:{number}"
        for name in filter(None, listed.stdout.split("\0"))
        if (path := ROOT / name).is_file() and path.suffix in {".py", ".md", ".toml", ".ini", ""}
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if machine.search(line)
    ]
    assert not found
