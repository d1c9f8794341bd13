"""How the dashboard is started: on this host only, and without reporting to anyone."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

APP = Path(__file__).with_name("app.py")
LOOPBACK = "127.0.0.1"
# Red, the default, would paint finished work like an error.
ACCENT = "#2f7fb8"
PORTS_TO_TRY = 50
EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})


def command(port: int, address: str = LOOPBACK) -> list[str]:
    """Return the argument list that serves the dashboard on `address` and `port`."""
    # Unless told its name, a server on every address asks a host on the internet for its own.
    name = socket.gethostname() if address in EVERY_ADDRESS else address
    options = {
        "server.port": port,
        "server.address": address,
        "browser.serverAddress": name,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.light.primaryColor": ACCENT,
        "theme.dark.primaryColor": ACCENT,
    }
    arguments = [f"--{key}={value}" for key, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *arguments]


def find_free_port(preferred: int) -> int:
    """Return `preferred`, or the next port on which this host can listen."""
    for port in range(preferred, min(preferred + PORTS_TO_TRY, 65536)):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])
