"""What an endpoint says of itself: which server, which model, and whether it speculates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from farm.endpoints.connection import get_json, printable
from farm.endpoints.register import Api, Endpoint
from farm.errors import BenchmarkError, UserError

_LONGEST = 100
# `owned_by` in the answer of /v1/models: tools/server/server-context.cpp, vLLM's ModelCard.
_OWNERS = {"llamacpp": Api.LLAMA_SERVER, "vllm": Api.VLLM}


@dataclass(frozen=True)
class Served:
    """One endpoint's answers. server: name and version. model: its id there, of a llama-server the
    file's name, since the same file lies elsewhere on another machine. facts: what else the
    server says that tells this model from another, such as size or digest. draft_model: what is
    asked for with each request."""

    api: Api
    server: str
    model: str
    facts: tuple[tuple[str, str | int], ...]
    draft_model: str | None = None

    @property
    def model_name(self) -> str:
        """Return the id as people write it; a file's without folder and ending."""
        return _file_stem(self.model)

    def same_model(self, other: Served) -> bool:
        """Say whether both name the same model; servers of one kind must tell the same facts."""
        if self.api is not other.api:
            return self.model == other.model
        return (self.model, self.facts) == (other.model, other.facts)


def target_digest(baseline: Served, speculative: Served) -> str:
    """Return the identity of what is measured: both sides' models, as their servers name them."""
    sides = [[served.api, served.model, served.facts] for served in (baseline, speculative)]
    return hashlib.sha256(json.dumps(sides, sort_keys=True).encode()).hexdigest()


def build_digest(baseline: Served, speculative: Served, places: Sequence[str]) -> str:
    """Return the identity of the two servers: as they describe themselves, models included, and
    where they are. places: both sides' `Endpoint.place`, since a server started elsewhere may
    describe itself the same and be another."""
    sides = [*(asdict(served) for served in (baseline, speculative)), *places]
    return hashlib.sha256(json.dumps(sides, sort_keys=True).encode()).hexdigest()


def ask(endpoint: Endpoint) -> Served:
    """Ask an endpoint what it is. Raises BenchmarkError where it does not answer, UserError where
    the model must be named."""
    listed = _models(endpoint)
    api = endpoint.api or _api(endpoint, listed)
    server = _SERVERS[api](endpoint)
    if api is Api.OLLAMA:
        tags = get_json(endpoint, "/api/tags").get("models")
        listed = [model | {"id": model.get("name")} for model in tags or ()]
    entry = _chosen(endpoint, listed)
    model = str(entry["id"])
    name = _file_stem(model) if api is Api.LLAMA_SERVER else model
    return Served(api, printable(server)[:_LONGEST], name, _facts(api, entry), endpoint.draft_model)


def _file_stem(model: str) -> str:
    path = PurePosixPath(model.replace("\\", "/"))
    return path.stem if path.suffix == ".gguf" else model


def _models(endpoint: Endpoint) -> list[dict[str, Any]]:
    data = get_json(endpoint, "/v1/models").get("data")
    return [
        model
        for model in data or ()
        if isinstance(model, dict) and (name := str(model.get("id") or "")) and name.isprintable()
    ]


def _api(endpoint: Endpoint, listed: list[dict[str, Any]]) -> Api:
    owner = next((str(model.get("owned_by")) for model in listed), "")
    if owner in _OWNERS:
        return _OWNERS[owner]
    if get_json(endpoint, "/api/version").get("version"):
        return Api.OLLAMA
    if any("compatibility_type" in model for model in _lm_studio_models(endpoint)):
        return Api.LM_STUDIO
    return Api.OPENAI


def _lm_studio_models(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        model
        for model in get_json(endpoint, "/api/v0/models").get("data") or ()
        if isinstance(model, dict)
    ]


def _chosen(endpoint: Endpoint, listed: list[dict[str, Any]]) -> dict[str, Any]:
    if endpoint.model is None and len(listed) == 1:
        return listed[0]
    ids = [str(model["id"]) for model in listed]
    known = ", ".join(ids) or "none"
    if endpoint.model is None:
        raise UserError(
            f"The endpoint {endpoint.name} lists {len(ids)} models ({known}); register it with "
            "--model and the one to measure."
        )
    # Ollama takes a name without its tag and lists it with one.
    for wanted in (endpoint.model, f"{endpoint.model}:latest"):
        for model in listed:
            if wanted in (model["id"], *(model.get("aliases") or ())):
                return model
    if listed:
        raise BenchmarkError(
            "model-missing",
            f"The endpoint {endpoint.name} has no model {endpoint.model}; it lists {known}.",
        )
    return {"id": endpoint.model}


def _facts(api: Api, entry: dict[str, Any]) -> tuple[tuple[str, str | int], ...]:
    keys = {
        Api.LLAMA_SERVER: ("n_params", "n_vocab", "size"),
        Api.VLLM: ("root",),
        Api.OLLAMA: ("digest",),
    }.get(api, ())
    source = entry.get("meta") or {} if api is Api.LLAMA_SERVER else entry
    found = ((key, source.get(key)) for key in keys)
    return tuple(
        (key, printable(value) if isinstance(value, str) else value)
        for key, value in found
        if isinstance(value, str | int)
    )


def _llama_server(endpoint: Endpoint) -> str:
    return f"llama-server {get_json(endpoint, '/props').get('build_info', 'of unknown build')}"


def _versioned(name: str, path: str) -> Callable[[Endpoint], str]:
    def version(endpoint: Endpoint) -> str:
        return f"{name} {get_json(endpoint, path).get('version', 'of unknown version')}"

    return version


_SERVERS: dict[Api, Callable[[Endpoint], str]] = {
    Api.LLAMA_SERVER: _llama_server,
    Api.VLLM: _versioned("vLLM", "/version"),
    Api.OLLAMA: _versioned("Ollama", "/api/version"),
    Api.LM_STUDIO: lambda _: "LM Studio, version not reported",
    Api.OPENAI: lambda _: "a server that does not say what it is",
}
