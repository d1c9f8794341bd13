"""Writing the reports: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from farm.errors import InfrastructureError


def write_atomically(path: Path, text: str) -> Path:
    """Write text beside `path` first, then move it into place.

    Raises InfrastructureError where the folder can't be made or written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise InfrastructureError(
            f"The report {path} can't be written ({error.strerror}); choose another folder."
        ) from error
    return path
