"""Two real llama-servers of one target, started apart from the worker, and their registration."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from farm.builds.tools import ToolBuild
from farm.domain.decoding import Sampling, Settings, Speculation, SpeculationKind
from farm.domain.job import JobSpec, ModelRef
from farm.endpoints import register
from farm.endpoints.register import Endpoint, find, pair_names
from farm.endpoints.served import ask, target_digest

LIMIT_S = 60.0
DRAFTS = ["--spec-type", "draft-simple", "--spec-draft-n-max", "4", "--spec-draft-p-min", "0"]


@dataclass(frozen=True)
class Endpoints:
    """The addresses of a server that decodes plainly and of one that speculates with K = 4."""

    plain: str
    fast: str

    def register(self, name: str, url: str) -> None:
        """Put an address into this test's register."""
        register.add(Endpoint(name, url))

    def job(
        self, build: str, category: str, prompts: Sequence[str], generate_tokens: int
    ) -> JobSpec:
        """Return a greedy job of two registered endpoints."""
        served = [ask(find(name)) for name in pair_names(build)]
        return JobSpec(
            machine="any",
            engine="endpoint",
            build=build,
            target=ModelRef("plain", target_digest(*served), served[0].model_name),
            draft=None,
            speculation=Speculation(SpeculationKind.AS_SERVED, 0),
            sampling=Sampling(0.0, 0),
            settings=Settings(),
            category=category,
            prompts=tuple(prompts),
            generate_tokens=generate_tokens,
            repeats=1,
        )


@contextmanager
def llama_server(build: ToolBuild, target: Path, *arguments: str | Path) -> Iterator[str]:
    """Run a llama-server as a user would start one, and yield its address once it serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [build.path("llama-server"), "-m", target, "--host", "127.0.0.1", "--port", port]
    command += ["-np", "1", "-c", "2048", "-t", "1", "-ngl", "0", "--metrics", *arguments]
    server = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        url = f"http://127.0.0.1:{port}"
        give_up = time.monotonic() + LIMIT_S
        while not _serves(url):
            assert server.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.05)
        yield url
    finally:
        server.kill()
        server.wait()


def _serves(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=LIMIT_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
