"""A model file's identity: its sha256, the value model hubs publish, remembered between calls."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from farm.errors import UserError
from farm.paths import cache

_CHUNK_BYTES = 4 * 1024 * 1024


def digest_of(path: Path | str, progress: Callable[[int, int], None] | None = None) -> str:
    """Return the sha256 of a file as 64 hex digits.

    A digest is remembered for (resolved path, size, mtime), so an unchanged file is read once.
    progress is called with bytes done and bytes in all, only while reading. Raises: UserError
    where the file cannot be read or changes under the reader.
    """
    try:
        file = Path(path).resolve(strict=True)
        if file.is_dir():
            raise UserError(f"{path} is a folder; give the .gguf file in it.")
        key = _key(file)
        known = _remembered(file, key)
        if known is not None:
            return known
        digest = _read(file, key["bytes"], progress)
        if _key(file) != key:
            raise UserError(f"{path} changed while it was read; wait for its download to end.")
    except FileNotFoundError:
        raise UserError(f"There is no file {path}; check the path.") from None
    except PermissionError:
        raise UserError(f"{path} may not be read by this user; change its permissions.") from None
    _remember(file, key | {"sha256": digest})
    return digest


def _key(file: Path) -> dict[str, int]:
    status = file.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read(file: Path, total: int, progress: Callable[[int, int], None] | None) -> str:
    digest, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        # Never past the size at the start: a file still downloading would be chased to its end.
        while chunk := stream.read(min(_CHUNK_BYTES, total - done)):
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    return digest.hexdigest()


def _entry(file: Path) -> Path:
    # One small file per model: two writers never share one, so replacing it whole is enough.
    name = hashlib.sha256(os.fsencode(file)).hexdigest()[:32]
    return cache() / "digests" / f"{name}.json"


def _remembered(file: Path, key: dict[str, int]) -> str | None:
    try:
        entry = json.loads(_entry(file).read_text())
        digest = entry["sha256"]
        fresh = entry["path"] == str(file) and all(entry[name] == key[name] for name in key)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return digest if fresh and isinstance(digest, str) and len(digest) == 64 else None


def _remember(file: Path, entry: dict[str, int | str]) -> None:
    target = _entry(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".digest-")
    except OSError:
        return  # A cache that cannot be written costs time, not correctness.
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "w") as stream:
            json.dump({"path": str(file), **entry}, stream)
        unfinished.replace(target)
    except OSError:
        pass
    finally:
        unfinished.unlink(missing_ok=True)
