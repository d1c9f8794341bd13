"""A failure the child reports by name; the worker stores kind and message with the job."""

from __future__ import annotations


class Failure(Exception):
    """`kind` is one of farm.store.jobs' error kinds; the message is one sentence."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
