"""Landlock: what files and TCP ports are left to this process and all that it starts.

Numbers and structures are those of linux/landlock.h, the same on every architecture. A ruleset
names what it handles; what is handled and no rule allows is refused with EACCES.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
ALL = (1 << 16) - 1
# What a rule may say of anything but a folder.
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_BIND_TCP = 1 << 0
_TCP = _BIND_TCP | 1 << 1
# No abstract unix sockets, and no signals, to whoever is outside.
_SCOPE = 1 << 0 | 1 << 1
# ABI -> how many of the rights to files it knows.
_FILE_RIGHTS = ((1, 13), (2, 14), (3, 15), (5, 16))
TCP_SINCE = 4
_SCOPE_SINCE = 6

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_ABI = 1
_PATH_BENEATH, _NET_PORT = 1, 2
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def restrict(files: Iterable[tuple[str, int]], port: int | None) -> int:
    """Leave these rights to files (path, rights; a folder's hold below it) and binding one port.

    Returns the kernel's Landlock ABI. Paths that can't be opened are left out: nobody here could
    read them anyway. Raises OSError where the kernel has no Landlock or it is switched off.
    """
    abi = _syscall(_CREATE_RULESET, None, 0, _ASK_ABI)
    handled = (1 << next(width for since, width in reversed(_FILE_RIGHTS) if abi >= since)) - 1
    tcp = _TCP if abi >= TCP_SINCE else 0
    scope = _SCOPE if abi >= _SCOPE_SINCE else 0
    attributes = struct.pack("=QQQ", handled, tcp, scope)
    ruleset = _syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path, rights in files:
            _allow(ruleset, path, rights & handled)
        if port is not None and tcp:
            _syscall(_ADD_RULE, ruleset, _NET_PORT, struct.pack("=QQ", _BIND_TCP, port), 0)
        forbid_privileges()
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def forbid_privileges() -> None:
    """Gain no rights from setuid programs any more, without which no user may confine itself."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _error()


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = _libc.syscall(ctypes.c_long(number), *passed)
    if result < 0:
        raise _error()
    return int(result)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
