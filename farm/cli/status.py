"""farm status, cancel: how far sweeps are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from sqlalchemy import Engine

from farm.cli.session import (
    FarmSession,
    JsonOption,
    err,
    is_interactive,
    open_session,
    out,
    print_json,
)
from farm.domain.job import JobState
from farm.errors import UserError
from farm.services.status import SweepStatus, sweep_status, sweep_statuses
from farm.store import jobs
from farm.store.database import reading, writing
from farm.store.queries import job_summaries

POLL_SECONDS = 1.0

SweepArgument = Annotated[int | None, typer.Argument(help="A sweep's number; all when left out.")]


def status(
    sweep: SweepArgument = None,
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay until it is finished.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how far sweeps are, what failed and why, and what nobody can run."""
    session = open_session()
    if watch_it:
        watch(session, sweep)
    statuses = _statuses(session.database(), sweep)
    if as_json:
        print_json([vars(found) for found in statuses])
        return
    if not statuses:
        out.print("No sweep was submitted yet; 'farm submit FILE' does.")
    for found in statuses:
        out.print(_line(found))
        for text in found.remarks:
            out.print(f"  {escape(text)}")


def cancel(sweep: Annotated[int, typer.Argument(help="A sweep's number.")]) -> None:
    """Cancel what a sweep has not finished. Results so far stay."""
    out.print(f"sweep {sweep}: {cancel_rest(open_session(), sweep)} jobs cancelled")


def cancel_rest(session: FarmSession, sweep: int) -> int:
    """Cancel a sweep's unfinished jobs; return how many. Raises UserError on an unknown sweep."""
    database = session.database()
    with reading(database) as reader:
        ids = [job.id for job in job_summaries(reader, sweep)]
    if not ids:
        raise UserError(f"There is no sweep {sweep}; 'farm status' lists them.")
    with writing(database) as writer:
        return jobs.cancel(writer, ids)


def watch(
    session: FarmSession, sweep: int | None, each_poll: Callable[[], None] = lambda: None
) -> None:
    """Show progress until every job is final, live on a terminal, else a line per change.

    each_poll may raise to stop a wait that would never end. The database is opened once: looking
    costs next to nothing on the machine that may be measuring.
    """
    database = session.database()
    if is_interactive():
        with Live(console=err, refresh_per_second=4) as live:
            while not _finished(statuses := _statuses(database, sweep)):
                live.update(_bars(statuses))
                each_poll()
                time.sleep(POLL_SECONDS)
            live.update(_bars(statuses))
        return
    last = ""
    while True:
        statuses = _statuses(database, sweep)
        line = "; ".join(_line(found) for found in statuses)
        if line != last:
            err.print(line)
            last = line
        if _finished(statuses):
            return
        each_poll()
        time.sleep(POLL_SECONDS)


def _statuses(database: Engine, sweep: int | None) -> list[SweepStatus]:
    with reading(database) as reader:
        if sweep is None:
            return sweep_statuses(reader)
        found = sweep_status(reader, sweep)
    if found is None:
        raise UserError(f"There is no sweep {sweep}; 'farm status' lists them.")
    return [found]


def _finished(statuses: list[SweepStatus]) -> bool:
    return all(found.finished == found.total for found in statuses)


def _line(found: SweepStatus) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.states.items()))
    return f"sweep {found.id} '{escape(found.name)}': {found.finished}/{found.total} ({states})"


def _bars(statuses: list[SweepStatus]) -> Any:
    grid = Table.grid(padding=(0, 1))
    for found in statuses:
        bar = ProgressBar(total=found.total, completed=found.finished, width=30)
        failed = found.states.get(JobState.FAILED, 0)
        trouble = f"[red]{failed} failed[/]" if failed else ""
        now = escape(found.running) if found.running else ""
        grid.add_row(f"sweep {found.id}", bar, f"{found.finished}/{found.total}", trouble, now)
    return grid
