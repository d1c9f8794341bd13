"""What happens to samples when the database is away, at every moment of a job."""

from __future__ import annotations

import sqlite3
import time
from types import SimpleNamespace
from typing import Any

import pytest
from small_farm import (
    SAMPLES,
    TWO_CATEGORIES,
    SmallFarm,
    expect_whole,
    kill,
    tapped,
)

from worker import spool
from worker.engines.in_process import InProcessEngine

pytestmark = pytest.mark.usefixtures("quick")


def test_a_database_that_is_away_in_the_middle_of_a_job_loses_no_sample(farm: SmallFarm):
    locks: list[sqlite3.Connection] = []
    stored: list[int] = []

    def go_away(_engine: InProcessEngine, count: int) -> None:
        stored.append(len(farm.samples()))
        if count == 2:
            locks.append(farm.lock())
        if count == 5:
            locks.pop().close()

    with tapped(go_away):
        assert farm.executor().work_off() == 1

    assert stored == [0, 1, 1, 1, 1, 5]
    expect_whole(farm)
    assert len(farm.attempts()) == 1


def test_a_database_that_is_away_at_the_end_of_a_job_is_waited_for(
    farm: SmallFarm, monkeypatch: pytest.MonkeyPatch
):
    locks: list[sqlite3.Connection] = []
    tries: list[float] = []

    def wait(pause_s: float) -> None:
        tries.append(pause_s)
        if len(tries) == 3:
            locks.pop().close()

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=wait)
    monkeypatch.setattr(spool, "time", clock)

    with tapped(lambda _, count: locks.append(farm.lock()) if count == SAMPLES else None):
        assert farm.executor().work_off() == 1

    assert len(tries) == 3
    expect_whole(farm)


def test_samples_that_wait_when_their_job_fails_do_not_join_the_next_job(
    small_farm: SmallFarm, monkeypatch: pytest.MonkeyPatch
):
    small_farm.submit(k=[2], categories=TWO_CATEGORIES)
    locks: list[sqlite3.Connection] = []

    def fault(engine: InProcessEngine, count: int) -> None:
        if count == 2:
            locks.append(small_farm.lock())
        if count == 4:
            kill(engine)

    # The database comes back just in time for the failure to be recorded.
    executor = small_farm.executor()
    fail = executor._fail

    def come_back_and_fail(*args: Any) -> None:
        locks.pop().close()
        fail(*args)

    monkeypatch.setattr(executor, "_fail", come_back_and_fail)
    with tapped(fault):
        assert executor.work_off() == 2

    expect_whole(small_farm, 2)
    assert len(small_farm.samples(job_id=2)) == SAMPLES
    assert len(small_farm.samples(job_id=1)) == 1
    executor.work_off()
    assert len(small_farm.samples(job_id=1, epoch=1)) == 4


def test_a_database_that_is_away_when_work_is_sought_is_no_crash(farm: SmallFarm):
    other = farm.lock()

    assert farm.executor().work_off() == 0

    other.close()
    assert farm.executor().work_off() == 1
