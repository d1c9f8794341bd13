from __future__ import annotations

import pytest
from sample_farm import BUILD, add_machine, claimed, make_due, queue_jobs, spec, submit_jobs
from sqlalchemy import Engine

from farm.domain.hardware import MachineKind
from farm.services.status import SweepStatus, sweep_status, sweep_statuses
from farm.store import jobs
from farm.store.database import reading, writing


def status(engine: Engine, sweep_id: int = 1) -> SweepStatus:
    with reading(engine) as session:
        found = sweep_status(session, sweep_id)
    assert found is not None
    return found


def finish_next(engine: Engine, worker: jobs.Claimer) -> None:
    held = claimed(engine, worker)
    with writing(engine) as session:
        jobs.finish(session, held)


def fail_next(engine: Engine, worker: jobs.Claimer, kind: str, message: str) -> None:
    held = claimed(engine, worker)
    with writing(engine) as session:
        jobs.fail(session, held, kind, message)


class TestProgress:
    def test_counts_jobs_by_state(self, database: Engine) -> None:
        ids = queue_jobs(database, [spec(k) for k in range(1, 6)], "mine")
        worker = add_machine(database)
        finish_next(database, worker)
        fail_next(database, worker, "timeout", "It took too long.")
        with writing(database) as session:
            jobs.cancel(session, ids[2:3])
        claimed(database, worker)

        found = status(database)

        assert (found.name, found.total, found.finished) == ("mine", 5, 3)
        assert found.states == {"done": 1, "failed": 1, "cancelled": 1, "leased": 1, "queued": 1}

    def test_names_what_is_measured_now(self, database: Engine) -> None:
        queue_jobs(database, [spec(8)])
        assert status(database).running is None

        claimed(database, add_machine(database, "bench-7"))

        assert status(database).running == "chat K=8 on bench-7"

    def test_lists_sweeps_newest_first(self, database: Engine) -> None:
        for name in ("first", "second", "third"):
            submit_jobs(database, [spec(4)], name)

        with reading(database) as session:
            names = [found.name for found in sweep_statuses(session)]

        assert names == ["third", "second", "first"]

    def test_a_job_counts_in_every_sweep_that_asks_for_it(self, database: Engine) -> None:
        submit_jobs(database, [spec(2)], "small")
        submit_jobs(database, [spec(2), spec(4)], "large")
        finish_next(database, add_machine(database))

        assert (status(database, 1).finished, status(database, 1).total) == (1, 1)
        assert (status(database, 2).finished, status(database, 2).total) == (1, 2)

    def test_an_unknown_sweep_is_none(self, database: Engine) -> None:
        with reading(database) as session:
            assert sweep_status(session, 7) is None
            assert sweep_statuses(session) == []


class TestRemarks:
    def test_nothing_to_say_while_all_is_well(self, database: Engine) -> None:
        queue_jobs(database, [spec(2), spec(4)])
        claimed(database, add_machine(database))

        assert status(database).remarks == ()

    def test_counts_failures_by_reason(self, database: Engine) -> None:
        queue_jobs(database, [spec(k) for k in range(1, 5)])
        worker = add_machine(database)
        for _ in range(3):
            fail_next(database, worker, "timeout", "It took too long.")
        fail_next(database, worker, "load-failed", "It did not load.")

        assert status(database).remarks == (
            "3 x failed: It took too long. (timeout)",
            "1 x failed: It did not load. (load-failed)",
        )

    def test_tells_a_failure_that_will_be_tried_again(self, database: Engine) -> None:
        queue_jobs(database, [spec()])
        fail_next(database, add_machine(database), "crashed", "llama.cpp crashed.")

        (remark,) = status(database).remarks

        assert remark == "1 x will be tried again: llama.cpp crashed. (crashed)"

    def test_says_nothing_of_an_error_that_was_overcome(self, database: Engine) -> None:
        queue_jobs(database, [spec()])
        worker = add_machine(database)
        fail_next(database, worker, "crashed", "llama.cpp crashed.")
        make_due(database)
        finish_next(database, worker)

        assert status(database).remarks == ()

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"machine": "kind:apple"}, "'kind:apple'"),
            ({"machine": "name:bench-9"}, "'name:bench-9'"),
            ({"build": "llama-cpp-python==0.0.1"}, "build llama-cpp-python==0.0.1"),
        ],
        ids=["kind", "name", "build"],
    )
    def test_names_what_no_machine_can_run(
        self, database: Engine, changes: dict[str, str], named: str
    ) -> None:
        add_machine(database, "bench-1", kind=MachineKind.CPU, builds=[BUILD])
        queue_jobs(database, [spec(2, **changes), spec(4, **changes), spec(8)])

        (remark,) = status(database).remarks

        assert remark.startswith("2 x waiting: no registered machine matches")
        assert named in remark
        assert "farm worker" in remark

    def test_one_machine_has_to_fit_both_ways(self, database: Engine) -> None:
        add_machine(database, "apple", kind=MachineKind.APPLE, builds=["llama-cpp-python==0.0.1"])
        add_machine(database, "cpu", kind=MachineKind.CPU, builds=[BUILD])
        queue_jobs(database, [spec(machine="kind:apple", build=BUILD)])

        assert len(status(database).remarks) == 1

    def test_says_so_before_any_machine_is_there(self, database: Engine) -> None:
        queue_jobs(database, [spec()])

        assert "no registered machine matches 'any'" in status(database).remarks[0]

    @pytest.mark.parametrize(
        ("shares", "said"), [((0.05, None), False), ((0.05, 0.5), True), ((None, None), False)]
    )
    def test_says_how_many_jobs_ran_beside_other_programs(
        self, database: Engine, shares: tuple[float | None, ...], said: bool
    ) -> None:
        queue_jobs(database, [spec(2), spec(4)])
        worker = add_machine(database)
        for share in shares:
            held = claimed(database, worker)
            with writing(database) as session:
                before = {"busy_share_of_others": share}
                jobs.describe_attempt(session, held, environment_before=before)
                jobs.finish(session, held)

        remarks = " ".join(status(database).remarks)

        assert ("1 of 2 jobs began while other programs used more than 10%" in remarks) is said
