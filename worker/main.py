"""The worker process: a Celery consumer that supervises benchmark children."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_shutting_down
from sqlalchemy import Engine

from farm.domain.hardware import Machine
from farm.errors import InfrastructureError
from farm.queue import tasks
from farm.queue.doorbell import ring_due
from farm.queue.routing import queue_of
from worker.execute import Executor
from worker.register import register

KEEPER_SECONDS = 15.0

log = logging.getLogger(__name__)


def serve(
    app: Celery,
    database: Engine,
    machine: Machine,
    home: Path,
    models_folder: Path | None,
    job_timeout_s: float,
) -> None:
    """Register the machine and consume its queues until SIGTERM or SIGINT.

    A running job is given back when the worker stops. One supervising thread is enough: the
    measuring happens in a child, one at a time.
    """
    claimer = register(database, machine)
    executor = Executor(database, claimer, home, models_folder, job_timeout_s)
    tasks.on_wake(executor.work_off)
    # Celery waits for running tasks before it ends; this one ends within a second.
    worker_shutting_down.connect(lambda **_: executor.stop(), weak=False)
    keeper = threading.Thread(
        target=_keep, args=(app, database, machine, executor), name="keeper", daemon=True
    )
    keeper.start()
    worker: Any = app.Worker(
        queues=[queue_of(selector) for selector in claimer.selectors],
        pool="threads",
        concurrency=1,
        hostname=f"{machine.name}-{os.getpid()}@specfarm",
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()


def _keep(app: Celery, database: Engine, machine: Machine, executor: Executor) -> None:
    """Now and then: say that the machine is here, take back lost jobs, ring for due ones.

    Without a broker there is no bell to hear, so the keeper looks for work itself.
    """
    while True:
        try:
            executor.offer(register(database, machine))
            ring_due(database, app)
        except InfrastructureError as error:
            log.warning("%s", error)
            executor.work_off()
        except Exception:
            log.exception("the keeper failed; it goes on")
        if executor.wait_stopped(KEEPER_SECONDS):
            return
