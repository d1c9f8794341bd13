"""Which queue a job's doorbell rings in, and which queues a machine listens to."""

from __future__ import annotations

from farm.domain.hardware import Machine

ANY = "any"


def selectors_of(machine: Machine) -> tuple[str, ...]:
    """Return the machine selectors that a machine satisfies, as `JobSpec.machine` spells them."""
    return (ANY, f"kind:{machine.hardware.kind.value}", f"name:{machine.name}")


def queue_of(selector: str) -> str:
    """Return the queue for a selector; a queue's name is its selector."""
    return selector.replace(":", ".")
