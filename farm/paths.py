"""Where things lie: shipped resources, and the farm's own state folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

from farm.errors import InfrastructureError

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """Return the shipped folder `configs` or `migrations`, in a checkout or an installed wheel."""
    packaged = _PACKAGE / "_resources" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def home() -> Path:
    """Return the farm's state folder: `FARM_HOME`, or the user's data folder for specfarm."""
    configured = os.environ.get("FARM_HOME")
    return Path(configured).resolve() if configured else _own("FARM_HOME", user_data_path)


def cache() -> Path:
    """Return the folder for what can be made again (compiled builds, digests)."""
    configured = os.environ.get("FARM_CACHE")
    return Path(configured).resolve() if configured else _own("FARM_CACHE", user_cache_path)


def _own(variable: str, folder_of: Callable[[str], Path]) -> Path:
    try:
        return folder_of("specfarm")
    except RuntimeError:
        raise InfrastructureError(
            f"This user has no home folder; set {variable} to a folder that it can write to."
        ) from None
