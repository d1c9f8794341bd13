"""The farm's own background processes on this host: started, found again, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from farm.errors import InfrastructureError

STOP_LIMIT_S = 20.0


@dataclass(frozen=True)
class Background:
    """A named process of one farm home, noted in a file with its start time, so that a process
    that later got the same id is never taken for it."""

    home: Path
    name: str

    @property
    def log(self) -> Path:
        """Return the process's log file."""
        return self.home / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """Return the process id, None where it does not run."""
        process = self._process()
        return process.pid if process else None

    def start(self, arguments: list[str]) -> bool:
        """Run `python -m farm.cli.app ARGUMENTS` detached; False where it runs already."""
        if self._process():
            return False
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "farm.cli.app", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"FARM_HOME": str(self.home)},
            )
        noted = {"pid": process.pid, "started_at": psutil.Process(process.pid).create_time()}
        self._note.write_text(json.dumps(noted))
        return True

    def stop(self) -> bool:
        """Ask the process to end and wait; return whether one was running.

        Past STOP_LIMIT_S it is killed: what it was doing is safe in the database.
        """
        process = self._process()
        if process is None:
            self._note.unlink(missing_ok=True)
            return False
        try:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except psutil.TimeoutExpired:
                children = process.children(recursive=True)
                process.kill()
                for child in children:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
        except psutil.NoSuchProcess:
            pass
        except psutil.AccessDenied:
            raise InfrastructureError(
                f"The {self.name} (process {process.pid}) belongs to another user; stop it there."
            ) from None
        self._note.unlink(missing_ok=True)
        return True

    @property
    def _note(self) -> Path:
        return self.home / f"{self.name}.pid"

    def _process(self) -> psutil.Process | None:
        try:
            noted = json.loads(self._note.read_text())
            process = psutil.Process(noted["pid"])
            alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
            same = abs(process.create_time() - noted["started_at"]) < 1.0
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return None
        return process if alive and same else None
