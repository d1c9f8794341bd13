"""Samples on disk until SQL has them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from small_farm import TWO_CATEGORIES, SmallFarm

from farm.domain.job import Arm
from farm.domain.measurement import Parity, Sample
from farm.errors import InfrastructureError
from farm.store.arrays import unpack
from farm.store.jobs import Claim
from worker import spool as spool_module
from worker.spool import Spool


@pytest.fixture
def farm(small_farm: SmallFarm) -> SmallFarm:
    """Return a farm with two jobs of other prompts."""
    small_farm.submit(k=[2], categories=TWO_CATEGORIES)
    return small_farm


@pytest.fixture
def folder(farm: SmallFarm) -> Path:
    """Return the spool's folder."""
    return farm.folder / "home" / "spool"


def sample_of(claim: Claim, prompt: int = 0, arm: Arm = Arm.SPECULATIVE) -> Sample:
    return Sample(
        prompt_digest=claim.spec.prompts[prompt],
        repeat=0,
        arm=arm,
        prompt_tokens=5,
        generated_tokens=3,
        prompt_ms=1.5,
        draft_prompt_ms=0.5,
        decode_ms=2.5,
        draft_ms=1.0,
        verify_ms=1.25,
        rounds=2,
        drafted=4,
        accepted=1,
        accepted_per_position=(1, 0),
        drafted_per_position=(2, 2),
        output_ids=(260, 261, 262),
        output_digest="f" * 64,
        peak_rss_bytes=2**40,
        parity=Parity.NEAR_TIE,
        first_divergence=2,
        margin_logits=0.125,
    )


def test_a_flushed_sample_is_in_sql_and_still_on_disk_until_the_job_is_over(
    farm: SmallFarm, folder: Path
):
    claim, spool = farm.claim(), Spool(folder)
    spool.keep(claim, sample_of(claim))

    assert spool.flush(farm.database, claim, patience_s=0)

    assert len(farm.samples(job_id=claim.job_id)) == len(farm.spooled) == 1
    spool.forget(claim)
    assert farm.spooled == []


def test_a_sample_comes_out_of_the_spool_as_it_went_in(farm: SmallFarm, folder: Path):
    claim = farm.claim()
    Spool(folder).keep(claim, sample_of(claim))

    Spool(folder).replay(farm.database)

    (row,) = farm.samples()
    sent = sample_of(claim)
    for name in ("prompt_digest", "arm", "decode_ms", "peak_rss_bytes", "margin_logits", "parity"):
        assert getattr(row, name) == getattr(sent, name)
    assert unpack(row.arrays) == {
        "output_ids": sent.output_ids,
        "accepted_per_position": sent.accepted_per_position,
        "drafted_per_position": sent.drafted_per_position,
    }


def test_what_a_crash_left_is_stored_once(farm: SmallFarm, folder: Path):
    claim, spool = farm.claim(), Spool(folder)
    for prompt in range(3):
        spool.keep(claim, sample_of(claim, prompt))
        if prompt == 0:
            spool.flush(farm.database, claim, patience_s=0)

    Spool(folder).replay(farm.database)
    Spool(folder).replay(farm.database)

    assert len(farm.samples(job_id=claim.job_id, epoch=claim.epoch)) == 3
    assert farm.spooled == []


@pytest.mark.parametrize("cut_at", [1, 40, -1])
def test_a_last_line_that_was_cut_is_ignored(farm: SmallFarm, folder: Path, cut_at: int):
    claim, spool = farm.claim(), Spool(folder)
    spool.keep(claim, sample_of(claim, 0))
    spool.keep(claim, sample_of(claim, 1))
    (file,) = farm.spooled
    whole, last = file.read_text().splitlines()
    file.write_text(f"{whole}\n{last[:cut_at]}")

    Spool(folder).replay(farm.database)

    assert [row.prompt_digest for row in farm.samples()] == [claim.spec.prompts[0]]


def test_a_database_that_is_away_keeps_samples_waiting(farm: SmallFarm, folder: Path):
    claim, spool = farm.claim(), Spool(folder)
    other = farm.lock()
    for prompt in range(2):
        spool.keep(claim, sample_of(claim, prompt))
        assert spool.flush(farm.database, claim, patience_s=0)
    assert farm.samples() == []
    other.close()

    spool.keep(claim, sample_of(claim, 2))
    assert spool.flush(farm.database, claim, patience_s=0)

    assert [row.prompt_digest for row in farm.samples()] == list(claim.spec.prompts)


def test_patience_ends_with_the_databases_own_error(
    farm: SmallFarm, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spool_module, "RETRY_PAUSE_S", 0.01)
    claim, spool = farm.claim(), Spool(folder)
    spool.keep(claim, sample_of(claim))
    other = farm.lock()

    with pytest.raises(InfrastructureError, match="locked"):
        spool.flush(farm.database, claim, patience_s=0.05)

    other.close()
    assert spool.flush(farm.database, claim, patience_s=0.05)
    assert len(farm.samples()) == 1


def test_a_lost_lease_stores_nothing(farm: SmallFarm, folder: Path):
    claim, spool = farm.claim(), Spool(folder)
    farm.sql("update job set lease_epoch = lease_epoch + 1")
    spool.keep(claim, sample_of(claim))

    assert not spool.flush(farm.database, claim, patience_s=0)

    assert farm.samples() == []


def test_samples_that_wait_are_never_stored_under_the_next_job(farm: SmallFarm, folder: Path):
    first, spool = farm.claim(), Spool(folder)
    spool.keep(first, sample_of(first))
    farm.sql(f"update job set state = 'failed' where id = {first.job_id}")
    second = farm.claim()

    assert spool.flush(farm.database, second, patience_s=0)
    spool.keep(second, sample_of(second))
    assert spool.flush(farm.database, second, patience_s=0)

    (row,) = farm.samples()
    assert (row.job_id, row.prompt_digest) == (second.job_id, second.spec.prompts[0])
    Spool(folder).replay(farm.database)
    (late,) = farm.samples(job_id=first.job_id)
    assert late.prompt_digest == first.spec.prompts[0]


def test_late_samples_belong_to_the_attempt_that_made_them(farm: SmallFarm, folder: Path):
    claim = farm.claim()
    Spool(folder).keep(claim, sample_of(claim))
    farm.sql(f"update job set state = 'queued' where id = {claim.job_id}")
    later = farm.claim()
    assert (later.job_id, later.epoch) == (claim.job_id, claim.epoch + 1)

    Spool(folder).replay(farm.database)

    assert [row.epoch for row in farm.samples()] == [claim.epoch]


def test_a_spool_of_another_database_is_set_aside_and_stops_nothing(
    farm: SmallFarm, folder: Path, caplog: pytest.LogCaptureFixture
):
    claim, spool = farm.claim(), Spool(folder)
    spool.keep(claim, sample_of(claim))
    farm.sql("delete from attempt")
    farm.sql("delete from sweep_job")
    farm.sql("delete from job")

    with caplog.at_level(logging.WARNING):
        Spool(folder).replay(farm.database)

    assert farm.samples() == farm.spooled == []
    assert len(list(folder.iterdir())) == 1
    assert "another database" in caplog.text


def test_a_job_of_the_same_number_in_another_database_gets_no_foreign_samples(
    farm: SmallFarm, folder: Path
):
    claim = farm.claim()
    Spool(folder).keep(claim, sample_of(claim))
    farm.sql(f"update job set key = 'another' where id = {claim.job_id}")

    Spool(folder).replay(farm.database)

    assert farm.samples() == farm.spooled == []


def test_an_empty_home_has_nothing_to_replay(farm: SmallFarm, folder: Path):
    Spool(folder).replay(farm.database)

    assert farm.samples() == []
