"""Samples on disk until SQL has them, so that a database outage or a crash loses none."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from farm.domain.job import Arm
from farm.domain.measurement import Parity, Sample
from farm.errors import InfrastructureError
from farm.store.database import writing
from farm.store.jobs import Claim
from farm.store.results import add_late_samples, add_samples

RETRY_PAUSE_S = 2.0

log = logging.getLogger(__name__)


class Spool:
    """One JSON-lines file per attempt, removed once the attempt is finished in SQL."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[Sample] = []

    def keep(self, claim: Claim, sample: Sample) -> None:
        """Append a sample to the attempt's file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._file(claim.job_id, claim.epoch).open("a") as file:
            file.write(json.dumps(asdict(sample)) + "\n")
        self._waiting.append(sample)

    def flush(self, database: Engine, claim: Claim, patience_s: float) -> bool:
        """Store what waits; False when the lease was lost.

        An unreachable database leaves the samples waiting and is tried again for patience_s;
        past a patience above 0 its InfrastructureError is raised.
        """
        give_up = time.monotonic() + patience_s
        while True:
            try:
                with writing(database) as session:
                    held = add_samples(session, claim, self._waiting)
                self._waiting.clear()
                return held
            except InfrastructureError as error:
                log.warning("%d samples wait on disk: %s", len(self._waiting), error)
                if patience_s <= 0:
                    return True
                if time.monotonic() >= give_up:
                    raise
                time.sleep(RETRY_PAUSE_S)

    def forget(self, claim: Claim) -> None:
        """Remove a finished attempt's file."""
        self._waiting.clear()
        self._file(claim.job_id, claim.epoch).unlink(missing_ok=True)

    def replay(self, database: Engine) -> int:
        """Store what earlier attempts left on disk, under those attempts; return how many.

        Their jobs may have run again since: the attempt's epoch keeps the samples apart.
        """
        self._waiting.clear()
        replayed = 0
        for file in sorted(self._folder.glob("*.jsonl")):
            job_id, epoch = map(int, file.stem.split("-"))
            samples = [_sample(line) for line in file.read_text().splitlines() if _whole(line)]
            with writing(database) as session:
                add_late_samples(session, job_id, epoch, samples)
            file.unlink()
            replayed += len(samples)
        return replayed

    def _file(self, job_id: int, epoch: int) -> Path:
        return self._folder / f"{job_id}-{epoch}.jsonl"


def _whole(line: str) -> bool:
    # A crash can cut the last line short.
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _sample(line: str) -> Sample:
    values: dict[str, Any] = json.loads(line)
    for name in ("accepted_per_position", "drafted_per_position", "output_ids"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Sample(**values | {"arm": Arm(values["arm"]), "parity": Parity(values["parity"])})
