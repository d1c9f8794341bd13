"""Waiting for a server without losing sight of the lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from typing import TypeVar

LISTEN_S = 1.0
THREAD = "asking"
_LEAST_S = 0.02

T = TypeVar("T")
# Yields None at least every LISTEN_S, so that the caller can look at its lease, then returns.
Waiting = Generator[None, None, T]


def beside(call: Callable[[], T], deadline: float, look: Callable[[], None]) -> Waiting[T]:
    """Run a blocking call in a thread and return its result, or raise what it raises.

    look is called after every silence, and at `deadline` (time.monotonic); what it raises ends the
    wait.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    while not wait([future], min(LISTEN_S, max(deadline - time.monotonic(), _LEAST_S))).done:
        look()
        yield None
    return future.result()


def result_of(waiting: Waiting[T]) -> T:
    """Return what is waited for, without looking at anything meanwhile."""
    while True:
        try:
            next(waiting)
        except StopIteration as stop:
            result: T = stop.value
            return result
