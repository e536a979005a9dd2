"""The rooms of the house: what may know what. CONTRIBUTING.md shows the table."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1]
PACKAGE = SOURCE / "rc_tasks"
ROOMS = (
    "errors",
    "util",
    "squashfs",
    "model",
    "tools",
    "state",
    "steps",
    "engine",
    "views",
    "commands",
)
# Rooms that stand side by side: neither knows the other.
APART = {"tools": {"model"}}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def room(module: str) -> str | None:
    """The room of `rc_tasks.state.store`, or None for what is not ours."""
    parts = module.split(".")
    return parts[1] if parts[0] == "rc_tasks" and len(parts) > 1 else None


def inner_room(module: str) -> str:
    """The inner room of a module, such as `rc_tasks.state.store`; a module beside inner rooms is one."""
    return ".".join(module.split(".")[:3])


def imports(path: Path) -> set[str]:
    """Every module that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is meant"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_knows_only_the_rooms_above_it(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if here == "__init__":
        assert not imports(path)
        return
    allowed = {*ROOMS[: ROOMS.index(here) + 1]} - APART.get(here, set())
    used = {other for name in imports(path) if (other := room(name)) is not None}
    assert used <= allowed, f"{here} must not know {sorted(used - allowed)}"


def test_inner_rooms_know_one_another_one_way() -> None:
    names = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in MODULES}
    knows: dict[str, set[str]] = {}
    for name, path in names.items():
        if path.name != "__init__.py":
            others = {inner_room(other) for other in imports(path) if other in names}
            knows.setdefault(inner_room(name), set()).update(others - {inner_room(name)})
    # Raises CycleError, which names the rooms.
    TopologicalSorter(knows).prepare()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_outside_libraries_stay_in_their_rooms(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").as_posix()
    outside = {name.split(".")[0] for name in imports(path)}
    if here != "tools/command":
        assert not outside & {"subprocess", "multiprocessing"}, "only tools/command starts processes"
    assert "dataclasses" not in outside, "a Struct of msgspec is defined in a fortieth of the time"
    if not here.startswith(("engine/", "commands/")):
        assert "doit" not in outside
    if not here.startswith(("commands/", "views/")) and here != "engine/progress/live":
        assert "rich" not in outside


# The store names its files by their content, a log or a new project has no lock, what is taken away is
# no older content over newer, and podman's images are in the memory of one node.
RENAMES = {
    "state/disk/files",
    "state/disk/locks",
    "state/logs",
    "state/store/store",
    "state/store/layers",
    "state/store/garbage",
    "commands/new",
    "tools/additional_store",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_lock_guards_is_renamed_by_one_function(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").as_posix()
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)}
    found = named & {"os.rename", "os.replace", "os.link"}
    if here == "state/store/previous":
        # `remove` takes an entry away.
        found.discard("os.rename")
    assert here in RENAMES or not found, "use put_in_place or link of state/disk/files.py"


def test_contributing_shows_these_rooms() -> None:
    table = [
        line for line in (SOURCE / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| `")
    ]
    shown = [line.split("`")[1].removesuffix(".py").removesuffix("/") for line in table]
    assert [name for name in shown if name in ROOMS] == list(ROOMS)
    for name, line in zip(shown, table, strict=True):
        inner = {path.parent.name for path in PACKAGE.glob(f"{name}/*/__init__.py")}
        assert all(f"`{each}/`" in line for each in inner), name


def test_every_module_says_what_it_is_for() -> None:
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_links_in_the_documents_lead_somewhere() -> None:
    import re

    for document in [*SOURCE.glob("*.md"), *SOURCE.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_a_bench_needs_no_package_of_the_tests() -> None:
    """`./bootstrap.sh setup` is enough to measure."""
    without = "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None"
    benches = sorted(f"tests.bench.{path.stem}" for path in (SOURCE / "tests/bench").glob("*.py"))
    argv = (sys.executable, "-c", f"{without}; import {', '.join(benches)}")
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
