"""farm demo: the whole path once, on a calibration pair, in a minute or so."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from farm import paths
from farm.cli import fleet
from farm.cli.recommend import print_recommendations
from farm.cli.session import FarmSession, err, hashing_bar, open_session, out, plan_with_progress
from farm.cli.status import cancel_rest, watch
from farm.errors import BenchmarkError, InfrastructureError
from farm.gguf.calibration import make_pair
from farm.queue.doorbell import ring_due
from farm.report.bundle import write_report
from farm.services.processes import Background
from farm.services.recommend import recommendations
from farm.services.status import sweep_status
from farm.services.submit import submit as store_plan
from farm.store.database import reading
from farm.store.queries import machine_summaries


def demo(
    report: Annotated[Path, typer.Option(help="Folder for the report.", file_okay=False)] = Path(
        "reports/demo"
    ),
    shape: Annotated[
        str, typer.Option(help="The pair's shape; 'farm calibrate shapes' lists them.")
    ] = "demo",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to decode with; else the machine's own.")
    ] = None,
) -> None:
    """Run everything once: broker, database, worker, a sweep over a calibration pair, advice.

    The pair's next-token law is known, so that the demo needs no download; it costs what a small
    model costs and is no language model. What the demo started is stopped at the end.
    """
    session = open_session()
    worker_ran = Background(session.home, "worker").pid is not None
    broker_ran = session.embedded is None or session.embedded.answers()
    sweep_id = None
    try:
        fleet.start(session, with_worker=True)
        sweep_id = _submit(session, _write_sweep(session, shape, threads))
        err.print(f"measuring with llama.cpp; the worker's log is {session.home / 'worker.log'}")
        watch(session, sweep_id, lambda: _require_worker(session))
        _show(session, sweep_id, report)
    finally:
        if sweep_id is not None:
            # Interrupted, nothing of the demo should run at the next start.
            cancel_rest(session, sweep_id)
        if not worker_ran and Background(session.home, "worker").stop():
            err.print("worker: stopped")
        if not broker_ran and session.embedded and session.embedded.stop():
            err.print("broker: stopped")


def _write_sweep(session: FarmSession, shape: str, threads: int | None) -> Path:
    err.print("pair: making a calibration pair (random weights around a known next-token law)")
    with hashing_bar() as advance:
        folder = paths.cache() / "calibration"
        target, draft = make_pair(
            shape, "f16", folder, progress=lambda done, total: advance(folder, done, total)
        )
    template = Template((paths.resource("configs") / "sweeps" / "demo.yaml").read_text())
    label = time.strftime("%Y-%m-%d %H:%M:%S")
    sweep = session.home / "demo.yaml"
    sweep.write_text(
        template.substitute(
            target=_quoted(target),
            draft=_quoted(draft),
            label=_quoted(label),
            threads=threads or "null",
        )
    )
    return sweep


def _quoted(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _submit(session: FarmSession, sweep: Path) -> int:
    database = session.database()
    submission = store_plan(database, plan_with_progress(sweep))
    err.print(f"sweep {submission.sweep_id}: {submission.total} jobs from {sweep}")
    ring_due(database, session.celery())
    return submission.sweep_id


def _require_worker(session: FarmSession) -> None:
    worker = Background(session.home, "worker")
    if worker.pid is None:
        raise InfrastructureError(f"The worker ended; {worker.log} says why.")


def _show(session: FarmSession, sweep_id: int, report: Path) -> None:
    with reading(session.database()) as reader:
        found = recommendations(reader, sweep_id)
        status = sweep_status(reader, sweep_id)
        machines = machine_summaries(reader)
    print_recommendations(found)
    for remark in status.remarks if status else ():
        err.print(remark)
    if not found:
        raise BenchmarkError("failed", "No job of the demo could be measured; see above.")
    markdown, html = write_report(
        report,
        found,
        title="specfarm demo",
        generated_at=datetime.now().astimezone(),
        machines=machines,
    )
    out.print(f"report:    {markdown} and {html}")
    out.print("dashboard: make dashboard   (or: .venv/bin/farm dashboard)")
    out.print("your own:  farm submit --example > sweep.yaml")
