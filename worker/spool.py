"""Samples on disk until SQL has them, so that a database outage or a crash loses none."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from farm.domain.job import Arm
from farm.domain.measurement import Parity, Sample
from farm.errors import InfrastructureError
from farm.store.database import writing
from farm.store.jobs import Claim
from farm.store.queries import attempted_key
from farm.store.results import add_late_samples, add_samples

RETRY_PAUSE_S = 2.0
KEY_DIGITS = 16

log = logging.getLogger(__name__)


class Spool:
    """One JSON-lines file per attempt, removed once the attempt is finished in SQL."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._claim: Claim | None = None
        self._waiting: list[Sample] = []

    def keep(self, claim: Claim, sample: Sample) -> None:
        """Append a sample to the attempt's file.

        What an earlier attempt left waiting stays in its own file, for `replay`.
        """
        if claim != self._claim:
            self._claim, self._waiting = claim, []
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._file(claim).open("a") as file:
            file.write(json.dumps(asdict(sample)) + "\n")
        self._waiting.append(sample)

    def flush(self, database: Engine, claim: Claim, patience_s: float) -> bool:
        """Store what waits; False when the lease was lost.

        An unreachable database leaves the samples waiting and is tried again for patience_s;
        past a patience above 0 its InfrastructureError is raised.
        """
        give_up = time.monotonic() + patience_s
        waiting = self._waiting if claim == self._claim else []
        while True:
            try:
                with writing(database) as session:
                    held = add_samples(session, claim, waiting)
                waiting.clear()
                return held
            except InfrastructureError as error:
                log.warning("%d samples wait on disk: %s", len(waiting), error)
                if patience_s <= 0:
                    return True
                if time.monotonic() >= give_up:
                    raise
                time.sleep(RETRY_PAUSE_S)

    def forget(self, claim: Claim) -> None:
        """Remove a finished attempt's file."""
        self._waiting.clear()
        self._file(claim).unlink(missing_ok=True)

    def replay(self, database: Engine) -> int:
        """Store what earlier attempts left on disk, under those attempts; return how many.

        Their jobs may have run again since: the attempt's epoch keeps the samples apart. Job ids
        mean nothing in another database than the one that gave them: such files are set aside.
        """
        self._waiting.clear()
        replayed = 0
        for file in sorted(self._folder.glob("*.jsonl")):
            samples = [_sample(line) for line in file.read_text().splitlines() if _whole(line)]
            with writing(database) as session:
                attempt = _attempt_of(session, file.stem)
                if attempt is not None:
                    add_late_samples(session, *attempt, samples)
            if attempt is None:
                log.warning("%s holds samples for another database; set aside", file)
                file.rename(file.with_suffix(".foreign"))
                continue
            file.unlink()
            replayed += len(samples)
        return replayed

    def _file(self, claim: Claim) -> Path:
        return self._folder / f"{claim.job_id}-{claim.epoch}-{claim.spec.key[:KEY_DIGITS]}.jsonl"


def _attempt_of(session: Session, stem: str) -> tuple[int, int] | None:
    """Return job id and epoch, None where this database never made that attempt at that job."""
    job_id, epoch, key = stem.split("-")
    known = attempted_key(session, int(job_id), int(epoch))
    return (int(job_id), int(epoch)) if known and known.startswith(key) else None


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
