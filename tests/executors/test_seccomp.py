"""The filter of system calls, run by an interpreter of its language."""

from __future__ import annotations

import errno
import struct

import pytest

from speedkit.plugins.executors import seccomp

ALLOW, KILL = "allow", "kill"
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEW_USER, THREAD = 0x10000000, 0x3D0F00
MACHINES = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None):
    """Return what the filter answers: allow, kill, or an error number."""
    program = seccomp.program(machine)
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<iIQ6Q", number, audit or AUDIT[machine], 0, *padded)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, value = 0, 0
    while True:
        kind, if_true, if_false, k = code[at]
        at += 1
        if kind == 0x20:
            value = struct.unpack_from("<I", data, k)[0]
        elif kind == 0x06:
            named = {0x7FFF0000: ALLOW, 0x80000000: KILL}
            return named.get(k, k & 0xFFFF)
        else:
            holds = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[kind]
            at += if_true if holds else if_false


@MACHINES
def test_each_call_is_answered_as_the_tables_say(machine):
    column = {"x86_64": 0, "aarch64": 1}[machine]
    refused = {numbers[column] for numbers in seccomp._REFUSED.values()}
    unknown = {numbers[column] for numbers in seccomp._UNKNOWN.values()}
    clone_and_socket = {"x86_64": {56, 41}, "aarch64": {220, 198}}[machine]
    for number in set(range(500)) - clone_and_socket:
        expected = errno.EPERM if number in refused else ALLOW
        expected = errno.ENOSYS if number in unknown else expected
        assert verdict(machine, number) == expected, number


@pytest.mark.parametrize(
    ("machine", "numbers"),
    [
        ("x86_64", {"ptrace": 101, "unshare": 272, "mount": 165, "bpf": 321}),
        ("aarch64", {"ptrace": 117, "unshare": 97, "mount": 40, "bpf": 280}),
    ],
)
def test_what_must_not_be_open_is_refused(machine, numbers):
    for name, number in numbers.items():
        assert verdict(machine, number) == errno.EPERM, name


@pytest.mark.parametrize(("machine", "clone"), [("x86_64", 56), ("aarch64", 220)])
def test_threads_may_be_made_and_namespaces_not(machine, clone):
    assert verdict(machine, clone, THREAD) == ALLOW
    assert verdict(machine, clone, 17) == ALLOW, "what fork asks for"
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, NEW_USER, 0x20000000, 0x40000000):
        assert verdict(machine, clone, 17 | bit) == errno.EPERM


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 41), ("aarch64", 198)])
def test_sockets_of_other_families_are_refused(machine, number):
    allowed = {family for family in range(46) if verdict(machine, number, family) == ALLOW}
    assert allowed == {1, 2, 10, 16}
    assert verdict(machine, number, 40) == errno.EAFNOSUPPORT


def test_other_interfaces_of_the_kernel_are_closed():
    assert verdict("x86_64", 20, audit=0x40000003) == KILL
    assert verdict("x86_64", 0x40000000 + 101) == errno.ENOSYS
    assert verdict("aarch64", 20, audit=0x40000028) == KILL


def test_another_machine_has_no_filter():
    assert seccomp.program("riscv64") is None
