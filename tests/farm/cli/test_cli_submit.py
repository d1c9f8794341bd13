from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_farm import add_machine, contents
from sqlalchemy import Engine

from farm.cli import submit as submit_module
from farm.errors import UserError
from farm.services.plan import plan_sweep
from farm.services.sweepfile import load_sweep
from farm.store import jobs
from farm.store.database import reading

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def known_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the machine's bandwidth for known: measuring it takes seconds."""
    monkeypatch.setattr(submit_module, "memory_bandwidth_gb_s", lambda: 20.0)


class TestExample:
    def test_is_a_sweep_but_for_its_model_files(self, run: Run, tmp_path: Path) -> None:
        ran = run("submit", "--example")

        file = tmp_path / "sweep.yaml"
        file.write_text(ran.stdout)
        assert ran.code == 0
        assert load_sweep(file)[0].name == "first-sweep"
        with pytest.raises(UserError, match=r"models/target\.gguf"):
            plan_sweep(file)

    def test_is_planned_once_the_model_files_are_there(
        self, run: Run, tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("farm.services.plan._build", lambda *_: "llama-cpp-python==0.3.36")
        (tmp_path / "models").mkdir()
        for file, role in zip(pair, ("target", "draft"), strict=True):
            shutil.copy(file, tmp_path / "models" / f"{role}.gguf")
        sweep = tmp_path / "sweep.yaml"
        sweep.write_text(run("submit", "--example").stdout)

        plan = plan_sweep(sweep)

        assert len(plan.jobs) == 4 * 2 * 8
        assert plan.refusals == ()

    def test_its_comments_name_every_key_with_its_own_default(self, run: Run) -> None:
        text = run("submit", "--example").stdout
        given = load_sweep(submit_module.resource("configs") / "sweeps" / "example.yaml")[0]

        for key, field in type(given).model_fields.items():
            assert f"{key}:" in text, f"the example does not show '{key}'"
            if key not in given.model_fields_set:
                shown = next(line for line in text.splitlines() if line.startswith(f"# {key}:"))
                value = shown.split("#")[1].split(":", 1)[1].strip()
                default = given.accept_rules if key == "accept" else field.default
                default = default[0] if isinstance(default, list) else default
                assert value == {None: "", "": "''"}.get(default, str(default))


class TestSubmit:
    def test_stores_the_jobs_and_rings(self, run: Run, farm: Engine, sweep: Path) -> None:
        assert run("up", "--no-worker").code == 0

        ran = run("submit", sweep)

        assert (ran.code, ran.stdout) == (0, "sweep 1: 2 jobs, 2 new, 0 there already\n")
        assert ran.stderr == ""
        with reading(farm) as session:
            assert jobs.unrung(session) == []

    def test_prints_json_alone(self, run: Run, farm: Engine, sweep: Path) -> None:
        run("up", "--no-worker")

        ran = run("submit", sweep, "--json")

        assert ran.json == {"sweep_id": 1, "total": 2, "new": 2, "existing": 0, "requeued": 0}

    def test_says_that_jobs_are_safe_without_a_broker(
        self, run: Run, farm: Engine, sweep: Path
    ) -> None:
        ran = run("submit", sweep)

        assert ran.code == 3
        assert "safe in the database" in ran.error
        assert len(contents(farm)["job"]) == 2

    def test_says_what_to_run_without_tables(self, run: Run, sweep: Path) -> None:
        ran = run("submit", sweep)

        assert ran.code == 3
        assert "farm db upgrade" in ran.error

    def test_says_where_an_example_is_without_a_file(self, run: Run) -> None:
        ran = run("submit")

        assert ran.code == 2
        assert "farm submit --example" in ran.error

    def test_a_bad_sweep_is_bad_input(self, run: Run, farm: Engine, tmp_path: Path) -> None:
        bad = tmp_path / "bad.yaml"
        bad.write_text("name: x\n")
        before = contents(farm)

        ran = run("submit", bad)

        assert ran.code == 2
        assert ran.error.startswith(f"{bad}:1:1: ")
        assert contents(farm) == before


class TestDryRun:
    def test_shows_jobs_time_and_obstacles_and_stores_nothing(
        self, run: Run, farm: Engine, sweep: Path
    ) -> None:
        before = contents(farm)

        ran = run("submit", sweep, "--dry-run")

        assert ran.code == 0
        assert "first: 2 jobs" in ran.stdout
        assert "2 new jobs; estimated time on one machine:" in ran.stdout
        assert "can't run now: 2 jobs: no registered machine" in ran.stdout
        assert ran.stdout.endswith("Dry run: nothing was submitted.\n")
        assert contents(farm) == before

    def test_counts_the_cells_that_it_leaves_out(self, run: Run, farm: Engine, sweep: Path) -> None:
        sweep.write_text(f"{sweep.read_text()}n_min: [0, 4]\ncache_type_v: q8_0\n")

        ran = run("submit", sweep, "--dry-run")

        assert "first: 3 jobs" in ran.stdout
        assert "cells left out because their n_min is above their K: 1" in ran.stdout
        assert "n_min 4" in ran.stdout
        assert "(lossy)" in ran.stdout

    def test_needs_no_farm_and_makes_none(self, run: Run, sweep: Path, farm_home: Path) -> None:
        assert run("submit", sweep, "--dry-run").code == 0
        assert not list(farm_home.glob("*.db*"))

    def test_prints_json_alone(self, run: Run, farm: Engine, sweep: Path) -> None:
        add_machine(farm)

        ran = run("submit", sweep, "--dry-run", "--json")

        assert ran.json["name"] == "first"
        assert [job["speculation"]["n_max"] for job in ran.json["jobs"]] == [2, 4]
        assert len({job["key"] for job in ran.json["jobs"]}) == 2
        assert ran.json["refused"] == []
        assert ran.json["estimate"]["new_jobs"] == 2
        assert ran.json["estimate"]["obstacles"] == []

    def test_cuts_off_no_file_name(self, run: Run, sweep: Path, pair: tuple[Path, Path]) -> None:
        shared = "a-name-longer-than-any-column-of-a-table-on-a-screen"
        target, draft = (
            shutil.copy(path, path.with_name(f"{shared}-{end}.gguf"))
            for path, end in zip(pair, ("target", "draft"), strict=True)
        )
        named = (
            sweep.read_text().replace(str(pair[0]), str(target)).replace(str(pair[1]), str(draft))
        )
        sweep.write_text(named)

        shown = run("submit", sweep, "--dry-run").stdout

        assert "…" not in shown

    def test_leaves_out_the_end_of_a_long_list(
        self, run: Run, sweep: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(submit_module, "SHOWN_JOBS", 1)

        assert "... and 1 more" in run("submit", sweep, "--dry-run").stdout
