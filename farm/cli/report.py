"""farm report: the recommendations as files to read and to send on."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from farm.cli.recommend import SweepOption, measured
from farm.cli.session import open_session, out
from farm.report.bundle import write_report
from farm.store.database import reading
from farm.store.queries import machine_summaries


def report(
    folder: Annotated[Path, typer.Argument(help="Where to write.", file_okay=False)] = Path(
        "reports"
    ),
    sweep: SweepOption = None,
) -> None:
    """Write the recommendations as report.md and report.html."""
    found = measured(sweep)
    with reading(open_session().database()) as session:
        machines = machine_summaries(session)
    for file in write_report(
        folder,
        found.recommendations,
        title="specfarm report",
        generated_at=datetime.now().astimezone(),
        machines=machines,
        what_ifs=found.what_ifs,
    ):
        out.print(str(file))
