"""The rooms: who may import whom, who prints, who writes rows, and how long a file may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("farm", "worker", "dashboard")
MAX_LINES = 400

# What a room may import beside the standard library.
ONLY = {
    "farm.domain": {"farm.domain"},
    "farm.science": {"farm.domain", "farm.science", "numpy", "scipy"},
    "worker.bench": {"worker.bench", "numpy", "llama_cpp"},
    "worker.confine": {"worker.confine"},
}
OUTSIDE = {"worker", "dashboard"}
NEVER = {
    "farm.gguf": {"farm.store", "farm.services", "farm.queue", "farm.cli", "sqlalchemy", *OUTSIDE},
    "farm.store": {"farm.services", "farm.queue", "farm.cli", "farm.report", *OUTSIDE},
    "farm.endpoints": {"farm.store", "farm.services", "farm.queue", "farm.cli", *OUTSIDE},
    "farm.builds": {"farm.store", "farm.services", "farm.queue", "farm.cli", *OUTSIDE},
    "farm.queue": {"farm.services", "farm.cli", "farm.report", *OUTSIDE},
    "farm.services": {"farm.cli", "farm.report", *OUTSIDE},
    "farm.report": {"farm.cli", "farm.queue", "sqlalchemy", *OUTSIDE},
    "worker": {"farm.services", "farm.cli", "farm.report", "dashboard"},
    "dashboard": {"farm.cli", "farm.queue", "worker"},
}
# The only places that import a library.
HOME_OF = {
    "celery": {"farm.queue", "farm.cli.session", "worker.main"},
    "kombu": {"farm.queue"},
    "redis": {"farm.queue"},
    "streamlit": {"dashboard"},
    "llama_cpp": {"worker.bench"},
    "alembic": {"farm.store"},
    "typer": {"farm.cli"},
}
# Everyone else asks the store. These three insert rows of their own and may become fewer.
WRITERS = {"farm.services.submit", "worker.register", "worker.execute"}
# Modules that are run themselves, beside the command line.
PROGRAMS = {
    "farm.builds.compile",
    "farm.builds.source",
    "farm.builds.wheel",
    "worker.probe.nvml_reader",
    "worker.bench.__main__",
}


def modules() -> dict[str, Path]:
    """Return every module of the rooms by its dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    }


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> Iterator[str]:
    """Yield what a module imports, also inside functions; `from a import b` gives `a.b`."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def lies_in(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def members(room: str) -> list[str]:
    found = [name for name in MODULES if lies_in(name, {room})]
    assert found, f"there is no {room}"
    return found


def test_every_room_is_read() -> None:
    assert len(MODULES) > 50
    assert {name.split(".")[0] for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("room", ONLY)
def test_a_pure_room_imports_nothing_else(room: str) -> None:
    strangers = {
        f"{name} imports {wanted}"
        for name in members(room)
        for wanted in imports(name)
        if not lies_in(wanted, ONLY[room] | sys.stdlib_module_names)
    }

    assert strangers == set()


def test_science_sees_no_clock_no_chance_and_no_log() -> None:
    strangers = {
        f"{name} imports {wanted}"
        for name in members("farm.science")
        for wanted in imports(name)
        if lies_in(wanted, {"time", "datetime", "random", "logging", "os", "numpy.random"})
    }

    assert strangers == set()


@pytest.mark.parametrize("room", NEVER)
def test_imports_point_down(room: str) -> None:
    upwards = {
        f"{name} imports {wanted}"
        for name in members(room)
        for wanted in imports(name)
        if lies_in(wanted, NEVER[room])
    }

    assert upwards == set()


@pytest.mark.parametrize("library", HOME_OF)
def test_a_library_stays_in_its_room(library: str) -> None:
    strangers = {
        name
        for name in MODULES
        if any(lies_in(wanted, {library}) for wanted in imports(name))
        and not lies_in(name, HOME_OF[library])
    }

    assert strangers == set()


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    graph = {
        name: {
            other
            for wanted in imports(name)
            for other in (wanted, wanted.rpartition(".")[0])
            if other in MODULES and other != name
        }
        for name in MODULES
    }

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_only_the_store_writes_rows() -> None:
    writers = {
        name
        for name in MODULES
        if not lies_in(name, {"farm.store"})
        and any(
            lies_in(wanted, {"farm.store.schema"})
            or wanted in ("sqlalchemy.insert", "sqlalchemy.update", "sqlalchemy.delete")
            for wanted in imports(name)
        )
    }

    assert writers <= WRITERS


def test_the_dashboard_only_reads() -> None:
    writing = {
        name
        for name in members("dashboard")
        for wanted in imports(name)
        if lies_in(wanted, {"farm.store.database.writing", "farm.store.jobs", "farm.store.results"})
    }

    assert writing == set()


def test_only_commands_print_and_exit() -> None:
    talkers = {
        f"{name} in line {node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "sys.exit", "exit", "quit")
        and not lies_in(name, {"farm.cli", *PROGRAMS})
    }

    assert talkers == set()


def test_no_file_holds_a_second_idea() -> None:
    files = [
        path
        for room in (*ROOMS, "migrations", "scripts", "tests")
        for path in sorted((ROOT / room).rglob("*.py"))
    ]
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in files
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }

    assert long == {}
