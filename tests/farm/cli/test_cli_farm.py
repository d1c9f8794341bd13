"""up, down, db and compat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from farm.queue.embedded import EmbeddedBroker
from farm.store.database import writing
from farm.store.migrate import head, require_head

Run = Callable[..., Any]


class TestUpAndDown:
    def test_start_and_stop_the_farm(self, run: Run, farm_home: Path) -> None:
        ran = run("up", "--no-worker")

        assert ran.code == 0
        assert f"database: migrated to {head()}" in ran.stderr
        assert "broker: started" in ran.stderr
        assert EmbeddedBroker(farm_home).answers()
        assert run("status").code == 0
        assert "broker: stopped" in run("down").stderr
        assert not EmbeddedBroker(farm_home).answers()

    def test_a_second_up_changes_nothing(self, run: Run, farm_home: Path) -> None:
        run("up", "--no-worker")

        ran = run("up", "--no-worker")

        assert ran.code == 0
        assert "started" not in ran.stderr
        assert "migrated" not in ran.stderr

    def test_down_of_what_is_down_is_no_error(self, run: Run) -> None:
        assert run("down").code == 0

    def test_a_broker_elsewhere_is_neither_started_nor_stopped(
        self, run: Run, farm_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FARM_BROKER_URL", "redis://127.0.0.1:1/0")

        ran = run("up", "--no-worker")

        assert ran.code == 3
        assert "FARM_BROKER_URL" in ran.error
        assert not EmbeddedBroker(farm_home).answers()

    def test_a_wrong_setting_is_bad_input(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FARM_JOB_TIMEOUT_S", "soon")

        ran = run("up", "--no-worker")

        assert ran.code == 2
        assert "FARM_JOB_TIMEOUT_S" in ran.error


class TestDb:
    def test_upgrade_makes_the_tables(self, run: Run) -> None:
        ran = run("db", "upgrade")

        assert ran.stdout == f"The database went from empty to migration {head()}.\n"
        assert run("db", "check").stdout == "The database is as this farm expects it.\n"

    def test_a_second_upgrade_says_that_nothing_was_to_do(self, run: Run) -> None:
        run("db", "upgrade")

        ran = run("db", "upgrade")

        assert ran.stdout == f"The database is at migration {head()} already.\n"

    def test_print_json_alone(self, run: Run) -> None:
        assert run("db", "upgrade", "--json").json == {"before": None, "after": head()}
        assert run("db", "check", "--json").json == {"differences": []}

    def test_check_refuses_an_empty_database(self, run: Run) -> None:
        ran = run("db", "check")

        assert ran.code == 3
        assert "farm db upgrade" in ran.error

    def test_check_names_the_first_difference(self, run: Run, farm: Engine) -> None:
        with writing(farm) as session:
            session.execute(text("ALTER TABLE job DROP COLUMN error_message"))

        ran = run("db", "check", "--json")

        assert ran.code == 3
        assert len(ran.json["differences"]) == 1
        assert "error_message" in ran.error
        require_head(farm)

    def test_a_malformed_address_is_bad_input(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FARM_DATABASE_URL", "nonsense")

        ran = run("db", "upgrade")

        assert ran.code == 2
        assert "FARM_DATABASE_URL" in ran.error


class TestCompat:
    def test_a_pair_that_fits_is_done(self, run: Run, pair: tuple[Path, Path]) -> None:
        assert run("compat", *pair).code == 0

    def test_prints_json_alone(self, run: Run, pair: tuple[Path, Path]) -> None:
        (found,) = run("compat", *pair, "--json").json

        assert found["compatible"] is True
        assert found["reasons"] == []

    def test_a_missing_file_is_bad_input(self, run: Run, tmp_path: Path) -> None:
        ran = run("compat", tmp_path / "a.gguf", tmp_path / "b.gguf")

        assert ran.code == 2
        assert "a.gguf" in ran.error
