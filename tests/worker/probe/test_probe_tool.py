from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.probe.tool import ToolStatus, run_tool

FakeTool = Callable[[str, str], str]


def test_a_tool_that_ends_gives_its_output_and_exit_code(fake_tool: FakeTool) -> None:
    run = run_tool((fake_tool("report", "echo out; echo noise >&2; exit 3"),), limit_s=5)

    assert run.status is ToolStatus.FINISHED
    assert (run.stdout, run.exit_code) == ("out\n", 3)
    assert not run.succeeded


def test_a_missing_tool_is_missing(tmp_path: Path) -> None:
    assert run_tool((str(tmp_path / "no-such-tool"),), limit_s=5).status is ToolStatus.MISSING


def test_a_file_that_cannot_be_run_is_missing(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("text")

    assert run_tool((str(tmp_path / "plain"),), limit_s=5).status is ToolStatus.MISSING


def test_a_hanging_tool_is_given_up_within_the_limit(
    fake_tool: FakeTool, caplog: pytest.LogCaptureFixture
) -> None:
    hanging = fake_tool("hanging", "echo half; sleep 60")
    start = time.monotonic()

    run = run_tool((hanging,), limit_s=0.2)

    assert time.monotonic() - start < 2
    assert (run.status, run.stdout) == (ToolStatus.TIMED_OUT, "")
    assert "no answer within 0.2 s" in caplog.text


def test_what_a_hanging_tool_started_is_killed_with_it(fake_tool: FakeTool, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    hanging = fake_tool("hanging", f"sleep 60 & echo $! > {pid_file}; wait")

    run_tool((hanging,), limit_s=0.5)

    pid = int(pid_file.read_text())
    deadline = time.monotonic() + 5
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(pid)


def test_output_that_is_not_text_is_still_read(fake_tool: FakeTool) -> None:
    run = run_tool((fake_tool("binary", r"printf 'a\377b'"),), limit_s=5)

    assert run.stdout == "a�b"


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists()
