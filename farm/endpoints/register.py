"""The register of endpoints: servers that run already, known on this machine by a name.

Jobs come over the network and carry names alone, so that no job can make a worker talk to a server
that its own machine has not named. Each is a file under `home()/endpoints`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import socket
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import permutations
from pathlib import Path
from urllib.parse import urlsplit

from farm import paths
from farm.domain.engines import ENDPOINT
from farm.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Api(StrEnum):
    """How a server is spoken to, and so what it can report."""

    LLAMA_SERVER = "llama-server"
    VLLM = "vllm"
    LM_STUDIO = "lm-studio"
    OLLAMA = "ollama"
    OPENAI = "openai"


@dataclass(frozen=True)
class Endpoint:
    """A server and a model of it. url: without "/v1". model: None is the only one it has. api: None
    is found out by asking. draft_model: LM Studio takes one with each request. key_variable: the
    environment variable that holds its key; the key itself is never kept. remote: whether prompts
    may leave for an address outside this machine and its private networks."""

    name: str
    url: str
    model: str | None = None
    draft_model: str | None = None
    api: Api | None = None
    key_variable: str | None = None
    remote: bool = False

    @property
    def place(self) -> str:
        """Return what tells its host and port from others without telling which they are."""
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return hashlib.sha256(f"{parts.hostname}:{port}".encode()).hexdigest()[:12]


def add(endpoint: Endpoint) -> Endpoint:
    """Register an endpoint, in place of an earlier one of its name. Raises UserError."""
    _require_name(endpoint.name)
    if endpoint.key_variable is not None and not _VARIABLE.fullmatch(endpoint.key_variable):
        raise UserError(
            "--key-env takes the name of the environment variable that holds the key, such as "
            "VLLM_API_KEY, not the key itself."
        )
    if endpoint.draft_model is not None and endpoint.api not in (None, Api.LM_STUDIO):
        raise UserError(
            f"{endpoint.api} takes no draft model with a request; LM Studio alone does."
        )
    url = _checked_url(endpoint.url)
    if not endpoint.remote:
        _require_near(url)
    kept = Endpoint(**asdict(endpoint) | {"url": url})
    place = _place(kept.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    written = place.with_suffix(".partial")
    written.write_text(json.dumps(asdict(kept), indent=2) + "\n")
    written.replace(place)
    return kept


def registered() -> list[Endpoint]:
    """Return the endpoints of this machine by name; a file that can't be read is left out."""
    found = [_read(place) for place in sorted(_store().glob("*.json"))]
    return [endpoint for endpoint in found if endpoint is not None]


def find(name: str) -> Endpoint:
    """Return an endpoint. Raises UserError where this machine has none of that name."""
    _require_name(name)
    endpoint = _read(_place(name))
    if endpoint is None:
        known = ", ".join(endpoint.name for endpoint in registered()) or "none"
        raise UserError(
            f"No endpoint '{name}' is registered on this machine (known: {known}); 'farm endpoints "
            f"add {name} URL' does, here and on every machine that is to measure it."
        )
    return endpoint


def remove(name: str) -> None:
    """Forget an endpoint; the server is left alone. Raises UserError where there is none."""
    find(name)
    _place(name).unlink()


def pair_build(baseline: str, speculative: str) -> str:
    """Return what a job calls two endpoints: they stand where a build stands elsewhere."""
    return f"{ENDPOINT}=={baseline}+{speculative}"


def pair_names(build: str) -> tuple[str, str]:
    """Return the names of the baseline and of the speculative endpoint."""
    baseline, _, speculative = build.removeprefix(f"{ENDPOINT}==").partition("+")
    return baseline, speculative


def pair_builds() -> tuple[str, ...]:
    """Return every ordered pair of this machine's endpoints."""
    names = [endpoint.name for endpoint in registered()]
    return tuple(pair_build(*pair) for pair in permutations(names, 2))


def is_near(address: str) -> bool:
    """Say whether an IP address is this machine's own or one of a private network."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return not (mapped or parsed).is_global


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"An endpoint's name has up to 40 letters, digits, '.', '-' and '_'; '{name}' has not."
        )


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"'{url}' is not a URL: {error}.") from None
    if parts.username is not None or parts.password is not None:
        raise UserError(
            "A URL with a user name or password would be stored and shown; leave it out and name "
            "the variable that holds the key with --key-env."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"'{url}' is not a server's URL, such as http://localhost:8000.")
    if parts.query or parts.fragment:
        raise UserError("The URL has more than host, port and path; leave the rest out.")
    return url.rstrip("/").removesuffix("/v1")


def _require_near(url: str) -> None:
    parts = urlsplit(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"The host {parts.hostname} is not known here ({error}); correct it, or add --remote "
            "if prompts may leave for wherever it turns out to be."
        ) from None
    far = [str(address[0]) for *_, address in found if not is_near(str(address[0]))]
    if far:
        raise UserError(
            f"{url} is at {far[0]}, outside this machine and its private networks: prompts would "
            "leave for it. Add --remote if they may."
        )


def _read(place: Path) -> Endpoint | None:
    try:
        values = json.loads(place.read_text())
        api = values["api"]
        return Endpoint(**values | {"api": Api(api) if api else None})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _place(name: str) -> Path:
    return _store() / f"{name}.json"


def _store() -> Path:
    return paths.home() / "endpoints"
