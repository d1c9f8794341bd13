from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from farm import paths
from farm.errors import InfrastructureError


@pytest.mark.parametrize(
    ("variable", "folder"), [("FARM_HOME", paths.home), ("FARM_CACHE", paths.cache)]
)
def test_a_user_without_a_home_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, folder: Callable[[], Path]
) -> None:
    def nobody(_uid: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", variable):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)

    with pytest.raises(InfrastructureError, match=f"no home folder; set {variable} "):
        folder()
    monkeypatch.setenv(variable, str(tmp_path))
    assert folder() == tmp_path.resolve()
