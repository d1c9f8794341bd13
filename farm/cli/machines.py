"""farm machines: who measures."""

from __future__ import annotations

import time
from dataclasses import asdict

from rich.table import Table

from farm.cli.session import JsonOption, open_session, out, print_json
from farm.domain.hardware import GIB
from farm.store.database import reading
from farm.store.queries import machine_summaries


def machines(as_json: JsonOption = False) -> None:
    """List the registered machines, what they are and what they can run."""
    with reading(open_session().database()) as session:
        found = machine_summaries(session)
    if as_json:
        print_json([asdict(machine) for machine in found])
        return
    if not found:
        out.print("No machine is registered yet; 'farm up' or 'farm worker' registers this one.")
        return
    table = Table()
    for column in ("machine", "kind", "hardware", "memory", "builds", "seen"):
        table.add_column(column)
    for machine in found:
        table.add_row(
            machine.name,
            machine.kind,
            machine.hardware,
            f"{machine.facts['memory_bytes'] / GIB:.0f} GiB",
            ", ".join(machine.builds) or "none",
            _ago(time.time() - machine.last_seen_at),
        )
    out.print(table)


def _ago(seconds: float) -> str:
    if seconds < 60:
        return "now"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago"
