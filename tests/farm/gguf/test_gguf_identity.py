from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farm.errors import UserError
from farm.gguf.identity import digest_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_CACHE", str(tmp_path / "cache"))


def _file(folder: Path, content: bytes = b"weights") -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


def test_is_the_sha256_and_is_remembered(tmp_path: Path) -> None:
    path, seen = _file(tmp_path), []
    expected = hashlib.sha256(b"weights").hexdigest()
    assert digest_of(path, lambda done, total: seen.append((done, total))) == expected
    assert seen == [(7, 7)]
    assert digest_of(path, lambda done, total: seen.append((done, total))) == expected
    assert len(seen) == 1


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = _file(tmp_path)
    before = digest_of(path)
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(1, 1))
    assert digest_of(path) != before


def test_a_broken_cache_entry_is_read_over(tmp_path: Path) -> None:
    path = _file(tmp_path)
    expected = digest_of(path)
    (entry,) = (tmp_path / "cache" / "digests").glob("*.json")
    for broken in ("", "[]", "{", '{"path": 1}'):
        entry.write_text(broken)
        assert digest_of(path) == expected


def test_writers_at_once_leave_one_whole_entry(tmp_path: Path) -> None:
    path = _file(tmp_path, os.urandom(1 << 20))
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(digest_of, [path] * 32))) == 1
    assert len(list((tmp_path / "cache" / "digests").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()
    monkeypatch.setenv("FARM_CACHE", str(blocked))
    assert digest_of(_file(tmp_path)) == hashlib.sha256(b"weights").hexdigest()


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        digest_of(tmp_path / "nothing")
    with pytest.raises(UserError, match="folder"):
        digest_of(tmp_path)


def test_a_file_still_growing_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path)

    def grow(done: int, total: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(UserError, match="changed while it was read"):
        digest_of(path, grow)
