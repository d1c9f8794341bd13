"""What happens to jobs and samples when the child, the worker, the lease or the database goes.

Faults come between two samples of a real run: the callback of `tapped` runs when the worker has
a sample in hand and has not stored it yet.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_farm import (
    PROMPTS,
    SAMPLES,
    TWO_CATEGORIES,
    SmallFarm,
    due_again,
    expect_whole,
    kill,
    tapped,
)

from farm.domain.job import Arm, JobState
from farm.services.recommend import recommendations
from farm.store.database import reading
from farm.store.queries import measured_samples
from worker import execute
from worker.engines.contract import BuildInfo
from worker.engines.in_process import InProcessEngine
from worker.engines.registry import ENGINES
from worker.heart import Heart
from worker.probe.environment import read_environment

pytestmark = pytest.mark.usefixtures("quick")


def test_a_killed_child_costs_an_attempt_and_the_next_one_succeeds(farm: SmallFarm):
    executor = farm.executor()

    with tapped(lambda engine, count: kill(engine) if count == 3 else None):
        assert executor.work_off() == 1
        assert farm.states() == [JobState.QUEUED]
        assert farm.jobs()[0].not_before > 0
        # The pause before the retry has not passed.
        assert executor.work_off() == 0
        due_again(farm)
        assert executor.work_off() == 1

    expect_whole(farm)
    first, second = farm.attempts()
    assert (first.outcome, first.error_kind) == ("failed", "out-of-memory")
    assert "llama" in (first.log_tail or "")
    assert (second.outcome, second.error_kind) == ("done", None)
    assert farm.jobs()[0].attempts == 2
    assert farm.jobs()[0].error_kind is None


def test_samples_of_a_failed_attempt_are_kept_and_not_used(farm: SmallFarm):
    executor = farm.executor()
    with tapped(lambda engine, count: kill(engine) if count == 3 else None):
        executor.work_off()
        due_again(farm)
        executor.work_off()
    kept = farm.samples(epoch=1)
    assert len(kept) >= 2
    with reading(farm.database) as session:
        before = recommendations(session)

    farm.sql("update sample set decode_ms = 1e9, parity = 'mismatch', drafted = 99 where epoch = 1")

    with reading(farm.database) as session:
        assert recommendations(session) == before
        assert len(measured_samples(session)[0]) == SAMPLES
    assert before[0].curve[0].prompts == PROMPTS
    assert before[0].curve[0].parity == {"exact": PROMPTS}


def test_a_child_that_always_dies_fails_the_job_for_good_after_three_attempts(farm: SmallFarm):
    executor = farm.executor()

    with tapped(lambda engine, _: kill(engine)):
        for _ in range(5):
            executor.work_off()
            due_again(farm)

    (job,) = farm.jobs()
    assert (job.state, job.attempts, job.error_kind) == (JobState.FAILED, 3, "out-of-memory")
    assert [attempt.outcome for attempt in farm.attempts()] == ["failed"] * 3


def test_a_child_that_dies_leaves_the_other_jobs_to_a_new_one(small_farm: SmallFarm):
    small_farm.submit(k=[2], categories=TWO_CATEGORIES)
    pids: list[int] = []

    def note(engine: InProcessEngine, count: int) -> None:
        pids.append(engine._child.pid)
        if count == 2:
            kill(engine)

    with tapped(note):
        assert small_farm.executor().work_off() == 2

    assert small_farm.states() == [JobState.QUEUED, JobState.DONE]
    expect_whole(small_farm, 2)
    assert len(set(pids)) == 2


def test_a_lease_that_was_taken_away_stops_the_work_and_every_write(farm: SmallFarm):
    at_loss: list[Any] = []
    pids: list[int] = []

    def take(engine: InProcessEngine, count: int) -> None:
        pids.append(engine._child.pid)
        if count == 3:
            farm.sql("update job set lease_epoch = lease_epoch + 1, lease_worker = 'another'")
            at_loss.extend(farm.everything())

    with tapped(take):
        farm.executor().work_off()

    assert len(pids) == 3
    assert farm.everything() == at_loss
    assert len(farm.samples()) == 2
    assert not psutil.pid_exists(pids[0])
    # What was in hand comes in late, under the attempt that measured it.
    farm.executor().work_off()
    assert [sample.epoch for sample in farm.samples()] == [1, 1, 1]


@pytest.mark.parametrize("last", [False, True])
def test_a_cancelled_job_stops(farm: SmallFarm, last: bool):
    seen: list[int] = []

    def cancel(_engine: InProcessEngine, count: int) -> None:
        seen.append(count)
        if count == (SAMPLES if last else 2):
            farm.sql("update job set state = 'cancelled', lease_expires_at = null")

    with tapped(cancel):
        farm.executor().work_off()

    assert farm.states() == [JobState.CANCELLED]
    assert seen[-1] == (SAMPLES if last else 2)
    assert farm.attempts()[0].outcome is None


def test_a_lease_lost_at_the_very_end_is_not_reported_as_done(
    farm: SmallFarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    calls: list[int] = []

    def read(**_: bool) -> Any:
        calls.append(1)
        if len(calls) == 2:
            farm.sql("update job set lease_epoch = lease_epoch + 1")
        return read_environment(0.01)

    monkeypatch.setattr(execute, "read_environment", read)

    with caplog.at_level("INFO"):
        farm.executor().work_off()

    assert len(calls) == 2
    assert farm.states() == [JobState.LEASED]
    assert farm.attempts()[0].outcome is None
    assert "done" not in caplog.text
    assert "its lease was lost" in caplog.text


class SilentEngine:
    """Loads, and then says nothing until it is ended."""

    name = "in-process"
    needs_files = True
    build = BuildInfo("5" * 64, "llama-cpp-python==0", "")
    isolation = "none: nothing runs"

    def __init__(self, soon_after_start: Callable[[], None]) -> None:
        self._soon_after_start = soon_after_start
        self.ticks = 0
        self.ended = False

    def load(self, *_: Any) -> SilentEngine:
        """Return itself."""
        return self

    def run(self, *_: Any) -> Iterator[None]:
        """Give no sample, as a child does in a long prompt."""
        for self.ticks in range(3000):
            if self.ticks == 3:
                self._soon_after_start()
            yield None
            time.sleep(0.01)

    def parameters(self, _spec: Any) -> dict[Arm, dict[str, Any]]:
        """Return none."""
        return {arm: {} for arm in Arm}

    def log_tail(self) -> str:
        """Return nothing."""
        return ""

    def end(self) -> None:
        """Note the end."""
        self.ended = True


def test_the_heart_stops_a_silent_run_whose_lease_is_lost(
    farm: SmallFarm, monkeypatch: pytest.MonkeyPatch
):
    engine = SilentEngine(lambda: farm.sql("update job set lease_epoch = lease_epoch + 1"))
    monkeypatch.setitem(ENGINES, "in-process", engine)
    monkeypatch.setattr(execute, "Heart", partial(Heart, every_s=0.02))

    farm.executor().work_off()

    assert engine.ended
    assert 3 <= engine.ticks < 2999
    assert farm.attempts()[0].outcome is None


def test_a_stopped_worker_gives_its_job_back_unharmed(farm: SmallFarm):
    executor = farm.executor()
    pids: list[int] = []

    def stop(engine: InProcessEngine, count: int) -> None:
        pids.append(engine._child.pid)
        if count == 3:
            executor.stop()

    with tapped(stop):
        assert executor.work_off() == 1

    (job,) = farm.jobs()
    assert (job.state, job.attempts, job.lease_expires_at) == (JobState.QUEUED, 0, None)
    assert farm.attempts()[0].outcome == "released"
    assert not psutil.pid_exists(pids[0])
    assert executor.work_off() == 0
    assert executor.wait_stopped(0)
    # Another worker goes on at once, with all attempts ahead of it.
    assert farm.executor().work_off() == 1
    expect_whole(farm)
    assert farm.jobs()[0].attempts == 1


def test_a_worker_claims_nothing_more_once_it_was_asked_to_stop(small_farm: SmallFarm):
    small_farm.submit(k=[2], categories=TWO_CATEGORIES)
    executor = small_farm.executor()

    with tapped(lambda _engine, count: executor.stop() if count == SAMPLES else None):
        assert executor.work_off() == 1

    assert small_farm.states() == [JobState.QUEUED] * 2
    assert len(small_farm.attempts()) == 1


def test_a_worker_that_dies_leaves_its_samples_and_its_job_to_the_next_one(farm: SmallFarm):
    class Died(BaseException):
        """Not an Exception: nothing in the worker handles its own death."""

    locks: list[sqlite3.Connection] = []

    def die(_engine: InProcessEngine, count: int) -> None:
        if count == 2:
            locks.append(farm.lock())
        if count == 4:
            raise Died

    with tapped(die), pytest.raises(Died):
        farm.executor().work_off()
    locks.pop().close()
    assert farm.states() == [JobState.LEASED]
    assert len(farm.samples()) == 1
    (file,) = farm.spooled
    file.write_text(file.read_text() + '{"prompt_digest": "cut sho')

    # Its lease has not run out: the samples come in, the job is still its own.
    assert farm.executor().work_off() == 0
    assert [sample.epoch for sample in farm.samples()] == [1, 1, 1]
    farm.sql("update job set lease_expires_at = 1.0")
    assert farm.executor().work_off() == 0
    due_again(farm)
    assert farm.executor().work_off() == 1

    expect_whole(farm)
    assert len(farm.samples(epoch=1)) == 3
    assert [attempt.error_kind for attempt in farm.attempts()] == ["lease-lost", None]


def test_two_calls_at_once_work_off_once(farm: SmallFarm):
    executor = farm.executor()
    inner: list[int] = []

    with tapped(lambda _engine, _count: inner.append(executor.work_off())):
        assert executor.work_off() == 1

    assert inner == [0] * SAMPLES
    expect_whole(farm)


def test_a_second_worker_of_the_machine_does_not_measure_beside_the_first(small_farm: SmallFarm):
    small_farm.submit(k=[2], categories=TWO_CATEGORIES)
    inner: list[int] = []

    def look(_engine: InProcessEngine, count: int) -> None:
        if count == 1:
            inner.append(small_farm.executor().work_off())

    with tapped(look):
        assert small_farm.executor().work_off() == 2

    assert inner == [0]
    expect_whole(small_farm, 1)
    expect_whole(small_farm, 2)


def test_the_log_of_each_attempt_is_a_file_of_its_own(farm: SmallFarm):
    executor = farm.executor()
    with tapped(lambda engine, count: kill(engine) if count == 1 else None):
        executor.work_off()
        due_again(farm)
        executor.work_off()

    logs = sorted(path.name for path in Path(farm.folder / "home" / "logs").iterdir())
    assert logs == ["job-1-1.log", "job-1-2.log"]
