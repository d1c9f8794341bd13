"""The Celery app. A message is a doorbell that carries a job's id; SQL owns the job.

Losing messages loses nothing: `farm.queue.doorbell` rings again for what SQL says is due.
"""

from __future__ import annotations

from celery import Celery

KEY_PREFIX = "specfarm:"

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
    """Point the app to a broker and return it. redis+socket URLs name a unix socket."""
    app.conf.broker_url = broker_url
    return app
