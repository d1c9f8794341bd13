"""farm doctor: is everything here that a farm needs?"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata

import psutil
import typer
from rich.table import Table

from farm import paths
from farm.cli.session import FarmSession, JsonOption, open_session, out, print_json
from farm.domain.hardware import GIB
from farm.errors import InfrastructureError, SpecfarmError
from farm.queue.doorbell import require_broker
from worker import isolation
from worker.probe.hardware import probe_hardware

LITTLE_DISK_BYTES = 2 * GIB


@dataclass(frozen=True)
class Finding:
    """One check: `note` says what was found, or what to do."""

    check: str
    ok: bool
    note: str


def doctor(as_json: JsonOption = False) -> None:
    """Check Python, llama.cpp, broker, database, disk, hardware; exit 3 if any is amiss."""
    session = open_session()
    checks: list[tuple[str, Callable[[FarmSession], str]]] = [
        ("python", _python),
        ("llama.cpp", _llama),
        ("broker", _broker),
        ("database", _database),
        ("disk", _disk),
        ("machine", _machine),
        ("isolation", _isolation),
    ]
    findings = [_check(name, look, session) for name, look in checks]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table(show_header=False)
        for finding in findings:
            table.add_row(
                finding.check, "[green]ok[/]" if finding.ok else "[red]amiss[/]", finding.note
            )
        out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(InfrastructureError.exit_code)


def _check(name: str, look: Callable[[FarmSession], str], session: FarmSession) -> Finding:
    try:
        return Finding(name, True, look(session))
    except SpecfarmError as error:
        return Finding(name, False, str(error))


def _python(_session: FarmSession) -> str:
    return f"{sys.version.split()[0]} at {sys.executable}"


def _llama(_session: FarmSession) -> str:
    try:
        return f"llama-cpp-python {metadata.version('llama-cpp-python')}"
    except metadata.PackageNotFoundError:
        raise InfrastructureError(
            "llama-cpp-python is not installed; 'make setup' compiles it, or: python -m "
            "farm.builds.wheel."
        ) from None


def _broker(session: FarmSession) -> str:
    if session.embedded and not session.embedded.answers():
        raise InfrastructureError("The embedded broker is not running; 'farm up' starts it.")
    require_broker(session.celery())
    return "embedded, on a private socket" if session.embedded else "answers"


def _database(session: FarmSession) -> str:
    return session.database().url.render_as_string(hide_password=True)


def _disk(_session: FarmSession) -> str:
    home = paths.home()
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if free < LITTLE_DISK_BYTES:
        raise InfrastructureError(f"{home} has {free / GIB:.1f} GiB left; free some, or move it.")
    return f"{free / GIB:.0f} GiB free at {home}"


def _machine(_session: FarmSession) -> str:
    hardware = probe_hardware()
    free = psutil.virtual_memory().available
    total = hardware.memory_bytes
    return f"{hardware.kind.value}: {hardware.label}, {total / GIB:.0f} GiB ({free / GIB:.0f} free)"


def _isolation(_session: FarmSession) -> str:
    return f"bench children run under: {isolation.describe()}"
