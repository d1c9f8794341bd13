from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator

import pytest
import redis
from celery import Celery
from sample_farm import add_machine, claimed, contents, expire_leases, job, queue_jobs, spec
from sqlalchemy import Engine, update

from farm.domain.job import JobState
from farm.errors import InfrastructureError, UserError
from farm.queue.app import KEY_PREFIX, connect
from farm.queue.doorbell import BELLS_PER_QUEUE, require_broker, ring_due
from farm.queue.embedded import EmbeddedBroker
from farm.queue.routing import queue_of
from farm.store.database import writing
from farm.store.schema import JobRow

UNREACHABLE = ["redis+socket:///nowhere/broker.sock", "redis://127.0.0.1:1/0"]
QUEUES = ("any", "kind.cpu", "name.bench-1")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """Return a running broker."""
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def server(broker: EmbeddedBroker) -> redis.Redis:
    """Return a client of the broker, which holds nothing."""
    client = redis.Redis(unix_socket_path=str(broker.socket))
    client.flushall()
    return client


@pytest.fixture
def app(broker: EmbeddedBroker, server: redis.Redis) -> Celery:
    return connect(broker.url)


def bells(server: redis.Redis) -> dict[str, list[int]]:
    """Return the job ids that rang, by queue."""
    return {
        queue: sorted(
            json.loads(base64.b64decode(json.loads(message)["body"]))[0][0]
            for message in server.lrange(f"{KEY_PREFIX}{queue}", 0, -1)
        )
        for queue in QUEUES
    }


class TestRingDue:
    def test_rings_in_the_queue_of_each_selector(
        self, database: Engine, app: Celery, server: redis.Redis
    ) -> None:
        ids = queue_jobs(
            database,
            [
                spec(2),
                spec(4, machine="kind:cpu"),
                spec(8, machine="name:bench-1"),
                spec(16),
            ],
        )

        assert ring_due(database, app) == 4

        assert bells(server) == {
            "any": [ids[0], ids[3]],
            "kind.cpu": [ids[1]],
            "name.bench-1": [ids[2]],
        }

    def test_rings_no_second_time_soon(
        self, database: Engine, app: Celery, server: redis.Redis
    ) -> None:
        queue_jobs(database, [spec()])
        ring_due(database, app)

        assert ring_due(database, app) == 0

        assert Counter(map(len, bells(server).values())) == {0: 2, 1: 1}

    def test_has_nothing_to_do_for_a_job_that_runs(
        self, database: Engine, app: Celery, server: redis.Redis
    ) -> None:
        queue_jobs(database, [spec()])
        claimed(database, add_machine(database))

        assert ring_due(database, app) == 0

    def test_takes_back_lost_jobs_first(self, database: Engine, app: Celery) -> None:
        (job_id,) = queue_jobs(database, [spec()])
        claimed(database, add_machine(database))
        expire_leases(database)

        ring_due(database, app)

        assert job(database, job_id).state == JobState.QUEUED

    def test_a_long_queue_is_no_reason_to_ring_for_each_job(
        self, database: Engine, app: Celery, server: redis.Redis
    ) -> None:
        # A worker that wakes works off everything; a bell per job, again every minute while one
        # machine is busy for hours, would fill the broker's memory.
        queue_jobs(database, [spec(label=str(n)) for n in range(300)])

        rang = ring_due(database, app)

        assert 0 < rang <= BELLS_PER_QUEUE
        assert len(bells(server)["any"]) == rang
        assert ring_due(database, app) == 0


class TestUnreachable:
    @pytest.mark.parametrize("url", UNREACHABLE, ids=["socket", "port"])
    def test_leaves_jobs_due_and_unrung(self, database: Engine, url: str) -> None:
        queue_jobs(database, [spec(2), spec(4)])
        before = contents(database)

        with pytest.raises(InfrastructureError) as caught:
            ring_due(database, connect(url))

        assert contents(database) == before
        message = str(caught.value)
        assert "farm up" in message
        assert "FARM_BROKER_URL" in message
        assert "safe in the database" in message

    def test_the_bells_ring_once_the_broker_is_back(
        self, database: Engine, broker: EmbeddedBroker, server: redis.Redis
    ) -> None:
        ids = queue_jobs(database, [spec(2), spec(4)])
        with pytest.raises(InfrastructureError):
            ring_due(database, connect(UNREACHABLE[0]))

        assert ring_due(database, connect(broker.url)) == 2

        assert bells(server)["any"] == ids

    def test_still_takes_back_lost_jobs(self, database: Engine) -> None:
        (job_id,) = queue_jobs(database, [spec()])
        claimed(database, add_machine(database))
        with writing(database) as session:
            session.execute(update(JobRow).values(lease_expires_at=1.0, attempts=0))
        queue_jobs(database, [spec(8)], "due")

        with pytest.raises(InfrastructureError):
            ring_due(database, connect(UNREACHABLE[0]))

        assert job(database, job_id).state == JobState.QUEUED

    def test_nothing_due_needs_no_broker(self, database: Engine) -> None:
        assert ring_due(database, connect(UNREACHABLE[0])) == 0


class TestRequireBroker:
    def test_is_content_with_one_that_answers(self, app: Celery) -> None:
        require_broker(app)

    @pytest.mark.parametrize("url", UNREACHABLE, ids=["socket", "port"])
    def test_says_what_to_do_without_one(self, url: str) -> None:
        with pytest.raises(InfrastructureError, match=r"'farm up' or check FARM_BROKER_URL"):
            require_broker(connect(url))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis",
        "carrier-pigeon://loft",
        "amqp://user:secret@host",
        "redis://",
        "redis://:secret@host:port/0",
        "redis://host/name",
        "redis://[::1",
        "redis+socket://",
    ],
)
def test_what_is_no_address_of_a_redis_server_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"redis://host:6379/0.*FARM_BROKER_URL") as caught:
        connect(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://host", "rediss://:secret@host:6380/3", "redis://[::1]:6379/", UNREACHABLE[0]]
)
def test_the_addresses_of_redis_servers_are_taken(url: str) -> None:
    assert connect(url).conf.broker_url == url


def test_a_celery_farm_beside_this_one_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery itself puts CELERY_BROKER_URL before any address in its settings."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere:6379/0")
    app = connect("redis://here:6379/0")
    assert app.connection_for_write().hostname == "here"
    assert app.connection_for_read().hostname == "here"


@pytest.mark.parametrize(
    ("selector", "queue"),
    [("any", "any"), ("kind:nvidia", "kind.nvidia"), ("name:bench-1.lan", "name.bench-1.lan")],
)
def test_a_queue_is_called_like_its_selector(selector: str, queue: str) -> None:
    assert queue_of(selector) == queue
