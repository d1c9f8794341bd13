"""The tasks: each wakes a plain function."""

from __future__ import annotations

from collections.abc import Callable

from farm.queue.app import app

WAKE = "specfarm.wake"

_on_wake: Callable[[], object] | None = None


def on_wake(work: Callable[[], object]) -> None:
    """Set what this process does when a doorbell rings."""
    global _on_wake
    _on_wake = work


@app.task(name=WAKE)  # type: ignore[untyped-decorator]
def wake(_job_id: int) -> None:
    """Work off every due job this machine can run."""
    if _on_wake is not None:
        _on_wake()
