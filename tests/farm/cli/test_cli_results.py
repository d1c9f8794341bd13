"""results, results show, results diff: what is printed, and the exit codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sample_farm import DIGESTS, add_machine, claimed, measure, paired, queue_jobs, spec
from sqlalchemy import Engine

from farm.domain.decoding import WhatIf
from farm.domain.measurement import Parity
from farm.store import jobs
from farm.store.database import writing

Run = Callable[..., Any]


@pytest.fixture
def measured(farm: Engine) -> Engine:
    """Return a farm of five results: jobs 1 and 2 differ in K, 3 in the governor, 4 has no
    provenance, 5 has other prompts; and job 6 is queued."""
    wanted = [
        *(spec(2), spec(4), spec(4, label="saving"), spec(4, label="old")),
        *(spec(4, prompts=DIGESTS[:3]), spec(8)),
    ]
    queue_jobs(farm, wanted)
    worker = add_machine(farm)
    conditions: list[dict[str, Any] | None] = [{}, {}, {"cpu_governor": "powersave"}, None, {}]
    for ratio, under in zip((1.5, 2.0, 2.5, 2.0, 2.0), conditions, strict=True):
        measure(farm, worker, paired((ratio,) * 6), under=under)
    return farm


class TestResults:
    def test_lists_each_configurations_jobs_under_its_conditions(
        self, run: Run, measured: Engine
    ) -> None:
        ran = run("results")

        assert ran.code == 0
        for reason in ("governor powersave", "conditions not recorded", "3 prompts each"):
            assert reason in ran.stdout
        rows = [line.split() for line in ran.stdout.splitlines() if "K = " in line]
        assert [row[-1] for row in rows] == ["5", "1", "2", "3", "4"]

    def test_has_jobs_and_conditions_in_json(self, run: Run, measured: Engine) -> None:
        found = run("results", "--sweep", "1", "--json").json

        told = {
            tuple(point["jobs"]): item["setup"]["conditions"]
            for item in found
            for point in item["curve"]
        }
        assert sorted(told) == [(1,), (2,), (3,), (4,), (5,)]
        assert told[4,] is None
        assert told[3,]["cpu_governor"] == "powersave"
        assert told[1,] == told[2,] == told[5,]


class TestShow:
    def test_prints_everything_that_shaped_a_result(self, run: Run, measured: Engine) -> None:
        ran = run("results", "show", "2")

        assert ran.code == 0
        for text in (
            "job 2: target + draft, K = 4, chat, temperature 0, on bench-1 (CPU of bench-1, 8",
            "2.00x",
            "exact 6/6",
            "governor",
            "0c1e570",
            "llama-server -c 2048 -t -1 --metrics --spec-draft-n-max 4",
            "5.0 GiB",
        ):
            assert text in ran.stdout

    def test_prints_json_alone(self, run: Run, measured: Engine) -> None:
        found = run("results", "show", "3", "--json").json

        assert found["job_id"] == 3
        assert found["provenance"]["conditions"]["cpu_governor"] == "powersave"
        assert len(found["conditions"]) == 64
        assert found["result"]["speedup"]["estimate"] == pytest.approx(2.5)
        assert found["environment_after"]["load_1min"] == 1.5
        assert found["spec"]["label"] == "saving"

    def test_of_a_what_if_says_that_its_text_is_not_valid(self, run: Run, farm: Engine) -> None:
        made_up = replace(spec().speculation, what_if=WhatIf(length=3.5))
        queue_jobs(farm, [spec(speculation=made_up)])
        measure(farm, add_machine(farm), paired((3.0,) * 6, parity=Parity.NOT_VALID))

        shown = run("results", "show", "1").stdout

        assert "what if length 3.5" in shown
        assert "not valid" in shown
        assert "exact" not in shown

    def test_of_an_old_result_says_that_its_conditions_are_unknown(
        self, run: Run, measured: Engine
    ) -> None:
        ran = run("results", "show", "4")

        assert ran.code == 0
        assert "before conditions were recorded" in ran.stdout


class TestDiff:
    def test_of_two_k_under_the_same_conditions(self, run: Run, measured: Engine) -> None:
        ran = run("results", "diff", "1", "2")

        assert ran.code == 0
        assert ran.stdout.splitlines()[-1] == (
            "Comparable: the same conditions and the same prompts."
        )
        rows = [line.split() for line in ran.stdout.splitlines()]
        assert ["speedup", "1.50x", "2.00x"] in rows
        assert ["speculation", "n", "max", "2", "4"] in rows
        assert ["--spec-draft-n-max", "2", "4"] in rows
        assert "-c" not in {row[0] for row in rows if row}

    @pytest.mark.parametrize(
        ("other", "sentence"),
        [
            ("3", "Not comparable, for these differ: governor (performance, powersave)."),
            ("5", "Not comparable, for these differ: prompts ("),
            ("4", "Not known to be comparable: job 2 or job 4 was measured before"),
        ],
    )
    def test_of_what_can_not_be_compared_says_why(
        self, run: Run, measured: Engine, other: str, sentence: str
    ) -> None:
        ran = run("results", "diff", "2", other)

        assert ran.code == 0
        assert sentence in ran.stdout

    def test_prints_json_alone(self, run: Run, measured: Engine) -> None:
        found = run("results", "diff", "1", "3", "--json").json

        assert found["comparable"] is False
        assert found["conditions"] == {"cpu_governor": ["performance", "powersave"]}
        assert found["asked"]["speculation.n_max"] == [2, 4]
        assert found["speculative"] == {"command.--spec-draft-n-max": ["2", "4"]}
        assert found["readings"] == {}
        assert "governor" in found["reason"]
        assert [found[side]["job_id"] for side in ("a", "b")] == [1, 3]

    def test_of_a_result_with_itself_finds_nothing(self, run: Run, measured: Engine) -> None:
        found = run("results", "diff", "1", "1", "--json").json

        assert found["comparable"] is True
        assert {name: found[name] for name in ("asked", "conditions", "speculative")} == {
            "asked": {},
            "conditions": {},
            "speculative": {},
        }


@pytest.mark.parametrize("command", [("show", "{}"), ("diff", "1", "{}")], ids=lambda c: c[0])
class TestNoResult:
    def ask(self, run: Run, command: tuple[str, ...], job: int) -> str:
        ran = run("results", *(part.format(job) for part in command))
        assert (ran.code, ran.stdout) == (2, "")
        return str(ran.error)

    def test_of_an_unknown_job(self, run: Run, measured: Engine, command: tuple[str, ...]) -> None:
        assert self.ask(run, command, 99) == (
            "There is no job 99; 'farm results' lists the jobs behind each configuration."
        )

    def test_of_a_job_that_waits(
        self, run: Run, measured: Engine, command: tuple[str, ...]
    ) -> None:
        assert self.ask(run, command, 6).startswith("Job 6 is queued and has no result;")

    def test_of_a_job_that_failed(
        self, run: Run, measured: Engine, command: tuple[str, ...]
    ) -> None:
        held = claimed(measured, add_machine(measured, "bench-2"))
        with writing(measured) as session:
            jobs.fail(session, held, "load-failed", "A tensor is missing.")

        assert self.ask(run, command, 6) == (
            "Job 6 failed (load-failed) and has no result: A tensor is missing."
        )
