"""The dashboard in a real browser: started as `farm dashboard` starts it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Request, sync_playwright

from dashboard.launch import APP, command, find_free_port

ROOT = APP.parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_SECONDS = 60
PAGE_MS = 60_000


def browser_path() -> str:
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.fail(f"No browser found; install one of: {', '.join(BROWSERS)}.")


@pytest.fixture
def served(farm_url: str, tmp_path: Path) -> Iterator[str]:
    port = find_free_port(18_501)
    environment = os.environ | {"FARM_DATABASE_URL": farm_url, "HOME": str(tmp_path)}
    log = (tmp_path / "dashboard.log").open("w+")
    process = subprocess.Popen(
        command(port), cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        _wait_until_healthy(port, process, tmp_path / "dashboard.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        log.close()


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"The dashboard did not start:\n{log.read_text()}")


def _leaves_the_machine(request: Request) -> bool:
    parts = urlsplit(request.url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"


def _look(page: Page, served: str, screenshot: Path) -> None:
    page.goto(f"{served}/?machine=workstation&temperature=0")
    page.get_by_text("Speculation pays for 8 of 8 kinds of content. K = 8:").wait_for()
    page.locator("[data-testid='stDataFrame'] canvas").first.wait_for()
    chart = page.locator("[data-testid='stVegaLiteChart']").locator("canvas, svg").first
    chart.wait_for()
    box = chart.bounding_box()
    assert box is not None
    assert box["width"] > 100
    assert box["height"] > 100
    page.get_by_text("--spec-draft-n-max 8", exact=False).first.wait_for(state="attached")
    page.screenshot(path=str(screenshot), full_page=True)
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("heading", name="What went wrong").wait_for()
    assert page.locator("[data-testid='stException']").count() == 0


def test_a_visitor_sees_advice_charts_and_jobs_and_nothing_leaves_the_machine(
    served: str, tmp_path: Path
) -> None:
    requests: list[Request] = []
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=browser_path(),
            args=FLAGS,
            viewport={"width": 1400, "height": 900},
        )
        context.set_default_timeout(PAGE_MS)
        context.on("request", lambda request: requests.append(request))
        sockets: list[str] = []
        page = context.new_page()
        page.on("websocket", lambda opened: sockets.append(opened.url))
        _look(page, served, tmp_path / "recommendations.png")
        context.close()
    assert requests
    assert [request.url for request in requests if _leaves_the_machine(request)] == []
    assert sockets
    assert {urlsplit(url).hostname for url in sockets} == {"127.0.0.1"}
    assert (tmp_path / "recommendations.png").stat().st_size > 10_000


def test_the_command_listens_here_and_reports_to_no_one() -> None:
    arguments = command(8501)
    assert arguments[1:4] == ["-m", "streamlit", "run"]
    assert Path(arguments[4]) == APP
    assert "--server.address=127.0.0.1" in arguments
    assert "--server.port=8501" in arguments
    assert "--server.headless=true" in arguments
    assert "--browser.gatherUsageStats=false" in arguments


def test_on_every_address_the_host_s_name_is_given_not_asked_for() -> None:
    arguments = command(8501, "0.0.0.0")
    assert f"--browser.serverAddress={socket.gethostname()}" in arguments


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert find_free_port(port) != port
    assert find_free_port(port) == port
