"""Two real llama-servers that ran before the engine, against the one contract."""

from __future__ import annotations

import pytest
from endpoint_servers import Endpoints
from engine_contract import CATEGORY, TEXTS, TOKENS, EngineContract

from farm.domain.job import JobSpec
from farm.endpoints.register import pair_build
from worker.engines.endpoint import EndpointFactory


class TestEndpoint(EngineContract):
    factory = EndpointFactory()

    @pytest.fixture
    def build(self, endpoints: Endpoints) -> str:
        endpoints.register("plain", endpoints.plain)
        endpoints.register("fast", endpoints.fast)
        return pair_build("plain", "fast")

    @pytest.fixture
    def spec(self, endpoints: Endpoints, build: str) -> JobSpec:
        return endpoints.job(build, CATEGORY, TEXTS, TOKENS)
