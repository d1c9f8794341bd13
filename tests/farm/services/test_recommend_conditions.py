"""What ran under other conditions, or on other prompts, is never averaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sample_farm import (
    DIGESTS,
    add_machine,
    measure,
    model,
    paired,
    queue_jobs,
    spec,
)
from sqlalchemy import Engine, update

from farm.domain.decoding import Speculation, SpeculationKind
from farm.domain.job import JobSpec
from farm.services.recommend import Recommendation, recommendations
from farm.store import jobs
from farm.store.database import reading, writing
from farm.store.schema import MachineRow


@pytest.fixture
def worker(database: Engine) -> jobs.Claimer:
    return add_machine(database)


def advice(engine: Engine) -> list[Recommendation]:
    with reading(engine) as session:
        return recommendations(session)


def measured(
    engine: Engine,
    worker: jobs.Claimer,
    ratio: float,
    wanted: JobSpec | None = None,
    under: dict[str, Any] | None = None,
) -> None:
    job = wanted or spec()
    queue_jobs(engine, [job], f"sweep of {job.key}")
    measure(engine, worker, paired((ratio,) * len(job.prompts)), under=under)


def estimates(found: Recommendation) -> list[float]:
    return [round(point.speedup.estimate, 6) for point in found.curve if point.speedup]


@pytest.mark.parametrize(
    "change",
    [
        {"cpu_governor": "powersave"},
        {"driver_version": "550.54"},
        {"power_source": "battery"},
        {"compiled": "AVX2 = 0"},
        {"parameters": {"command": ["llama-server", "-c", "4096"]}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_conditions_are_another_setup(
    database: Engine, worker: jobs.Claimer, change: dict[str, Any]
) -> None:
    measured(database, worker, 2.0, spec(label="a"), under={})
    measured(database, worker, 3.0, spec(label="b"), under=change)
    measured(database, worker, 2.0, spec(label="c"), under={})

    first, second = advice(database)

    assert (estimates(first), estimates(second)) == ([2.0], [3.0])
    assert (first.curve[0].jobs, second.curve[0].jobs) == ((1, 3), (2,))


def test_results_from_before_conditions_were_recorded_stay_by_themselves(
    database: Engine, worker: jobs.Claimer
) -> None:
    measured(database, worker, 2.0, spec(label="old"))
    measured(database, worker, 2.0, spec(label="also old"))
    measured(database, worker, 3.0, spec(label="new"), under={})

    old, new = advice(database)

    assert (old.setup.conditions, old.curve[0].jobs) == (None, (1, 2))
    assert new.setup.conditions is not None
    assert estimates(new) == [3.0]


def test_speculations_under_equal_conditions_are_one_curve(
    database: Engine, worker: jobs.Claimer
) -> None:
    for k in (2, 4):
        measured(database, worker, float(k), spec(k), under={})

    (found,) = advice(database)

    assert estimates(found) == [2.0, 4.0]


def test_other_drafts_and_kinds_share_conditions_but_no_curve(
    database: Engine, worker: jobs.Claimer
) -> None:
    lookup = Speculation(SpeculationKind.PROMPT_LOOKUP, 4)
    for wanted in (spec(), spec(draft=model("d")), spec(draft=None, speculation=lookup)):
        measured(database, worker, 2.0, wanted, under={})

    found = advice(database)

    assert len(found) == 3
    assert len({item.setup.conditions for item in found}) == 1


def test_other_prompts_of_one_category_are_another_setup(
    database: Engine, worker: jobs.Claimer
) -> None:
    for under in ({}, None):
        few = spec(prompts=DIGESTS[:3], label=str(under))
        measured(database, worker, 2.0, few, under=under)
        measured(database, worker, 3.0, spec(label=str(under)), under=under)

    found = advice(database)

    assert [(item.setup.prompt_count, estimates(item)) for item in found] == [
        (3, [2.0]),
        (3, [2.0]),
        (6, [3.0]),
        (6, [3.0]),
    ]


def test_hardware_is_what_it_was_when_it_was_measured(
    database: Engine, worker: jobs.Claimer
) -> None:
    measured(database, worker, 2.0, under={})
    other = add_machine(database, "bench-2")
    with writing(database) as session:
        session.execute(
            update(MachineRow)
            .where(MachineRow.name == "bench-1")
            .values(hardware_key=other.machine.hardware.key)
        )
    upgraded = replace(worker, machine=replace(other.machine, name="bench-1"))
    measured(database, upgraded, 3.0, spec(label="again"), under={})

    found = {item.setup.hardware: estimates(item) for item in advice(database)}

    assert found == {"CPU of bench-1, 8 cores": [2.0], "CPU of bench-2, 8 cores": [3.0]}
