from __future__ import annotations

import json
from typing import Any

import pytest
from sample_farm import DIGESTS, add_machine, claimed, measure, paired, queue_jobs, spec
from sqlalchemy import Engine

from farm.domain.decoding import Settings
from farm.errors import UserError
from farm.services.job_results import JobResult, compare, job_result
from farm.store import jobs
from farm.store.database import reading, writing


def result(engine: Engine, job_id: int) -> JobResult:
    with reading(engine) as session:
        return job_result(session, job_id)


def test_a_result_has_what_its_successful_attempt_recorded(database: Engine) -> None:
    queue_jobs(database, [spec(), spec(8)])
    worker = add_machine(database)
    lost = claimed(database, worker)
    with writing(database) as session:
        jobs.describe_attempt(session, lost, environment_before={"load_1min": 99.0})
        jobs.release(session, lost, "The worker was stopped.")
    measure(database, worker, paired((2.0,) * 6), under={"kernel": "6.9.0"})

    found = result(database, 1)

    assert found.attempt.provenance is not None
    assert found.attempt.provenance.conditions.kernel == "6.9.0"
    assert found.readings["before"]["load_1min"] == 0.5
    assert found.point.jobs == (1,)
    assert json.loads(json.dumps(found.to_payload()))["conditions"]
    with pytest.raises(UserError, match="Job 2 is queued"):
        result(database, 2)
    with pytest.raises(UserError, match="There is no job 3"):
        result(database, 3)


@pytest.mark.parametrize(
    ("under", "comparable", "differing"),
    [
        ({}, True, set()),
        ({"power_source": "battery"}, False, {"power_source"}),
        (None, None, set()),
        # Two engines' parameters have no names in common.
        (
            {"engine": "llama-server", "parameters": {"n_ctx": 7}},
            False,
            {"engine"},
        ),
    ],
    ids=["equal", "other", "unknown", "engine"],
)
def test_results_compare_under_equal_conditions(
    database: Engine, under: dict[str, Any] | None, comparable: bool | None, differing: set[str]
) -> None:
    queue_jobs(database, [spec(), spec(label="b")])
    worker = add_machine(database)
    measure(database, worker, paired((2.0,) * 6), under={})
    measure(database, worker, paired((3.0,) * 6), under=under)

    found = compare(result(database, 1), result(database, 2))

    assert found.comparable is comparable
    assert set(found.conditions) == differing
    assert found.asked == {"label": ("", "b")}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"depth_tokens": 256}, {"depth_tokens": 512}),
        ({"chat_template": "off"}, {"chat_template": "on"}),
    ],
    ids=["depth", "chat template"],
)
def test_results_on_other_text_do_not_compare(
    database: Engine, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """One filler serves every depth, and a template is written around equal prompts."""
    queue_jobs(
        database,
        [spec(settings=Settings(**said), depth_text=DIGESTS[0]) for said in (one, other)],
    )
    worker = add_machine(database)
    for _ in range(2):
        measure(database, worker, paired((2.0,) * 6), under={})

    found = compare(result(database, 1), result(database, 2))

    assert found.comparable is False
    assert set(found.conditions) == {"prompts"}
