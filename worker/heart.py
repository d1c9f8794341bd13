"""Renewing a job's lease while it runs, and noticing when it is lost."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from sqlalchemy import Engine

from farm.errors import InfrastructureError
from farm.store import jobs
from farm.store.database import writing


class Heart:
    """Beats in a thread while the context is open. `lost` is set when the job was taken away, or
    when the database has not answered for a whole lease."""

    def __init__(
        self, engine: Engine, claim: jobs.Claim, every_s: float = jobs.HEARTBEAT_SECONDS
    ) -> None:
        self._engine = engine
        self._claim = claim
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self.lost = threading.Event()

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        renewed_at = time.monotonic()
        while not self._stop.wait(self._every_s):
            try:
                with writing(self._engine) as session:
                    held = jobs.heartbeat(session, self._claim)
                renewed_at = time.monotonic()
            except InfrastructureError:
                held = time.monotonic() - renewed_at < jobs.LEASE_SECONDS
            if not held:
                self.lost.set()
                return
