from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from sample_farm import (
    DIGESTS,
    add_machine,
    claimed,
    contents,
    expire_leases,
    make_due,
    queue_jobs,
    sample,
    spec,
)
from sqlalchemy import Engine, select

from farm.domain.job import Arm
from farm.domain.measurement import Parity, Sample
from farm.store import jobs
from farm.store.arrays import unpack
from farm.store.database import reading, writing
from farm.store.results import add_late_samples, add_samples
from farm.store.schema import SampleRow

ARRAYS = ("output_ids", "accepted_per_position", "drafted_per_position")


def add(engine: Engine, held: jobs.Claim, *samples: Sample) -> bool:
    with writing(engine) as session:
        return add_samples(session, held, list(samples))


def stored(engine: Engine) -> list[SampleRow]:
    with reading(engine) as session:
        return list(session.scalars(select(SampleRow).order_by(SampleRow.id)))


def test_every_field_comes_back_as_it_was(database: Engine, held: jobs.Claim) -> None:
    given = sample(
        parity=Parity.NEAR_TIE,
        first_divergence=17,
        margin_logits=0.125,
        decode_ms=1234.5678901234567,
        peak_rss_bytes=70 * 2**30,
    )

    assert add(database, held, given)

    (row,) = stored(database)
    fields = {name: value for name, value in asdict(given).items() if name not in ARRAYS}
    assert {name: getattr(row, name) for name in fields} == fields
    assert unpack(row.arrays) == {name: getattr(given, name) for name in ARRAYS}
    assert (row.job_id, row.epoch) == (held.job_id, held.epoch)


def test_what_is_not_known_stays_unknown(database: Engine, held: jobs.Claim) -> None:
    add(database, held, sample(first_divergence=None, margin_logits=None))

    (row,) = stored(database)
    assert (row.first_divergence, row.margin_logits) == (None, None)


def test_writing_twice_changes_nothing(database: Engine, held: jobs.Claim) -> None:
    both = (sample(arm=Arm.BASELINE), sample(arm=Arm.SPECULATIVE))
    add(database, held, *both)
    before = contents(database)

    assert add(database, held, *both)
    assert add(database, held, *(replace(one, decode_ms=1.0) for one in both))

    assert contents(database) == before


def test_a_second_write_stores_what_the_first_did_not(database: Engine, held: jobs.Claim) -> None:
    add(database, held, sample(repeat=0))

    add(database, held, sample(repeat=0), sample(repeat=1), sample(DIGESTS[1]))

    assert [(row.prompt_digest, row.repeat) for row in stored(database)] == [
        (DIGESTS[0], 0),
        (DIGESTS[0], 1),
        (DIGESTS[1], 0),
    ]


def test_no_sample_is_no_error_and_still_asks_for_the_lease(
    database: Engine, held: jobs.Claim
) -> None:
    assert add(database, held)
    expire_leases(database)
    with writing(database) as session:
        jobs.reap(session)

    assert not add(database, held)
    assert stored(database) == []


def test_samples_of_a_lost_lease_are_refused(database: Engine, held: jobs.Claim) -> None:
    expire_leases(database)
    with writing(database) as session:
        jobs.reap(session)
    make_due(database)
    newer = claimed(database, add_machine(database, "bench-2"))

    assert not add(database, held, sample())
    assert add(database, newer, sample())

    assert [row.epoch for row in stored(database)] == [newer.epoch]


def test_late_samples_belong_to_their_own_attempt(database: Engine, held: jobs.Claim) -> None:
    expire_leases(database)
    with writing(database) as session:
        jobs.reap(session)
    make_due(database)
    newer = claimed(database, add_machine(database, "bench-2"))
    add(database, newer, sample(tok_s=50.0))

    for _ in range(2):
        with writing(database) as session:
            add_late_samples(session, held.job_id, held.epoch, [sample(tok_s=99.0)])

    speeds = {row.epoch: 100 / row.decode_ms * 1000 for row in stored(database)}
    assert speeds == {held.epoch: pytest.approx(99.0), newer.epoch: pytest.approx(50.0)}


def test_what_an_engine_does_not_report_is_not_stored_as_zero(database: Engine) -> None:
    queue_jobs(database, [spec()])
    held = claimed(database, add_machine(database))
    unreported = sample(
        rounds=None,
        draft_prompt_ms=None,
        draft_ms=None,
        verify_ms=None,
        peak_rss_bytes=None,
        drafted_per_position=None,
    )
    with writing(database) as session:
        add_samples(session, held, [unreported])

    with reading(database) as session:
        row = session.scalars(select(SampleRow)).one()
    assert (row.rounds, row.draft_ms, row.verify_ms, row.peak_rss_bytes) == (None,) * 4
    assert set(unpack(row.arrays)) == {"output_ids", "accepted_per_position"}
