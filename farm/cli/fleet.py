"""farm up, down, worker: the processes of a farm."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from farm.cli.session import FarmSession, err, open_session
from farm.domain.hardware import Machine
from farm.queue.doorbell import require_broker, ring_due
from farm.services.processes import Background
from farm.store.database import open_database
from farm.store.migrate import upgrade
from worker.main import serve
from worker.probe.hardware import probe_hardware


def up(
    with_worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Also start a worker on this machine.")
    ] = True,
) -> None:
    """Start this host's farm: database, embedded broker and a worker, in the background."""
    session = open_session()
    start(session, with_worker=with_worker)
    err.print("The farm is up. Submit a sweep with 'farm submit FILE'; stop it with 'farm down'.")


def down() -> None:
    """Stop what 'farm up' started. Running jobs are given back and go on at the next start."""
    stop(open_session())
    err.print("The farm is down; its results stay.")


def worker() -> None:
    """Run a worker in the foreground: measure what this machine can, until Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("worker").setLevel(logging.INFO)
    session = open_session()
    database = session.database()
    app = session.celery()
    require_broker(app)
    machine = Machine(session.settings.machine_name, probe_hardware())
    err.print(f"worker on {machine.name}: {machine.hardware.label}")
    serve(
        app,
        database,
        machine,
        session.home,
        session.settings.models_folder,
        session.settings.job_timeout_s,
    )


def start(session: FarmSession, *, with_worker: bool) -> None:
    """Migrate the database, start the embedded broker and a worker, and ring for waiting jobs."""
    database = open_database(session.settings.database_url)
    before, after = upgrade(database)
    if before != after:
        err.print(f"database: migrated to {after}")
    if session.embedded and session.embedded.start():
        err.print("broker: started")
    app = session.celery()
    require_broker(app)
    if with_worker and Background(session.home, "worker").start(["worker"]):
        err.print("worker: started")
    ring_due(database, app)


def stop(session: FarmSession) -> None:
    """Stop the worker, then the embedded broker."""
    if Background(session.home, "worker").stop():
        err.print("worker: stopped")
    if session.embedded and session.embedded.stop():
        err.print("broker: stopped")
