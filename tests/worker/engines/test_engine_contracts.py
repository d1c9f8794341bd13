"""The engines that load models themselves, in real processes, against the one contract."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest
from engine_contract import LoadingEngineContract, descendants

from farm.builds.tools import ToolBuild
from farm.domain.decoding import Settings
from worker.engines.in_process import InProcessFactory
from worker.engines.llama_server import LlamaServerFactory


class TestInProcess(LoadingEngineContract):
    factory = InProcessFactory()

    @pytest.fixture
    def build(self) -> str:
        return self.factory.builds()[0]

    def victim(self) -> psutil.Process:
        (child,) = (p for p in descendants() if "worker.bench" in p.cmdline())
        return child


class TestLlamaServer(LoadingEngineContract):
    factory = LlamaServerFactory()

    @pytest.fixture
    def build(self, llama_tools: ToolBuild) -> str:
        return llama_tools.name

    def victim(self) -> psutil.Process:
        (server,) = (
            p for p in descendants() if p.name() == "llama-server" and "draft-simple" in p.cmdline()
        )
        return server


class TestLlamaServerForTwo(TestLlamaServer):
    counts_rounds = False
    at_once = 2

    @pytest.fixture
    def one_thread(self, one_thread: Settings) -> Settings:
        return replace(one_thread, concurrent_requests=self.at_once)


class TestLlamaServerForFour(TestLlamaServerForTwo):
    """More than there are prompts."""

    at_once = 4
