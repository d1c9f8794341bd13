"""The farm's settings: flags > environment > project file > user file > defaults."""

from __future__ import annotations

import os
import socket
import tomllib
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm import paths
from farm.errors import UserError

PROJECT_FILE = "specfarm.toml"
ENVIRONMENT = {
    "broker_url": "FARM_BROKER_URL",
    "database_url": "FARM_DATABASE_URL",
    "machine_name": "FARM_MACHINE_NAME",
    "models_folder": "FARM_MODELS",
    "job_timeout_s": "FARM_JOB_TIMEOUT_S",
    "isolation": "FARM_ISOLATION",
}


class Config(BaseModel):
    """Settings of one farm. An unset broker means the embedded one of `farm up`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    broker_url: str | None = None
    database_url: str = ""
    machine_name: str = ""
    models_folder: Path | None = None
    job_timeout_s: float = Field(default=3600.0, gt=0)
    isolation: Literal["on", "off"] = "on"

    def model_post_init(self, _context: Any) -> None:
        """Fill in what depends on this machine."""
        if not self.database_url:
            file = quote(str(paths.home() / "farm.db"))
            object.__setattr__(self, "database_url", f"sqlite:///{file}")
        if not self.machine_name:
            object.__setattr__(self, "machine_name", socket.gethostname().split(".")[0])


def load(**flags: Any) -> Config:
    """Return the settings in force. Flags that are None do not count.

    Raises UserError on an unreadable file, an unknown key or a wrong type, naming the file.
    """
    values: dict[str, Any] = {}
    for file in (*_user_file(), Path(PROJECT_FILE)):
        values |= _read(file)
    values |= {key: os.environ[name] for key, name in ENVIRONMENT.items() if os.environ.get(name)}
    values |= {key: value for key, value in flags.items() if value is not None}
    return _checked(values)


def _user_file() -> list[Path]:
    try:
        return [platformdirs.user_config_path("specfarm") / "config.toml"]
    except RuntimeError:
        # A container's user may have no home folder.
        return []


def _checked(values: dict[str, Any], place: str = "") -> Config:
    try:
        return Config(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][0])
        where = place or ENVIRONMENT.get(key, key)
        raise UserError(f"The setting '{key}' ({where}) is wrong: {problem['msg']}.") from None


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{file} can't be read: {error}.") from None
    unknown = sorted(set(values) - set(Config.model_fields))
    if unknown:
        raise UserError(
            f"{file}: unknown key '{unknown[0]}'; known are {', '.join(Config.model_fields)}."
        )
    _checked(values, place=str(file))
    return values
