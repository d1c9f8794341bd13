from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from sample_farm import add_machine, measure, model, paired, plan, queue_jobs, sample, spec
from sqlalchemy import Engine

from farm.domain.decoding import Settings, WhatIf
from farm.domain.hardware import GIB, Gpu, MachineKind
from farm.domain.job import Arm, JobSpec
from farm.gguf.header import read_header
from farm.services.forecast import ARMS, PROMPT_SHARE, WARM_UP_SHARE, Forecast, forecast
from farm.services.plan import Plan

OVERHEAD = ARMS * PROMPT_SHARE * WARM_UP_SHARE


def url(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


def not_needed() -> float:
    raise AssertionError("the bandwidth was measured though every speed is known")


@pytest.fixture
def header_plan(pair: tuple[Path, Path]) -> Plan:
    """Return a plan of one job whose target has a real header."""
    made = plan([spec()])
    header = read_header(pair[0])
    return replace(
        made, models={key: replace(one, header=header) for key, one in made.models.items()}
    )


def plan_needing(need_bytes: int, specs: Iterable[JobSpec]) -> Plan:
    made = plan(specs)
    return replace(made, need_bytes=dict.fromkeys(made.need_bytes, need_bytes))


class TestTime:
    def test_rests_on_speeds_measured_before(self, database: Engine) -> None:
        queue_jobs(database, [spec(2)], "earlier")
        measure(database, add_machine(database), paired([2.0] * 6, tok_s=50))

        found = forecast(plan([spec(4)]), url(database), not_needed)

        assert found.new_jobs == 1
        assert found.seconds == pytest.approx(6 * 32 / 50 * OVERHEAD)
        assert found.basis == "from speeds measured before"

    def test_says_what_a_depth_adds(self, database: Engine) -> None:
        queue_jobs(database, [spec(2)], "earlier")
        measure(database, add_machine(database), paired([2.0] * 6, tok_s=50))
        deep = replace(spec(4), settings=Settings(depth_tokens=4096), depth_text="0" * 64)

        found = forecast(plan([spec(2), deep]), url(database), not_needed)

        assert found.basis.endswith(
            "reading up to 4096 tokens of depth before each run comes on top"
        )

    def test_takes_the_plain_speed_not_the_speculative_one(self, database: Engine) -> None:
        queue_jobs(database, [spec(2)], "earlier")
        measure(database, add_machine(database), [sample(arm=Arm.SPECULATIVE, tok_s=900)])

        with pytest.raises(AssertionError, match="the bandwidth was measured"):
            forecast(plan([spec(4)]), url(database), not_needed)

    @pytest.mark.parametrize(
        "other",
        [
            spec(2, settings=Settings(concurrent_requests=4)),
            spec(2, speculation=replace(spec().speculation, what_if=WhatIf(length=3.0))),
        ],
        ids=["several at once", "what-if"],
    )
    def test_takes_what_one_user_got_of_real_measurements(
        self, database: Engine, header_plan: Plan, other: JobSpec
    ) -> None:
        worker = add_machine(database)
        queue_jobs(database, [other], "other")
        measure(database, worker, paired([2.0] * 6, tok_s=10))
        assert "GB/s" in forecast(header_plan, url(database), lambda: 20.0).basis

        queue_jobs(database, [spec(2)], "earlier")
        measure(database, worker, paired([2.0] * 6, tok_s=50))
        found = forecast(plan([spec(4)]), url(database), not_needed)
        assert found.seconds == pytest.approx(6 * 32 / 50 * OVERHEAD)

    def test_rests_on_bandwidth_where_nothing_was_measured(
        self, database: Engine, header_plan: Plan
    ) -> None:
        found = forecast(header_plan, url(database), lambda: 20.0)

        tensor_bytes = next(iter(header_plan.models.values())).header.tensor_bytes
        assert found.seconds == pytest.approx(6 * 32 * tensor_bytes / 20e9 * OVERHEAD)
        assert "20 GB/s" in found.basis

    def test_counts_every_prompt_repeat_and_token(self, database: Engine) -> None:
        queue_jobs(database, [spec(2)], "earlier")
        measure(database, add_machine(database), paired([2.0] * 6, tok_s=50))

        found = forecast(
            plan([spec(4, repeats=3, generate_tokens=100), spec(8)]), url(database), not_needed
        )

        assert found.seconds == pytest.approx(6 * (300 + 32) / 50 * OVERHEAD)

    def test_leaves_out_jobs_that_are_there_already(self, database: Engine) -> None:
        queue_jobs(database, [spec(2), spec(4)])

        found = forecast(plan([spec(2), spec(4)]), url(database), not_needed)

        assert (found.new_jobs, found.seconds) == (0, 0.0)

    def test_samples_without_any_time_are_no_speed(
        self, database: Engine, header_plan: Plan
    ) -> None:
        queue_jobs(database, [spec(2)], "earlier")
        measure(database, add_machine(database), [sample(arm=Arm.BASELINE, decode_ms=0.0)])

        assert "GB/s" in forecast(header_plan, url(database), lambda: 20.0).basis

    def test_needs_no_farm(self, header_plan: Plan, tmp_path: Path) -> None:
        found = forecast(header_plan, f"sqlite:///{tmp_path}/farm.db", lambda: 20.0)

        assert found.new_jobs == 1
        assert len(found.obstacles) == 1

    def test_needs_no_database_that_answers(self, header_plan: Plan) -> None:
        found = forecast(header_plan, "postgresql://user@127.0.0.1:1/farm", lambda: 20.0)

        assert found.new_jobs == 1


class TestObstacles:
    def obstacles(self, engine: Engine, made: Plan) -> tuple[str, ...]:
        queue_jobs(engine, [spec(99, target=job.target) for job in made.jobs], "speeds")
        measure(engine, add_machine(engine, "meter"), [sample(arm=Arm.BASELINE)])
        return forecast(made, url(engine), lambda: 20.0).obstacles

    def test_none_when_a_machine_fits(self, database: Engine) -> None:
        assert self.obstacles(database, plan([spec()])) == ()

    def test_counts_jobs_that_no_machine_matches(self, database: Engine) -> None:
        (found,) = self.obstacles(
            database, plan([spec(2, machine="kind:apple"), spec(4, machine="kind:apple"), spec(8)])
        )

        assert found.startswith("2 jobs: no registered machine matches 'kind:apple'")
        assert spec().build in found

    def test_names_a_pair_too_large_for_every_machine(self, database: Engine) -> None:
        (found,) = self.obstacles(database, plan_needing(65 * GIB, [spec()]))

        assert "target at 2048 tokens of context needs about 65.0 GiB" in found

    def test_one_machine_with_enough_memory_is_enough(self, database: Engine) -> None:
        add_machine(database, "large", memory_bytes=128 * GIB)

        assert self.obstacles(database, plan_needing(65 * GIB, [spec()])) == ()

    def test_a_large_machine_that_does_not_match_is_no_help(self, database: Engine) -> None:
        add_machine(database, "large", kind=MachineKind.NVIDIA, memory_bytes=128 * GIB)

        made = plan_needing(65 * GIB, [spec(machine="kind:cpu")])

        assert len(self.obstacles(database, made)) == 1

    @pytest.mark.parametrize(("gpu_layers", "obstacles"), [(None, 0), (-1, 0), (0, 1)])
    def test_a_gpus_own_memory_counts_unless_it_is_not_used(
        self, database: Engine, gpu_layers: int | None, obstacles: int
    ) -> None:
        card = Gpu("NVIDIA H100", 80 * GIB)
        add_machine(database, "gpu-box", kind=MachineKind.NVIDIA, gpus=(card,))
        wanted = spec(machine="kind:nvidia", settings=Settings(gpu_layers=gpu_layers))

        assert len(self.obstacles(database, plan_needing(100 * GIB, [wanted]))) == obstacles

    def test_jobs_that_are_there_already_are_no_obstacle(self, database: Engine) -> None:
        queue_jobs(database, [spec(machine="kind:apple", target=model("target"))], "earlier")

        assert self.obstacles(database, plan([spec(machine="kind:apple")])) == ()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0 s"), (89.0, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (7200.0, "2.0 h")],
)
def test_time_is_told_in_the_unit_people_use(seconds: float, shown: str) -> None:
    lines = Forecast(3, seconds, "a guess", ("2 jobs: too large",)).lines()

    assert lines == [
        f"3 new jobs; estimated time on one machine: {shown} (a guess)",
        "can't run now: 2 jobs: too large",
    ]
