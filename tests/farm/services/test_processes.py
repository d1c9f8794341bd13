from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from farm.services import processes
from farm.services.processes import Background


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    """Return a background process that says what it was started with and waits."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$FARM_HOME: $@"\nexec sleep 600\n')
    script.chmod(0o700)
    monkeypatch.setattr(processes.sys, "executable", str(script))
    background = Background(tmp_path / "home", "worker")
    yield background
    background.stop()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_over(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def note(background: Background, **values: object) -> None:
    background.home.mkdir(exist_ok=True)
    (background.home / "worker.pid").write_text(json.dumps(values))


def test_runs_in_the_background_until_it_is_stopped(worker: Background) -> None:
    assert worker.pid is None

    assert worker.start(["worker"])

    pid = worker.pid
    assert pid is not None
    assert psutil.Process(pid).is_running()
    assert worker.stop()
    assert worker.pid is None
    assert not psutil.pid_exists(pid)


def test_a_second_start_does_nothing(worker: Background) -> None:
    worker.start(["worker"])
    pid = worker.pid

    assert not worker.start(["worker"])

    assert worker.pid == pid


def test_another_object_of_the_same_home_finds_it(worker: Background) -> None:
    worker.start(["worker"])

    assert Background(worker.home, "worker").pid == worker.pid
    assert Background(worker.home, "other").pid is None


def test_its_output_goes_to_a_log_in_its_home(worker: Background) -> None:
    worker.start(["worker", "--flag"])
    until(worker.log.read_text)

    assert worker.log.read_text() == f"{worker.home}: -m farm.cli.app worker --flag\n"


def test_stopping_what_does_not_run_says_so(worker: Background) -> None:
    assert not worker.stop()


def test_another_process_under_the_same_id_is_never_taken_for_it(worker: Background) -> None:
    own = psutil.Process()
    note(worker, pid=own.pid, started_at=own.create_time() - 1000)

    assert worker.pid is None
    assert not worker.stop()
    assert own.is_running()
    assert not (worker.home / "worker.pid").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"started_at": 1}', "null"])
def test_a_broken_note_is_no_process(worker: Background, text: str) -> None:
    worker.home.mkdir()
    (worker.home / "worker.pid").write_text(text)

    assert worker.pid is None
    assert worker.start(["worker"])


def test_a_process_that_ignores_the_request_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, ready = tmp_path / "python", tmp_path / "ready"
    script.write_text(f'#!/bin/sh\ntrap "" TERM\ntouch {ready}\nwhile :; do sleep 600; done\n')
    script.chmod(0o700)
    monkeypatch.setattr(processes.sys, "executable", str(script))
    monkeypatch.setattr(processes, "STOP_LIMIT_S", 0.2)
    stubborn = Background(tmp_path / "home", "worker")
    stubborn.start([])
    pid = stubborn.pid
    assert pid is not None
    until(ready.exists)
    family = [psutil.Process(pid), *psutil.Process(pid).children()]

    assert stubborn.stop()

    assert stubborn.pid is None
    until(lambda: all(is_over(process) for process in family))
