"""A farm of one machine: a real database, a submitted sweep and a worker's executor."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select

from farm.domain.hardware import Hardware, Machine, MachineKind
from farm.domain.job import Arm, JobState
from farm.services.plan import plan_sweep
from farm.services.submit import submit
from farm.store.database import open_database, reading, writing
from farm.store.jobs import Claim, Claimer, claim
from farm.store.migrate import upgrade
from farm.store.schema import AttemptRow, JobRow, SampleRow
from worker.engines.in_process import InProcessEngine
from worker.execute import Executor
from worker.register import register

MACHINE = Machine(
    "bench-1", Hardware(MachineKind.CPU, "Test CPU", 2, 2, 8 * 1024**3, "x86_64", "x")
)

SWEEP = """\
name: small
pairs:
  - target: target.gguf
    drafts: [draft.gguf]
k: {k}
temperatures: {temperatures}
prompts:
  set: standard
  categories: {categories}
  per_category: {prompts}
generate_tokens: 12
repeats: {repeats}
context_tokens: 1024
threads: 1
gpu_layers: 0
draft_gpu_layers: 0
"""

PROMPTS = 3
SAMPLES = PROMPTS * len(Arm)
TWO_CATEGORIES = ["chat", "code-completion"]


@dataclass
class SmallFarm:
    """What the tests of the executor look at and break."""

    folder: Path
    database: Engine
    claimer: Claimer

    @classmethod
    def create(cls, folder: Path, pair: tuple[Path, Path]) -> SmallFarm:
        """Copy the pair, make the database and register the machine."""
        for path, name in zip(pair, ("target.gguf", "draft.gguf"), strict=True):
            shutil.copy(path, folder / name)
        database = open_database(f"sqlite:///{folder / 'farm.db'}")
        # The farm waits half a minute for a lock; a fault in a test need not last so long.
        event.listen(database, "connect", lambda raw, _: raw.execute("PRAGMA busy_timeout=20"))
        upgrade(database)
        return cls(folder, database, register(database, MACHINE))

    def close(self) -> None:
        """Let go of the database."""
        self.database.dispose()

    def submit(
        self,
        k: list[int],
        categories: list[str],
        prompts: int = 3,
        repeats: int = 1,
        temperatures: float = 0.0,
        more: str = "",
    ) -> None:
        """Submit a sweep. more: lines for its end."""
        sweep = self.folder / "sweep.yaml"
        sweep.write_text(
            SWEEP.format(
                k=k,
                categories=categories,
                prompts=prompts,
                repeats=repeats,
                temperatures=temperatures,
            )
            + more
        )
        submit(self.database, plan_sweep(sweep))

    def executor(self, models_folder: Path | None = None, job_timeout_s: float = 300) -> Executor:
        """Return a worker's executor, as a fresh process would have one."""
        return Executor(
            self.database, self.claimer, self.folder / "home", models_folder, job_timeout_s
        )

    def claim(self) -> Claim:
        """Lease the next job."""
        with writing(self.database) as session:
            claimed = claim(session, self.claimer)
        assert claimed is not None
        return claimed

    def jobs(self) -> list[JobRow]:
        """Return the jobs."""
        return self._all(select(JobRow).order_by(JobRow.id))

    def states(self) -> list[JobState]:
        """Return the jobs' states."""
        return [JobState(job.state) for job in self.jobs()]

    def attempts(self) -> list[AttemptRow]:
        """Return every attempt, oldest first."""
        return self._all(select(AttemptRow).order_by(AttemptRow.id))

    def samples(self, **of: Any) -> list[SampleRow]:
        """Return the samples in the order in which they came; of: columns' values."""
        return self._all(select(SampleRow).filter_by(**of).order_by(SampleRow.id))

    def everything(self) -> list[list[Any]]:
        """Return jobs, attempts and samples as plain values, to compare."""
        with reading(self.database) as session:
            return [
                [tuple(row) for row in session.execute(select(table.__table__))]
                for table in (JobRow, AttemptRow, SampleRow)
            ]

    def sql(self, statement: str) -> None:
        """Change the database behind the worker's back, waiting for its locks."""
        path = self.folder / "farm.db"
        with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as other:
            other.execute(statement)

    @property
    def spooled(self) -> list[Path]:
        """Return the spool's files."""
        return sorted((self.folder / "home" / "spool").glob("*.jsonl"))

    def lock(self) -> sqlite3.Connection:
        """Take the database's write lock, as another program may: every write fails."""
        other = sqlite3.connect(
            self.folder / "farm.db", isolation_level=None, check_same_thread=False
        )
        other.execute("BEGIN IMMEDIATE")
        return other

    def _all(self, query: Any) -> list[Any]:
        with reading(self.database) as session:
            rows = list(session.scalars(query))
            session.expunge_all()
        return rows


@contextmanager
def tapped(callback: Callable[[InProcessEngine, int], None]) -> Iterator[None]:
    """Call back with the engine and a count before each sample that it hands out is stored.

    The count goes on over jobs and attempts.
    """
    honest = InProcessEngine.run
    count = 0

    def run(self: InProcessEngine, *args: Any) -> Iterator[Any]:
        nonlocal count
        for sample in honest(self, *args):
            if sample is not None:
                count += 1
                callback(self, count)
            yield sample

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcessEngine, "run", run)
        yield


def kill(engine: InProcessEngine) -> None:
    """Kill the child as if it had got no further than the sample in hand.

    It may have sent more meanwhile, even all it had to; that is thrown away.
    """
    os.kill(engine._child.pid, signal.SIGKILL)
    lines = engine._child._lines
    while lines.get() is not None:
        pass
    lines.put(None)


def due_again(farm: SmallFarm) -> None:
    """Let the pause before a retry pass."""
    farm.sql("update job set not_before = 0")


def expect_whole(farm: SmallFarm, job_id: int = 1) -> None:
    """Check that the job is done and its last attempt has every sample once."""
    job = farm.jobs()[job_id - 1]
    assert job.state == JobState.DONE
    samples = farm.samples(job_id=job_id, epoch=job.lease_epoch)
    assert Counter((sample.prompt_digest, sample.arm) for sample in samples) == {
        (digest, arm): 1 for digest in job.spec["prompts"] for arm in Arm
    }
