"""The Celery app. A message is a doorbell that carries a job's id; SQL owns the job.

Losing messages loses nothing: `farm.queue.doorbell` rings again for what SQL says is due.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from celery import Celery

from farm.errors import UserError

KEY_PREFIX = "specfarm:"
CELERY_VARIABLES = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")

app = Celery("specfarm", include=["farm.queue.tasks"])
app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    # Acknowledged on receipt: Redis would hand a late acknowledgement's long job out twice.
    task_acks_late=False,
    worker_disable_prefetch=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_pool_acquire_timeout=30,
    broker_transport_options={
        "global_keyprefix": KEY_PREFIX,
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    },
    task_default_queue="any",
    task_create_missing_queues=True,
)


def connect(broker_url: str) -> Celery:
    """Point the app to a broker and return it. redis+socket URLs name a unix socket.

    Raises UserError for what is no address of a Redis-compatible server.
    """
    if not _is_redis(broker_url):
        raise UserError(
            "The broker's address is none of a Redis server; use redis://host:6379/0 or "
            "redis+socket:///path in FARM_BROKER_URL."
        )
    # Celery would put these before the address it is given here.
    for variable in CELERY_VARIABLES:
        os.environ.pop(variable, None)
    app.conf.broker_url = broker_url
    return app


def _is_redis(broker_url: str) -> bool:
    try:
        parts = urlsplit(broker_url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return False
    if parts.scheme == "redis+socket":
        return bool(parts.path)
    database = parts.path.strip("/") or "0"
    return parts.scheme in ("redis", "rediss") and bool(host) and database.isdecimal()
