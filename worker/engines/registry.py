"""The engines a worker knows, by the name a sweep uses."""

from __future__ import annotations

from worker.engines.contract import EngineFactory
from worker.engines.endpoint import EndpointFactory
from worker.engines.in_process import InProcessFactory
from worker.engines.llama_server import LlamaServerFactory

FACTORIES: tuple[EngineFactory, ...] = (
    InProcessFactory(),
    LlamaServerFactory(),
    EndpointFactory(),
)
ENGINES: dict[str, EngineFactory] = {factory.name: factory for factory in FACTORIES}
