"""Ringing for due jobs, and taking back jobs whose worker is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import Engine

from farm.errors import InfrastructureError
from farm.queue.routing import queue_of
from farm.queue.tasks import WAKE
from farm.store import jobs
from farm.store.database import reading, writing

# Whoever wakes works off every due job, so a queue needs a bell per idle machine, not per job:
# thousands of jobs would ring again every minute of the hours that they wait.
BELLS_PER_QUEUE = 32
RETRY_PAUSE_S = 0.2


def ring_due(engine: Engine, app: Celery) -> int:
    """Reap expired leases, then ring for due jobs not rung for lately; return how often.

    Any number of processes may do this at once: a bell too many finds nothing to do. Raises
    InfrastructureError where the broker can't be reached; the jobs stay due in SQL.
    """
    with writing(engine) as session:
        jobs.reap(session)
    with reading(engine) as session:
        due = jobs.unrung(session)
    if not due:
        return 0
    bells: Counter[str] = Counter()
    safe = " The jobs are safe in the database and will run once it is back."
    with _connected(app, safe) as connection, app.amqp.Producer(connection) as producer:
        for job_id, selector in due:
            if bells[selector] < BELLS_PER_QUEUE:
                bells[selector] += 1
                app.send_task(
                    WAKE, (job_id,), queue=queue_of(selector), producer=producer, retry=False
                )
    with writing(engine) as session:
        jobs.mark_rung(session, [job_id for job_id, _ in due])
    return bells.total()


def require_broker(app: Celery) -> None:
    """Raise InfrastructureError unless the broker answers."""
    with _connected(app):
        pass


@contextmanager
def _connected(app: Celery, consequence: str = "") -> Iterator[Any]:
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=RETRY_PAUSE_S, timeout=5)
            yield connection
    except (OperationalError, RedisError, OSError) as error:
        raise InfrastructureError(
            f"The broker can't be reached ({error}); start it with 'farm up' or check "
            f"FARM_BROKER_URL.{consequence}"
        ) from None
