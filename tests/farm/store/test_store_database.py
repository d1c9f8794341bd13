from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from sample_farm import add_machine
from sqlalchemy import Engine, func, select, text

from farm.errors import InfrastructureError, UserError
from farm.store.clock import now
from farm.store.database import open_database, reading, writing
from farm.store.schema import BuildRow, MachineRow


class TestOpen:
    @pytest.mark.parametrize("url", ["", "nonsense", "postgresql://user@host:port/name"])
    def test_says_how_a_malformed_url_should_look(self, url: str) -> None:
        with pytest.raises(UserError, match=r"sqlite:///.*postgresql://"):
            open_database(url)

    @pytest.mark.parametrize("url", ["mysql://host/name", "oracle://host/name"])
    def test_names_a_database_that_is_not_supported(self, url: str) -> None:
        with pytest.raises(UserError, match=f"'{url.split(':')[0]}' is not supported"):
            open_database(url)

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
    def test_refuses_a_database_in_memory(self, url: str) -> None:
        with pytest.raises(UserError, match="give SQLite a file"):
            open_database(url)

    @pytest.mark.parametrize("url", ["sqlite+pysqlcipher:///{}/farm.db", "sqlite+nope:///{}/f.db"])
    def test_refuses_another_driver_for_sqlite(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="sqlite:///"):
            open_database(url.format(tmp_path))

    def test_says_how_to_install_a_driver_for_postgresql(self) -> None:
        with pytest.raises(InfrastructureError, match=r"pip install 'specfarm\[postgres\]'"):
            open_database("postgresql+nope://user@host/name")

    def test_makes_the_folder_of_a_file(self, tmp_path: Path) -> None:
        engine = open_database(f"sqlite:///{tmp_path}/new/folders/farm.db")

        with reading(engine) as session:
            assert session.scalar(select(1)) == 1
        engine.dispose()
        assert (tmp_path / "new" / "folders" / "farm.db").is_file()

    def test_says_which_folder_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")

        with pytest.raises(InfrastructureError, match=r"file/farm can't be made.*FARM_HOME"):
            open_database(f"sqlite:///{tmp_path}/file/farm/farm.db")

    def test_refuses_a_file_on_a_network_file_system(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Mount:
            mountpoint, fstype = str(tmp_path), "nfs4"

        monkeypatch.setattr(psutil, "disk_partitions", lambda all: [Mount])

        with pytest.raises(InfrastructureError, match=r"network file system \(nfs4\)"):
            open_database(f"sqlite:///{tmp_path}/farm.db")


class TestUnreachable:
    def test_says_that_nobody_answers_without_the_password(self) -> None:
        engine = open_database("postgresql://user:secret@127.0.0.1:1/farm")

        with pytest.raises(InfrastructureError) as caught, reading(engine) as session:
            session.execute(select(1))

        assert "check FARM_DATABASE_URL" in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_says_that_a_file_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "farm.db").write_text("just a letter to a friend\n" * 100)
        engine = open_database(f"sqlite:///{tmp_path}/farm.db")

        with (
            pytest.raises(InfrastructureError, match=r"farm\.db says: file is not a database"),
            reading(engine) as session,
        ):
            session.execute(select(1))

    def test_says_how_to_make_missing_tables(self, tmp_path: Path) -> None:
        engine = open_database(f"sqlite:///{tmp_path}/farm.db")

        with (
            pytest.raises(InfrastructureError, match="farm db upgrade"),
            reading(engine) as session,
        ):
            session.scalars(select(MachineRow)).all()
        engine.dispose()


def builds(engine: Engine) -> int:
    with reading(engine) as session:
        return session.scalars(select(func.count()).select_from(BuildRow)).one()


def in_threads(count: int, work: Callable[[int], None]) -> list[Exception]:
    """Run work(0), work(1)... at once; return what they raised."""
    start, errors = threading.Barrier(count), []

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


class TestTransactions:
    def test_writing_commits_at_the_end(self, database: Engine) -> None:
        with writing(database) as session:
            session.add(BuildRow(digest="a", name="a", system_info=""))

        assert builds(database) == 1

    def test_writing_leaves_nothing_of_a_failure(self, database: Engine) -> None:
        def fail_half_way() -> None:
            with writing(database) as session:
                session.add(BuildRow(digest="a", name="a", system_info=""))
                session.flush()
                raise RuntimeError("half-way")

        with pytest.raises(RuntimeError):
            fail_half_way()

        assert builds(database) == 0

    def test_reading_commits_nothing(self, database: Engine) -> None:
        with reading(database) as session:
            session.add(BuildRow(digest="a", name="a", system_info=""))
            session.flush()

        assert builds(database) == 0

    def test_writers_that_read_first_wait_for_each_other(self, database: Engine) -> None:
        # Under a deferred BEGIN SQLite refuses the second one at once: "database is locked".
        def read_then_write(number: int) -> None:
            for turn in range(25):
                with writing(database) as session:
                    session.scalars(select(func.count()).select_from(BuildRow)).one()
                    session.add(BuildRow(digest=f"{number}-{turn}", name="a", system_info=""))

        assert in_threads(2, read_then_write) == []

        assert builds(database) == 50

    def test_a_reader_sees_the_state_before_an_open_write(self, database: Engine) -> None:
        with writing(database) as session:
            session.add(BuildRow(digest="a", name="a", system_info=""))
            session.flush()

            assert builds(database) == 0

    def test_rows_must_refer_to_rows_that_exist(self, database: Engine) -> None:
        add_machine(database)

        with (
            pytest.raises(Exception, match=r"(?i)foreign key"),
            writing(database) as session,
        ):
            session.execute(text("UPDATE machine SET hardware_key = 'nowhere'"))


def test_the_databases_clock_has_fractions_and_moves_within_a_transaction(
    database: Engine,
) -> None:
    with writing(database) as session:
        first = session.scalars(select(now())).one()
        readings = {first}
        # SQLite's clock ticks in milliseconds; a thousand statements take longer than one tick.
        for _ in range(1000):
            readings.add(session.scalars(select(now())).one())
            if len(readings) > 1:
                break

    assert len(readings) > 1
    assert 1.7e9 < first < 1e10
