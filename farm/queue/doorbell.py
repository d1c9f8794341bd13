"""Ringing for due jobs, and taking back jobs whose worker is gone."""

from __future__ import annotations

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import Engine

from farm.errors import InfrastructureError
from farm.queue.routing import queue_of
from farm.queue.tasks import WAKE
from farm.store import jobs
from farm.store.database import reading, writing


def ring_due(engine: Engine, app: Celery) -> int:
    """Reap expired leases, then ring for every due job not rung lately; return how many rang.

    Any number of processes may do this at once: a bell too many finds nothing to do. Raises
    InfrastructureError where the broker can't be reached; the jobs stay due in SQL.
    """
    with writing(engine) as session:
        jobs.reap(session)
    with reading(engine) as session:
        due = jobs.unrung(session)
    if not due:
        return 0
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
            with app.amqp.Producer(connection) as producer:
                for job_id, selector in due:
                    app.send_task(
                        WAKE, (job_id,), queue=queue_of(selector), producer=producer, retry=False
                    )
    except (OperationalError, RedisError, OSError) as error:
        raise InfrastructureError(
            f"The broker can't be reached ({error}); start it with 'farm up' or check "
            "FARM_BROKER_URL. The jobs are safe in the database and will run once it is back."
        ) from None
    with writing(engine) as session:
        jobs.mark_rung(session, [job_id for job_id, _ in due])
    return len(due)


def require_broker(app: Celery) -> None:
    """Raise InfrastructureError unless the broker answers."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except (OperationalError, RedisError, OSError) as error:
        raise InfrastructureError(
            f"The broker can't be reached ({error}); start it with 'farm up' or check "
            "FARM_BROKER_URL."
        ) from None
