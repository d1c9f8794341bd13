"""The most memory a process has held so far, where the system keeps count of it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path


def high_water_bytes(process: int | str = "self") -> int | None:
    """Return a process's peak of resident memory, None where it is not told or there is none."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text()
        if peak := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
            return int(peak[1]) * 1024
    return None
