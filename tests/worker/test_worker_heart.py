"""Renewing a lease, and noticing that it is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import pytest
from small_farm import SmallFarm

from farm.store import jobs
from farm.store.jobs import Claim
from worker.heart import Heart

EVERY_S = 0.01
PATIENCE_S = 30.0


@pytest.fixture
def claim(small_farm: SmallFarm) -> Claim:
    """Return a leased job."""
    small_farm.submit(k=[2], categories=["chat"])
    return small_farm.claim()


def happens(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(EVERY_S)
    return True


def lease_end(farm: SmallFarm) -> float:
    return farm.jobs()[0].lease_expires_at or 0.0


def test_the_lease_is_renewed_again_and_again(small_farm: SmallFarm, claim: Claim):
    with Heart(small_farm.database, claim, EVERY_S) as heart:
        for _ in range(2):
            small_farm.sql("update job set lease_expires_at = 1.0")
            assert happens(lambda: lease_end(small_farm) > 1.0)
        assert not heart.lost.is_set()


def test_nothing_is_renewed_after_the_end(small_farm: SmallFarm, claim: Claim):
    with Heart(small_farm.database, claim, EVERY_S):
        pass
    small_farm.sql("update job set lease_expires_at = 1.0")

    time.sleep(5 * EVERY_S)

    assert lease_end(small_farm) == 1.0


@pytest.mark.parametrize(
    "taken",
    [
        "lease_epoch = lease_epoch + 1",
        "state = 'cancelled'",
        "state = 'queued', lease_expires_at = null",
    ],
)
def test_a_job_that_was_taken_away_is_lost_and_left_alone(
    small_farm: SmallFarm, claim: Claim, taken: str
):
    with Heart(small_farm.database, claim, EVERY_S) as heart:
        small_farm.sql(f"update job set {taken}")
        small_farm.sql("update job set lease_expires_at = 1.0")
        assert heart.lost.wait(PATIENCE_S)

    assert lease_end(small_farm) == 1.0


def test_a_database_that_is_away_for_less_than_a_lease_loses_nothing(
    small_farm: SmallFarm, claim: Claim
):
    with Heart(small_farm.database, claim, EVERY_S) as heart:
        with closing(small_farm.lock()) as other:
            other.execute("update job set lease_expires_at = 1.0")
            time.sleep(0.15)
            assert not heart.lost.is_set()
            other.execute("commit")
        assert happens(lambda: lease_end(small_farm) > 1.0)
        assert not heart.lost.is_set()


def test_a_database_that_is_away_for_a_whole_lease_loses_the_job(
    small_farm: SmallFarm, claim: Claim, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jobs, "LEASE_SECONDS", 0.05)

    with closing(small_farm.lock()), Heart(small_farm.database, claim, EVERY_S) as heart:
        assert heart.lost.wait(PATIENCE_S)
