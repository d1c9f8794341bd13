from __future__ import annotations

import sqlite3

import pytest
from alembic import command
from alembic.config import Config
from sample_farm import add_machine, contents, measure, paired, queue_jobs, spec
from sqlalchemy import Engine, event, inspect, text
from sqlalchemy.exc import IntegrityError

from farm.errors import InfrastructureError
from farm.paths import resource
from farm.store import database as database_module
from farm.store.database import altering, open_database, writing
from farm.store.migrate import current, differences, head, require_head, upgrade
from farm.store.schema import Base


def set_revision(engine: Engine, revision: str) -> None:
    with writing(engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})


def downgrade_to(engine: Engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(resource("migrations")))
    with altering(engine) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


class TestUpgrade:
    def test_makes_every_table_from_nothing(self, empty_database: Engine) -> None:
        assert current(empty_database) is None

        assert upgrade(empty_database) == (None, head())

        made = set(inspect(empty_database).get_table_names())
        assert made == {*Base.metadata.tables, "alembic_version"}
        assert current(empty_database) == head()

    def test_makes_the_tables_that_the_code_declares(self, empty_database: Engine) -> None:
        upgrade(empty_database)

        assert differences(empty_database) == []

    def test_makes_the_indexes_that_the_code_declares(self, empty_database: Engine) -> None:
        upgrade(empty_database)

        found = {index["name"] for index in inspect(empty_database).get_indexes("job")}
        assert {index.name for index in Base.metadata.tables["job"].indexes} <= found

    def test_a_second_time_does_nothing(self, database: Engine) -> None:
        queue_jobs(database, [spec()])
        add_machine(database)
        before = contents(database)

        assert upgrade(database) == (head(), head())

        assert contents(database) == before

    def test_keeps_the_samples_of_the_first_tables(self, empty_database: Engine) -> None:
        """What was measured then is still there, and what no engine reports can be NULL now."""
        upgrade(empty_database)
        queue_jobs(empty_database, [spec()])
        measure(empty_database, add_machine(empty_database), paired([1.5, 1.25]))
        before = contents(empty_database)
        downgrade_to(empty_database, "0001")
        assert differences(empty_database)

        upgrade(empty_database)

        assert contents(empty_database) == before
        assert differences(empty_database) == []
        with writing(empty_database) as session:
            session.execute(text("UPDATE sample SET rounds = NULL, drafted = NULL"))

    @pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
    def test_stays_where_it_was_when_rows_refer_to_nothing(self, empty_database: Engine) -> None:
        """PostgreSQL never lets such a row in."""
        upgrade(empty_database)
        downgrade_to(empty_database, "0001")
        orphan = "INSERT INTO sweep_job (sweep_id, job_id) VALUES (1, 1)"
        with empty_database.connect() as connection:
            connection.connection.execute("PRAGMA foreign_keys=OFF")
            connection.connection.execute(orphan)
            connection.invalidate()

        with pytest.raises(InfrastructureError, match=r"refer to rows that are gone.*backup"):
            upgrade(empty_database)

        assert current(empty_database) == "0001"

    @pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
    def test_says_that_another_writes(
        self, empty_database: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database_module, "SQLITE_BUSY_TIMEOUT_MS", 1)
        impatient = open_database(str(empty_database.url))

        with writing(empty_database) as session:
            session.execute(text("CREATE TABLE other (id INTEGER PRIMARY KEY)"))
            with pytest.raises(InfrastructureError, match=r"is locked; something else is writing"):
                upgrade(impatient)
        impatient.dispose()

    @pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
    def test_says_that_there_is_no_space(self, empty_database: Engine) -> None:
        def fill(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA max_page_count = 4")

        event.listen(empty_database, "connect", fill)

        with pytest.raises(InfrastructureError, match=r"full; free some disk space"):
            upgrade(empty_database)

        assert current(empty_database) is None

    def test_goes_on_with_references_checked(self, database: Engine) -> None:
        upgrade(database)

        orphan = text("INSERT INTO sweep_job (sweep_id, job_id) VALUES (1, 1)")
        with pytest.raises(IntegrityError), writing(database) as session:
            session.execute(orphan)

    def test_refuses_the_database_of_a_newer_farm(self, database: Engine) -> None:
        set_revision(database, "9999")

        with pytest.raises(InfrastructureError, match=r"9999.*newer farm.*Update specfarm"):
            upgrade(database)

        assert current(database) == "9999"


class TestRequireHead:
    def test_accepts_this_farms_own_tables(self, database: Engine) -> None:
        require_head(database)

    def test_says_what_to_run_on_an_empty_database(self, empty_database: Engine) -> None:
        with pytest.raises(InfrastructureError, match=r"no tables yet.*'farm db upgrade'"):
            require_head(empty_database)

    def test_says_what_to_run_at_another_migration(self, database: Engine) -> None:
        set_revision(database, "9999")

        with pytest.raises(InfrastructureError, match=r"at migration 9999.*'farm db upgrade'"):
            require_head(database)

    def test_shows_no_password(self, empty_database: Engine) -> None:
        with pytest.raises(InfrastructureError) as caught:
            require_head(empty_database)

        assert "postgres:@" not in str(caught.value)


class TestDifferences:
    def test_names_a_column_that_is_not_there(self, database: Engine) -> None:
        with writing(database) as session:
            session.execute(text("ALTER TABLE job DROP COLUMN error_message"))

        (found,) = differences(database)

        assert "error_message" in found

    def test_names_a_table_that_should_not_be_there(self, database: Engine) -> None:
        with writing(database) as session:
            session.execute(text("CREATE TABLE stray (id INTEGER PRIMARY KEY)"))

        (found,) = differences(database)

        assert "stray" in found
