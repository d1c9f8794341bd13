"""Memory: how much is installed, and how much a new process could take now."""

from __future__ import annotations

from pathlib import Path

import psutil

from worker.probe.cgroup import read_cgroup_limits

MEMORY_BLOCKS = Path("/sys/devices/system/memory")


def installed_memory_bytes(blocks: Path = MEMORY_BLOCKS) -> int | None:
    """Return installed memory as lsmem counts it, None where the kernel does not list its blocks.

    MemTotal leaves out what the kernel reserves for itself, which differs from version to version
    and would move a machine's identity.
    """
    try:
        block_bytes = int((blocks / "block_size_bytes").read_text(), 16)
        states = [(block / "online").read_text() for block in blocks.glob("memory[0-9]*")]
    except (OSError, ValueError):
        return None
    return block_bytes * sum(state.strip() == "1" for state in states) or None


def available_memory_bytes() -> int | None:
    """Return the memory a new process could take without swapping, under a container's limit."""
    try:
        machine = psutil.virtual_memory().available
    except (psutil.Error, OSError):
        return None
    container = read_cgroup_limits().memory_available_bytes
    return machine if container is None else min(machine, container)
