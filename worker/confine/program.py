"""Confine this process, say on stderr what holds, and become another program.

Run before anything else happens in a process: threads that exist already would stay free. Standard
library only, and little of it, because every load of a model waits for it.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Collection, Iterator

from worker.confine import landlock, seccomp

SAYS = "isolation: "
# Raw memory and raw packets, for whoever runs as root.
_NO_DEVICES = frozenset({"/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/net/tun"})
# What there is of a GPU that CUDA drives: a driver's own, a Jetson's, that of WSL.
_CUDA = ("nvidia", "nvhost", "nvmap", "dxg")


def main(arguments: list[str]) -> None:
    """arguments: a policy as JSON (keywords of `confine`, or null), then a program and its own."""
    policy, program = json.loads(arguments[0]), arguments[1:]
    held = confine(**policy) if policy else "none: switched off"
    os.write(2, f"{SAYS}{held}\n".encode())
    os.execv(program[0], program)


def confine(
    closed: list[str],
    readable: list[str],
    listable: list[str],
    models: list[str],
    writable: list[str],
    port: int | None,
) -> str:
    """Give up what a bench child does not need; return what holds, as "landlock 7 + seccomp".

    closed: folders that are not the system's; all others can be read. readable, listable, models,
    writable: folders (models: files) that can be read whole, listed, read and written all the
    same. port: the TCP port of a server, None for a child that needs no network. Paths are real
    paths. What this machine can't hold is said ("none: ..."), and the process goes on without.
    """
    if sys.platform != "linux":
        return "none: there is no Landlock or seccomp outside Linux"
    cuda = has_cuda()
    files = [(path, landlock.READ) for path in _around("/", {*closed, "/dev"})]
    files += [(path, landlock.READ) for path in readable]
    files += [(path, landlock.READ_DIR) for path in listable]
    files += [(path, landlock.READ_FILE) for path in models]
    files += [(path, landlock.ALL) for path in (*writable, "/dev/shm")]
    device = landlock.READ_FILE | landlock.WRITE_FILE | landlock.IOCTL_DEV
    files += [("/dev", landlock.READ_DIR), *((path, device) for path in _devices("/dev"))]
    if cuda:
        # cuInit fails (304) where it can't name its threads in /proc/<pid>/task/<tid>/comm.
        files.append(("/proc", landlock.WRITE_FILE | landlock.TRUNCATE))
    held, missing, abi = [], [], 0
    try:
        abi = landlock.restrict(files, port)
        held.append(f"landlock {abi}")
    except OSError as error:
        missing.append(f"no landlock ({error.strerror})")
    try:
        seccomp.restrict(tcp=port is not None, unix=cuda)
        held.append("seccomp")
    except OSError as error:
        missing.append(f"no seccomp ({error.strerror})")
    if not held:
        return f"none: {', '.join(missing)}"
    if abi < landlock.TCP_SINCE and (held[-1] != "seccomp" or (cuda and port is not None)):
        missing.append("TCP can connect")
    return "; ".join([" + ".join(held), *missing])


def has_cuda() -> bool:
    """Say whether CUDA may find a GPU here."""
    return any(entry.name.startswith(_CUDA) for entry in _entries("/dev"))


def _around(folder: str, closed: Collection[str]) -> Iterator[str]:
    """Yield as few paths as cover all of a folder but the closed ones."""
    for entry in _entries(folder):
        below = entry.path + "/"
        # A link has no contents of its own; what it leads to is covered where that lies.
        if entry.is_symlink() or entry.path in closed:
            continue
        if any(path.startswith(below) for path in closed):
            yield from _around(entry.path, closed)
        else:
            yield entry.path


def _devices(folder: str) -> Iterator[str]:
    """Yield the character devices; a disk is a file of everything."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _devices(entry.path)
        elif entry.path not in _NO_DEVICES and _is_character_device(entry.path):
            yield entry.path


def _is_character_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.lstat(path).st_mode)
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
