"""The filter as a program, for both architectures: only one of them is the machine's own."""

from __future__ import annotations

import socket

import pytest

from worker.confine import seccomp

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x0005000D, 0x80000000
DATAGRAM, STREAM = socket.SOCK_DGRAM, socket.SOCK_STREAM | socket.SOCK_CLOEXEC
FASTOPEN = 0x20000000
BOTH = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def verdict(
    machine: str, number: int, *arguments: int, tcp: bool = False, unix: bool = False
) -> int:
    """Run the filter as the kernel would: `struct seccomp_data` is number, architecture, the
    instruction's address, arguments of 8 bytes."""
    architecture, numbers = seccomp._ARCHITECTURES[machine]
    data = {0: number, 4: architecture} | {16 + 8 * i: value for i, value in enumerate(arguments)}
    return interpret(seccomp._filter(architecture, numbers, tcp, unix), data)


def interpret(code: list[tuple[int, int, int, int]], data: dict[int, int]) -> int:
    word, at = 0, 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x20:
            word = data.get(k, 0)
        elif operation == 0x54:
            word &= k
        elif operation == 0x06:
            return k
        else:
            holds = {0x15: word == k, 0x35: word >= k, 0x45: bool(word & k)}[operation]
            at += if_true if holds else if_false


def call(machine: str, name: str) -> int:
    names = ("socket", "connect", "sendto", "sendmsg", "sendmmsg")
    return seccomp._ARCHITECTURES[machine][1][names.index(name)]


@BOTH
@pytest.mark.parametrize("family", [*socket.AddressFamily])
def test_without_a_port_there_is_no_socket_but_a_unix_one(machine: str, family: int):
    number = call(machine, "socket")

    assert verdict(machine, number, family, STREAM, 0) == REFUSE
    expected = ALLOW if family == socket.AF_UNIX else REFUSE
    assert verdict(machine, number, family, STREAM, 0, unix=True) == expected


@BOTH
@pytest.mark.parametrize(
    ("family", "kind", "protocol", "expected"),
    [
        (socket.AF_INET, STREAM, 0, ALLOW),
        (socket.AF_INET6, STREAM, socket.IPPROTO_TCP, ALLOW),
        (socket.AF_INET, DATAGRAM, 0, REFUSE),
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP, REFUSE),
        (socket.AF_INET, STREAM, 262, REFUSE),
        (socket.AF_UNIX, STREAM, 0, REFUSE),
        (40, STREAM, 0, REFUSE),
    ],
)
def test_a_server_has_tcp_alone(machine: str, family: int, kind: int, protocol: int, expected: int):
    arguments = (family, kind, protocol)
    assert verdict(machine, call(machine, "socket"), *arguments, tcp=True) == expected


@BOTH
def test_nothing_connects_by_any_call(machine: str):
    assert verdict(machine, call(machine, "connect"), tcp=True) == REFUSE
    assert verdict(machine, call(machine, "connect"), tcp=True, unix=True) == ALLOW
    assert verdict(machine, 425, tcp=True, unix=True) == REFUSE
    for name, flags_at in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        arguments = [0] * 6
        assert verdict(machine, call(machine, name), *arguments, tcp=True) == ALLOW
        arguments[flags_at] = FASTOPEN | socket.MSG_NOSIGNAL
        assert verdict(machine, call(machine, name), *arguments, tcp=True) == REFUSE


@BOTH
def test_other_calls_pass_and_other_architectures_do_not(machine: str):
    architecture, numbers = seccomp._ARCHITECTURES[machine]
    code = seccomp._filter(architecture, numbers, False, False)

    assert interpret(code, {0: 0, 4: architecture}) == ALLOW
    assert interpret(code, {0: 0, 4: 0x40000003}) == KILL
    assert interpret(code, {0: 0x40000000 | call(machine, "socket"), 4: architecture}) == REFUSE


def test_a_processor_without_a_filter_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")

    with pytest.raises(OSError, match="riscv64"):
        seccomp.restrict(tcp=False, unix=False)
