"""seccomp: what system calls are left to this process and all that it starts.

For what Landlock does not govern: sockets other than TCP, and ways round it. The filter is a small
program in classic BPF over `struct seccomp_data` of linux/seccomp.h; a refused call fails with
EACCES.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Sequence

from worker.confine.landlock import forbid_privileges

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EACCES
_KILL = 0x80000000
# Opcodes: load a word, jump if equal, if not less, if a bit is set, return; and by a constant.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16

# AUDIT_ARCH_* and the numbers of: socket, connect, sendto, sendmsg, sendmmsg.
_ARCHITECTURES = {
    "x86_64": (0xC000003E, (41, 42, 44, 46, 307)),
    "aarch64": (0xC00000B7, (198, 203, 206, 211, 269)),
}
# It can open and connect sockets without calling socket or connect.
_IO_URING_SETUP = 425
_X32 = 0x40000000
_MSG_FASTOPEN = 0x20000000
_SOCKET_TYPE = 0xF

_Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def restrict(*, tcp: bool, unix: bool) -> None:
    """Leave TCP sockets that connect to nobody, sockets of this machine's daemons, or none.

    With `unix` a TCP socket can connect as far as Landlock lets it: a filter sees no address.
    Raises OSError where the kernel or the container has no seccomp, or the processor is none of
    the two known.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter for {machine}")
    code = b"".join(
        struct.pack("=HBBI", *step) for step in _filter(*_ARCHITECTURES[machine], tcp, unix)
    )
    forbid_privileges()
    program = _Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _filter(architecture: int, numbers: Sequence[int], tcp: bool, unix: bool) -> list[_Instruction]:
    socket_call, connect, sendto, sendmsg, sendmmsg = numbers
    return [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, architecture),
        # The calls of another architecture have other numbers.
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
        *_on(_IO_URING_SETUP, [(_RETURN, 0, 0, _REFUSE)]),
        *([] if unix else _on(connect, [(_RETURN, 0, 0, _REFUSE)])),
        *_on(socket_call, _sockets(tcp, unix)),
        # Sends and connects in one, past the rule about connecting.
        *_on(sendto, _without(_MSG_FASTOPEN, argument=3)),
        *_on(sendmsg, _without(_MSG_FASTOPEN, argument=2)),
        *_on(sendmmsg, _without(_MSG_FASTOPEN, argument=3)),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _on(number: int, block: list[_Instruction]) -> list[_Instruction]:
    """Return a block that runs for one system call, and returns."""
    return [(_EQUAL, 0, len(block), number), *block]


def _sockets(tcp: bool, unix: bool) -> list[_Instruction]:
    family, kind, protocol = (_argument(index) for index in range(3))
    refuse: _Instruction = (_RETURN, 0, 0, _REFUSE)
    allow: _Instruction = (_RETURN, 0, 0, _ALLOW)
    block = [family]
    if unix:
        block += [(_EQUAL, 0, 1, socket.AF_UNIX), allow]
    if tcp:
        block += [
            (_EQUAL, 2, 0, socket.AF_INET),
            (_EQUAL, 1, 0, socket.AF_INET6),
            refuse,
            kind,
            (_AND, 0, 0, _SOCKET_TYPE),
            (_EQUAL, 1, 0, socket.SOCK_STREAM),
            refuse,
            # A stream of another protocol, such as MPTCP, is not what Landlock calls TCP.
            protocol,
            (_EQUAL, 1, 0, 0),
            (_EQUAL, 0, 1, socket.IPPROTO_TCP),
            allow,
        ]
    return [*block, refuse]


def _without(flag: int, argument: int) -> list[_Instruction]:
    return [
        _argument(argument),
        (_ANY_BIT, 0, 1, flag),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _argument(index: int) -> _Instruction:
    """Load the low half of an argument; both architectures are little-endian, all are ints."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)
