"""status, cancel, recommend, results and machines: what is printed, and the exit codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sample_farm import add_machine, claimed, measure, model, paired, queue_jobs, spec
from sqlalchemy import Engine

from farm.domain.decoding import Settings, WhatIf
from farm.domain.measurement import Parity
from farm.services import recommend as judging
from farm.store import jobs
from farm.store.database import writing
from farm.store.queries import measured_samples

Run = Callable[..., Any]

ANSWERS = [("status",), ("recommend",), ("results",), ("machines",), ("cancel", "1")]


@pytest.fixture
def measured(farm: Engine) -> Engine:
    """Return a farm that has measured K = 2 and 4, twice as fast, and has K = 8 before it."""
    queue_jobs(farm, [spec(2), spec(4), spec(8)], "mine [v2]")
    worker = add_machine(farm)
    measure(farm, worker, paired((1.5,) * 6))
    measure(farm, worker, paired((2.0,) * 6))
    return farm


@pytest.mark.parametrize("command", ANSWERS, ids=lambda command: command[0])
def test_says_what_to_run_without_tables(run: Run, command: tuple[str, ...]) -> None:
    ran = run(*command)

    assert ran.code == 3
    assert "farm db upgrade" in ran.error
    assert "\n" not in ran.error


class TestStatus:
    def test_of_an_empty_farm_says_how_to_submit(self, run: Run, farm: Engine) -> None:
        ran = run("status")

        assert ran.code == 0
        assert "farm submit FILE" in ran.stdout

    def test_of_an_empty_farm_is_an_empty_list_in_json(self, run: Run, farm: Engine) -> None:
        assert run("status", "--json").json == []

    def test_counts_jobs_by_state(self, run: Run, measured: Engine) -> None:
        ran = run("status")

        assert ran.stdout == "sweep 1 'mine [v2]': 2/3 (2 done, 1 queued)\n"

    def test_prints_json_alone(self, run: Run, measured: Engine) -> None:
        (found,) = run("status", "--json").json

        assert (found["id"], found["name"], found["total"], found["finished"]) == (
            1,
            "mine [v2]",
            3,
            2,
        )
        assert found["states"] == {"done": 2, "queued": 1}

    def test_shows_what_failed_and_why(self, run: Run, measured: Engine) -> None:
        worker = add_machine(measured, "bench-2")
        held = claimed(measured, worker)
        with writing(measured) as session:
            jobs.fail(session, held, "load-failed", "tensor [blk.0] is missing")

        assert "1 x failed: tensor [blk.0] is missing (load-failed)" in run("status").stdout

    def test_watching_what_is_finished_returns(self, run: Run, measured: Engine) -> None:
        run("cancel", "1")

        ran = run("status", "--watch")

        assert ran.code == 0
        assert "sweep 1 'mine [v2]': 3/3 (1 cancelled, 2 done)" in ran.stderr

    def test_of_an_unknown_sweep_is_bad_input(self, run: Run, farm: Engine) -> None:
        ran = run("status", "7")

        assert (ran.code, ran.stdout) == (2, "")
        assert ran.error == "There is no sweep 7; 'farm status' lists them."

    def test_of_no_number_is_bad_input(self, run: Run, farm: Engine) -> None:
        assert run("status", "seven").code == 2


class TestCancel:
    def test_cancels_what_is_not_finished(self, run: Run, measured: Engine) -> None:
        ran = run("cancel", "1")

        assert (ran.code, ran.stdout) == (0, "sweep 1: 1 jobs cancelled\n")
        assert run("status", "--json").json[0]["states"] == {"done": 2, "cancelled": 1}

    def test_a_second_time_cancels_nothing(self, run: Run, measured: Engine) -> None:
        run("cancel", "1")

        assert run("cancel", "1").stdout == "sweep 1: 0 jobs cancelled\n"

    def test_of_an_unknown_sweep_is_bad_input(self, run: Run, farm: Engine) -> None:
        ran = run("cancel", "7")

        assert ran.code == 2
        assert "There is no sweep 7" in ran.error


class TestRecommend:
    @pytest.mark.parametrize("command", ["recommend", "results"])
    def test_without_measurements_says_what_to_do(
        self, run: Run, farm: Engine, command: str
    ) -> None:
        ran = run(command)

        assert (ran.code, ran.stdout) == (2, "")
        assert "farm submit FILE" in ran.error

    def test_names_the_k_to_use(self, run: Run, measured: Engine) -> None:
        ran = run("recommend")

        assert ran.code == 0
        assert "K = 4" in ran.stdout
        assert "2.00x" in ran.stdout
        assert "6/6" in ran.stdout

    def test_lists_every_configuration(self, run: Run, measured: Engine) -> None:
        ran = run("results")

        assert "1.50x" in ran.stdout
        assert "2.00x" in ran.stdout

    @pytest.mark.parametrize("command", ["recommend", "results"])
    def test_prints_json_alone(self, run: Run, measured: Engine, command: str) -> None:
        (found,) = run(command, "--json").json

        assert found["verdict"] == "on"
        assert found["best"]["speculation"]["n_max"] == 4
        assert found["best"]["speedup"]["estimate"] == pytest.approx(2.0)
        assert [point["speculation"]["n_max"] for point in found["curve"]] == [2, 4]
        assert found["setup"]["target_digest"] == spec().target.digest

    def test_of_one_sweep_alone(self, run: Run, measured: Engine) -> None:
        assert run("recommend", "--sweep", "1").code == 0
        assert run("recommend", "--sweep", "2").code == 2

    def test_shows_models_of_one_name_apart(self, run: Run, measured: Engine) -> None:
        with writing(measured) as session:
            jobs.cancel(session, [3])
        queue_jobs(measured, [spec(2, target=model("target", "another quantisation"))], "other")
        worker = add_machine(measured, "bench-2")
        measure(measured, worker, paired((3.0,) * 6))

        ran = run("recommend")

        assert ran.stdout.count("target + draft") == 2

    def test_keeps_lossy_settings_apart_and_marks_them(self, run: Run, farm: Engine) -> None:
        settings = Settings(cache_type_v="q8_0")
        queue_jobs(farm, [spec(4), replace(spec(4), settings=settings)])
        worker = add_machine(farm)
        for speedup in (2.0, 3.0):
            measure(farm, worker, paired((speedup,) * 6))

        lossless, lossy = run("recommend").stdout.split("V cache q8_0 (lossy)")

        assert "2.00x" in lossless
        assert "3.00x" in lossy
        assert "not over the unmodified target" in " ".join(lossy.split())
        assert "lossy" not in lossless

    @pytest.mark.parametrize("command", ["recommend", "results"])
    def test_shows_what_ifs_apart(self, run: Run, farm: Engine, command: str) -> None:
        made_up = replace(spec().speculation, what_if=WhatIf(length=3.5))
        queue_jobs(farm, [spec(speculation=made_up)])
        worker = add_machine(farm)
        measure(farm, worker, paired((3.0,) * 6))

        alone = run(command)
        queue_jobs(farm, [spec()], "real")
        measure(farm, worker, paired((2.0,) * 6))
        both = run(command)

        assert run(command, "--json").json[0]["best"]["speedup"]["estimate"] == pytest.approx(2)
        assert "2.00x" not in alone.stdout
        for ran in (alone, both):
            heading = "What if: synthetic acceptance; the text is not valid output"
            before, below = ran.stdout.split(heading)
            assert "3.00x" in below
            assert "what if length 3.5" in " ".join(below.split())
            assert "3.00x" not in before
        assert "2.00x" in both.stdout

    @pytest.mark.parametrize("command", ["recommend", "results"])
    def test_judges_every_sample_once(
        self, run: Run, measured: Engine, monkeypatch: pytest.MonkeyPatch, command: str
    ) -> None:
        readings = []

        def counted(*asked: Any) -> Any:
            readings.append(asked)
            return measured_samples(*asked)

        monkeypatch.setattr(judging, "measured_samples", counted)

        assert run(command).code == 0
        assert len(readings) == 1

    def test_lists_what_all_users_get(self, run: Run, farm: Engine) -> None:
        queue_jobs(farm, [spec(settings=Settings(concurrent_requests=4))])
        measure(farm, add_machine(farm), paired((2.0,) * 6))

        shown = run("results").stdout

        assert "4 at once" in shown
        for total in (4 * 101 / (0.0405 + 2), 4 * 101 / (0.0405 + 1)):
            assert f"{total:.1f}" in shown

    def test_keeps_brackets_in_names(self, run: Run, farm: Engine) -> None:
        queue_jobs(farm, [spec(target=model("target[bold]"))])
        measure(farm, add_machine(farm), paired((2.0,) * 6))

        assert "target[bold]" in run("recommend").stdout

    @pytest.mark.parametrize("command", ["recommend", "results"])
    def test_says_what_lossy_settings_did(self, run: Run, farm: Engine, command: str) -> None:
        queue_jobs(farm, [spec(settings=Settings(cache_type_k="q8_0"))])
        runs = paired((2.0,) * 6)
        for at in range(0, 6, 2):
            runs[at] = replace(runs[at], parity=Parity.NEAR_TIE, first_divergence=3)
        for at in range(6, 12, 2):
            runs[at] = replace(runs[at], parity=Parity.EXACT)
        measure(farm, add_machine(farm), runs)

        said = " ".join(run(command).stdout.split())

        assert (
            "chat: lossy (K cache q8_0): text differs from the unmodified target's on "
            "3 of 6 prompts"
        ) in said
        (found,) = run(command, "--json").json
        assert found["unmodified_parity"] == {"near-tie": 3, "exact": 3}


class TestMachines:
    def test_of_an_empty_farm_says_how_to_register(self, run: Run, farm: Engine) -> None:
        ran = run("machines")

        assert ran.code == 0
        assert "farm worker" in ran.stdout

    def test_lists_what_each_can_run(self, run: Run, measured: Engine) -> None:
        ran = run("machines")

        assert "bench-1" in ran.stdout
        assert "64 GiB" in ran.stdout
        assert spec().build in ran.stdout

    def test_prints_json_alone(self, run: Run, measured: Engine) -> None:
        (found,) = run("machines", "--json").json

        assert (found["name"], found["kind"], found["builds"]) == (
            "bench-1",
            "cpu",
            [spec().build],
        )
