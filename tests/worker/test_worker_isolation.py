"""Real children under the rules: what they try and the kernel refuses, and what they must do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from worker import isolation
from worker.confine.program import has_cuda
from worker.isolation import Policy

HELD = isolation.describe()
ABI = int(HELD.split()[1].rstrip(";")) if HELD.startswith("landlock") else 0
needs_landlock = pytest.mark.skipif(ABI == 0, reason=f"this kernel has no Landlock: {HELD}")
needs_seccomp = pytest.mark.skipif(
    "+ seccomp" not in HELD, reason=f"this machine has no seccomp: {HELD}"
)

TRY = """
import ctypes, errno, os, socket, subprocess, sys
from pathlib import Path
model, private, port, own_port = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
try:
    {attempt}
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    print("done")
"""
FASTOPEN = 0x20000000
IO_URING = """
    if ctypes.CDLL(None, use_errno=True).syscall(425, 8, (ctypes.c_char * 120)()) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
"""
BY_A_CHILD = """
    if subprocess.run(["cat", private], stdout=-3, stderr=-3).returncode:
        raise PermissionError(errno.EACCES, "cat")
"""


@dataclass(frozen=True)
class Place:
    """A model, something private beside it, and two ports: one that listens, one to serve on."""

    model: Path
    private: Path
    listening: int
    free: int

    def run(self, attempt: str, rules: Policy | None) -> str:
        """Return what came of an attempt: "done" or the error's name."""
        program = TRY.format(attempt=attempt)
        place = [str(self.model), str(self.private), str(self.listening), str(self.free)]
        command = [sys.executable, "-I", "-c", program, *place]
        if rules is not None:
            command = isolation.confined(command, rules)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    model = tmp_path / "models" / "target.gguf"
    private = tmp_path / "someone" / ".ssh" / "id"
    for path in (model, private, model.with_name("other.gguf")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("GGUF")
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = listening.getsockname()[1], free.getsockname()[1]
        free.close()
        yield Place(model, private, *ports)


@needs_landlock
@pytest.mark.parametrize(
    "attempt",
    [
        "private.read_text()",
        "list(private.parent.iterdir())",
        "model.with_name('other.gguf').read_text()",
        "model.write_text('x')",
        "model.open('r+').close()",
        "os.truncate(model, 0)",
        "model.unlink()",
        "model.rename(model.with_name('moved.gguf'))",
        "model.with_name('new').write_text('x')",
        "(model.parent / 'folder').mkdir()",
        "(model.parent / 'link').symlink_to(private)",
        BY_A_CHILD,
    ],
)
def test_files_that_are_not_the_jobs_are_refused(place: Place, attempt: str):
    assert place.run(attempt, isolation.policy([place.model])) == "EACCES"
    assert place.model.read_text() == "GGUF"
    assert place.run(attempt, None) == "done"


@needs_landlock
@pytest.mark.parametrize(
    "attempt",
    [
        "model.read_text()",
        "Path(os.__file__).read_text()",
        "Path('/etc/passwd').read_text()",
        "Path('/proc/self/status').read_text()",
        "Path('/dev/null').write_text('x')",
        "(shared := Path('/dev/shm') / f'farm-{os.getpid()}').write_text('x'), shared.unlink()",
        "socket.socketpair()",
        "subprocess.run(['true'], check=True)",
    ],
)
def test_what_a_job_needs_is_left_to_it(place: Place, attempt: str):
    assert place.run(attempt, isolation.policy([place.model])) == "done"


@needs_landlock
def test_a_model_is_read_through_links_and_with_all_its_parts(place: Place):
    blobs = place.model.parent / "blobs"
    blobs.mkdir()
    snapshot = place.model.parent / "snapshot"
    snapshot.mkdir()
    for part in (1, 2, 3):
        (blobs / str(part)).write_text("GGUF")
        (snapshot / f"m-{part:05d}-of-00003.gguf").symlink_to(blobs / str(part))
    first = replace(place, model=snapshot / "m-00001-of-00003.gguf")
    rules = isolation.policy([first.model])

    others = "[model.with_name(f'm-0000{part}-of-00003.gguf').read_text() for part in (1, 2, 3)]"
    assert first.run(others, rules) == "done"
    assert first.run("list(model.parent.iterdir())", rules) == "EACCES"


@needs_seccomp
@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('127.0.0.1', port))",
        "socket.socket(socket.AF_INET6)",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        IO_URING,
    ],
    ids=["tcp", "tcp6", "udp", "netlink", "io_uring"],
)
def test_a_child_that_serves_nothing_has_no_network(place: Place, attempt: str):
    assert place.run(attempt, isolation.policy([place.model])) == "EACCES"
    assert place.run(attempt, None) in ("done", "EPERM", "ENOSYS")


@needs_seccomp
@pytest.mark.skipif(has_cuda(), reason="CUDA speaks to its daemons over unix sockets")
def test_a_child_reaches_no_daemon_by_a_unix_socket(place: Place):
    path = place.private.parent / "d"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()
        attempt = "socket.socket(socket.AF_UNIX).connect(str(private.with_name('d')))"
        assert place.run(attempt, isolation.policy([place.model])) == "EACCES"
        assert place.run(attempt, None) == "done"


@needs_seccomp
@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('127.0.0.1', port))",
        f"socket.socket().sendto(b'x', {FASTOPEN}, ('127.0.0.1', port))",
        f"socket.socket().sendmsg([b'x'], [], {FASTOPEN}, ('127.0.0.1', port))",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "socket.create_server(('127.0.0.1', 0))",
    ],
    ids=["connect", "fast open", "fast open by sendmsg", "udp", "another port"],
)
def test_a_server_connects_to_nobody(place: Place, attempt: str):
    if "create_server" in attempt and ABI < 4:
        pytest.skip("Landlock knows ports from ABI 4 on")
    rules = isolation.policy([place.model], port=place.free)

    assert place.run(attempt, rules) == "EACCES"
    assert place.run(attempt, None) == "done"


@needs_seccomp
def test_a_server_has_no_stream_that_landlock_does_not_know(place: Place):
    rules = isolation.policy([place.model], port=place.free)

    assert place.run("socket.socket(proto=262)", rules) == "EACCES"


@needs_landlock
def test_a_server_serves_on_its_port(place: Place):
    attempt = (
        "server = socket.create_server(('127.0.0.1', own_port)); server.setblocking(False)\n"
        "    try: server.accept()\n"
        "    except BlockingIOError: pass"
    )

    assert place.run(attempt, isolation.policy([place.model], port=place.free)) == "done"


@pytest.mark.skipif(ABI < 6, reason="Landlock knows signals from ABI 6 on")
def test_a_child_can_not_signal_its_worker(place: Place):
    assert place.run("os.kill(os.getppid(), 0)", isolation.policy([place.model])) == "EPERM"


def test_the_farms_settings_stay_with_the_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FARM_DATABASE_URL", "postgresql://farm:secret@host/farm")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    environment = isolation.environment()

    assert environment["OMP_NUM_THREADS"] == "3"
    assert not any("secret" in value for value in environment.values())


@needs_landlock
def test_the_farms_own_folder_is_closed_wherever_it_lies(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(isolation, "_CLOSED", ())
    monkeypatch.setenv("HOME", str(place.model.parent))
    allowed = isolation.policy([place.model])
    monkeypatch.setenv("FARM_HOME", str(place.private.parent))

    assert place.run("private.read_text()", allowed) == "done"
    assert place.run("private.read_text()", isolation.policy([place.model])) == "EACCES"


@needs_landlock
def test_libraries_are_read_beside_a_model_and_below_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    rocm = place.model.parent / "rocm"
    library = rocm / "lib" / "librocblas.so"
    library.parent.mkdir(parents=True)
    library.touch()
    beside = replace(place, model=library.with_name("target.gguf"))
    beside.model.touch()
    both = [place.model, beside.model]
    monkeypatch.setattr(isolation, "_CLOSED", ())
    monkeypatch.setenv("HOME", str(place.private.parent))

    attempt = "(model.parent / 'rocm' / 'lib' / 'librocblas.so').read_text()"
    assert place.run(attempt, isolation.policy(both)) == "EACCES"
    monkeypatch.setattr(isolation, "_SYSTEM", (str(rocm),))
    assert place.run(attempt, isolation.policy(both)) == "done"
    assert place.run("private.read_text()", isolation.policy(both)) == "EACCES"


@pytest.mark.parametrize(
    ("folder", "closed"),
    [
        ("/", False),
        ("/opt", False),
        ("/opt/models", True),
        ("/usr", False),
        ("/usr/lib/x86_64-linux-gnu", False),
        ("/usr/local", False),
        ("/usr/local/lib", False),
        ("/usr/local/models", True),
        ("/var/lib/ollama", True),
    ],
)
def test_a_models_folder_is_closed_unless_it_holds_the_system(folder: str, closed: bool):
    rules = isolation.policy([Path(folder) / "target.gguf"])

    assert (os.path.realpath(folder) in rules.closed) == closed


def test_a_user_may_have_no_home(place: Place, monkeypatch: pytest.MonkeyPatch):
    def nobody(_uid: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setenv("FARM_HOME", str(place.private.parent))
    monkeypatch.setattr("pwd.getpwuid", nobody)

    assert place.run("model.read_text()", isolation.policy([place.model])) == "done"


@needs_landlock
def test_a_build_whose_libraries_are_links_out_of_its_folder_loads(place: Place):
    """The library that a link leads to, one beside that, and nothing else that lies there."""
    libraries = place.private.parent
    binary = place.model.parents[1] / "build" / "bin" / "llama-server"
    binary.parent.mkdir(parents=True)
    for name in ("libllama.so.0", "libggml.so.0"):
        (libraries / name).write_text("ELF")
    (binary.parent / "libllama.so").symlink_to(libraries / "libllama.so.0")
    rules = isolation.policy([place.model], [binary])

    linked = str(binary.with_name("libllama.so"))
    assert place.run(f"Path({linked!r}).read_text()", rules) == "done"
    assert place.run("private.with_name('libggml.so.0').read_text()", rules) == "done"
    assert place.run("list(private.parent.iterdir())", rules) == "EACCES"
    assert place.run("private.read_text()", rules) == "EACCES"


def test_it_can_be_switched_off_and_says_so(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FARM_ISOLATION", "off")

    assert isolation.describe() == "none: switched off"
    assert place.run("private.read_text()", isolation.policy([place.model])) == "done"


def test_libraries_beside_a_bin_folder_can_be_read(tmp_path: Path):
    server = tmp_path / "release" / "bin" / "llama-server"

    readable = isolation.policy([], [server]).readable

    release = os.path.realpath(tmp_path / "release")
    assert {f"{release}/bin", f"{release}/lib", f"{release}/lib64"} <= set(readable)
    assert release not in readable


def test_what_held_is_read_from_the_log():
    assert isolation.held("isolation: landlock 4 + seccomp\nmain: loading\n").endswith("seccomp")
    assert isolation.held("").startswith("none: ")
