"""Run a program that ends with whoever started it: `python leash.py PROGRAM ARGUMENT...`.

A server doesn't notice that a killed worker is gone, and would hold its memory for ever. The leash
holds a pipe to the worker as its stdin; when that closes it ends its own process group, and the
program with it. It ends as the program ends. Standard library only.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Start the program, pass its end on, and end it when stdin closes."""
    # A crash must not write gigabytes of weights to disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_watch, daemon=True).start()
    status = program.wait()
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _watch() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
