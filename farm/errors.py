"""Every error a user can meet: one small tree, one sentence each, an exit code per branch.

The message says what is wrong and what to do next. The CLI prints it on stderr and exits with
`exit_code`; nothing else in the project prints or exits.
"""


class SpecfarmError(Exception):
    """Base of the tree; never raised itself."""

    exit_code = 1


class UserError(SpecfarmError):
    """The request is wrong: a bad sweep, a missing or broken file, an incompatible pair."""

    exit_code = 2


class InfrastructureError(SpecfarmError):
    """The ground is missing: no broker, a database at another migration, a full disk."""

    exit_code = 3


class ResourceError(SpecfarmError):
    """The machine is too small: memory or disk below what the request needs."""

    exit_code = 4


class BenchmarkError(SpecfarmError):
    """A benchmark ran and failed; `kind` and `log_tail` are what the job's row records."""

    exit_code = 5

    def __init__(self, kind: str, message: str, log_tail: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.log_tail = log_tail
