"""Supervising a child, with small programs that do what children do when things go wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from farm.errors import BenchmarkError
from worker import process as process_module
from worker.child import Child
from worker.process import LOG_TAIL_BYTES

PATIENCE_S = 30.0
"""How long a test waits for what must happen; nothing waits that long unless it fails."""

Start = Callable[[str], Child]


def soon() -> float:
    return time.monotonic() + PATIENCE_S


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose no time on children that are known to outlive any grace."""
    monkeypatch.setattr(process_module, "END_GRACE_S", 0.1)


@pytest.fixture
def long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give children that end by themselves all the time they take."""
    monkeypatch.setattr(process_module, "END_GRACE_S", PATIENCE_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a starter of Python programs; all of them are ended afterwards."""
    children: list[Child] = []

    def run(program: str) -> Child:
        prelude = "import json, os, signal, subprocess, sys, time\n"
        command = [sys.executable, "-u", "-c", prelude + program]
        children.append(Child(command, tmp_path / "logs" / f"{len(children)}.log"))
        return children[-1]

    yield run
    for child in children:
        child.kill()


def wait_gone(pid: int) -> bool:
    """Say whether a process ends (or is a zombie nobody waits for) within PATIENCE_S."""
    deadline = soon()
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def receive(child: Child) -> dict[str, object]:
    message = child.receive(soon())
    assert message is not None
    return message


def test_messages_go_both_ways_in_order(start: Start):
    child = start(
        "for line in sys.stdin:\n"
        "    print(json.dumps({'event': 'echo', 'got': json.loads(line)}))\n"
    )

    for number in range(3):
        child.send({"number": number, "text": "ü\n"})

    for number in range(3):
        assert receive(child) == {"event": "echo", "got": {"number": number, "text": "ü\n"}}


def test_a_message_of_a_megabyte_arrives_whole(start: Start):
    child = start("print(json.dumps({'event': 'big', 'ids': [7] * 300_000}))")

    assert receive(child)["ids"] == [7] * 300_000


@pytest.mark.parametrize(
    "written", ["llama_model_load: loaded", '{"no": "event"}', "[1, 2]", '{"event": "cut', "\\xff"]
)
def test_a_line_that_is_no_message_is_garbage_and_is_quoted(start: Start, written: str):
    child = start(f"print({written!r}); time.sleep(60)")

    with pytest.raises(BenchmarkError) as caught:
        child.receive(soon())

    assert caught.value.kind == "garbage"
    assert repr(written) in str(caught.value)


def test_bytes_that_are_no_text_are_garbage(start: Start):
    child = start("sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush(); time.sleep(60)")

    with pytest.raises(BenchmarkError) as caught:
        child.receive(soon())

    assert caught.value.kind == "garbage"


@pytest.mark.parametrize("status", [0, 1, 7])
def test_a_child_that_ends_is_crashed_with_its_exit_status(start: Start, status: int):
    child = start(f"sys.exit({status})")

    with pytest.raises(BenchmarkError, match=f"ended with exit status {status}") as caught:
        child.receive(soon())

    assert caught.value.kind == "crashed"


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGTERM"])
def test_a_crash_names_its_signal(start: Start, name: str):
    child = start(f"os.kill(os.getpid(), signal.{name}); time.sleep(60)")

    with pytest.raises(BenchmarkError, match=f"crashed with {name}") as caught:
        child.receive(soon())

    assert caught.value.kind == "crashed"


def test_a_kill_by_someone_else_counts_as_out_of_memory(start: Start):
    child = start("os.kill(os.getpid(), signal.SIGKILL)")

    with pytest.raises(BenchmarkError, match="memory") as caught:
        child.receive(soon())

    assert caught.value.kind == "out-of-memory"


def test_messages_sent_before_a_crash_are_still_received(start: Start):
    child = start('print(\'{"event": "one"}\'); os.kill(os.getpid(), signal.SIGSEGV)')

    assert receive(child) == {"event": "one"}
    with pytest.raises(BenchmarkError, match="SIGSEGV"):
        child.receive(soon())


def test_a_child_that_dies_in_the_middle_of_a_message_crashed_and_wrote_no_garbage(start: Start):
    child = start(
        'sys.stdout.write(\'{"event": "sam\'); sys.stdout.flush();'
        "os.kill(os.getpid(), signal.SIGKILL)"
    )

    with pytest.raises(BenchmarkError) as caught:
        child.receive(soon())

    assert caught.value.kind == "out-of-memory"


@pytest.mark.parametrize("program", ["os.close(1)", "os.close(1); os.close(0)"])
def test_a_child_that_closes_its_output_and_lives_on_is_ended(
    start: Start, short_grace: None, program: str
):
    child = start(f"{program}; time.sleep(600)")

    with pytest.raises(BenchmarkError, match="closed its pipes") as caught:
        child.receive(soon())

    assert caught.value.kind == "crashed"
    assert not child.is_running


def test_a_silent_child_gives_nothing_at_the_deadline_and_goes_on(start: Start):
    child = start(
        'line = sys.stdin.readline(); print(\'{"event": "late"}\', flush=True); time.sleep(60)'
    )

    assert child.receive(time.monotonic() + 0.05) is None
    assert child.receive(time.monotonic() - 5) is None
    assert child.is_running
    child.send({})
    assert receive(child) == {"event": "late"}


FAMILY = """
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(json.dumps({"event": "born", "pid": grandchild.pid}))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["end", "kill"])
def test_a_hanging_child_is_ended_with_its_whole_group(start: Start, short_grace: None, how: str):
    child = start(FAMILY)
    grandchild = receive(child)["pid"]
    assert psutil.pid_exists(grandchild)

    getattr(child, how)()

    assert not child.is_running
    assert wait_gone(grandchild)


def test_a_crashed_childs_orphans_are_ended_too(start: Start):
    child = start(FAMILY.replace("while True:", "os.kill(os.getpid(), signal.SIGSEGV)\nwhile 1:"))
    grandchild = receive(child)["pid"]
    assert wait_gone(child.pid)

    child.end()

    assert wait_gone(grandchild)


def test_a_child_that_listens_ends_by_itself_when_its_input_closes(
    start: Start, long_grace: None, tmp_path: Path
):
    child = start(f"sys.stdin.read(); open({str(tmp_path / 'clean')!r}, 'w').close()")

    child.end()

    assert (tmp_path / "clean").exists()
    assert not child.is_running


@pytest.mark.parametrize("how", ["end", "kill"])
def test_ending_twice_is_harmless(start: Start, how: str):
    child = start("time.sleep(60)")

    child.kill()
    getattr(child, how)()
    getattr(child, how)()

    assert not child.is_running


def test_sending_to_a_dead_child_says_how_it_died(start: Start):
    child = start("os.kill(os.getpid(), signal.SIGSEGV)")
    assert wait_gone(child.pid)

    with pytest.raises(BenchmarkError, match="SIGSEGV") as caught:
        child.send({"do": "run"})

    assert caught.value.kind == "crashed"


def test_the_log_keeps_what_went_to_stderr_and_shows_its_end(start: Start):
    child = start("sys.stderr.write('first\\n' + 'x' * 9000 + '\\nlast words\\n'); sys.exit(1)")
    with pytest.raises(BenchmarkError):
        child.receive(soon())

    tail = child.log_tail()

    assert tail.endswith("last words\n")
    assert len(tail) == LOG_TAIL_BYTES
    assert "first" not in tail


def test_a_short_log_is_shown_whole_whatever_its_bytes(start: Start):
    child = start("sys.stderr.buffer.write(b'a\\xffb'); sys.exit(1)")
    with pytest.raises(BenchmarkError):
        child.receive(soon())

    assert child.log_tail() == "a\ufffdb"


def test_a_log_that_was_removed_is_empty(start: Start, tmp_path: Path):
    child = start("time.sleep(60)")
    (tmp_path / "logs" / "0.log").unlink()

    assert child.log_tail() == ""


def test_the_childs_own_stdout_and_log_do_not_mix(start: Start):
    child = start("sys.stderr.write('log\\n'); print(json.dumps({'event': 'wire'}))")

    assert receive(child) == {"event": "wire"}
    assert child.log_tail() == "log\n"
