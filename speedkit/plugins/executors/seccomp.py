"""The filter of system calls of a sandbox, as a program for the kernel."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_AT_NUMBER, _AT_MACHINE, _AT_ARGUMENT = 0, 4, 16
_X32 = 0x40000000
"""Numbers from here on are those of the x32 interface, which no job needs."""
_NEW_NAMESPACES = 0x7E020000
"""The flags of ``clone`` that make namespaces."""
_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK; others reach past the network namespace."""

_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # Namespaces and mounts: they would be a way to rights that were given up.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Other processes' memory.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    # Parts of the kernel that training does not need and that had many holes.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    # The machine as a whole; these need capabilities as well.
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
}
"""Numbers of refused calls on x86_64 and aarch64."""
_UNKNOWN: dict[str, tuple[int | None, int | None]] = {
    # The filter cannot look into what clone3 is given, so libraries shall fall back to clone;
    # work that is handed over by io_uring passes every filter.
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
"""Numbers of calls that are answered as an older kernel would."""


class _Machine(NamedTuple):
    """Where a machine differs from others; ``column`` is that of the tables above."""

    audit: int
    column: int
    clone: int
    socket: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 0, 56, 41),
    "aarch64": _Machine(0xC00000B7, 1, 220, 198),
}


def program(machine: str) -> bytes | None:
    """Return the filter for a machine, None if there is none for it.

    Args:
        machine: as ``platform.machine()`` names it.
    """
    facts = _MACHINES.get(machine)
    return None if facts is None else b"".join(_instructions(facts))


def _instructions(facts: _Machine) -> Iterator[bytes]:
    yield _pack(_LOAD, _AT_MACHINE)
    yield _pack(_IF_EQUAL, facts.audit, 1, 0)
    yield _pack(_RETURN, _KILL)
    yield _pack(_LOAD, _AT_NUMBER)
    if facts.column == 0:
        yield _pack(_IF_AT_LEAST, _X32, 0, 1)
        yield _pack(_RETURN, _REFUSE | errno.ENOSYS)
    yield from _refuse(_REFUSED.values(), facts.column, errno.EPERM)
    yield from _refuse(_UNKNOWN.values(), facts.column, errno.ENOSYS)
    yield from _clone(facts.clone)
    yield from _socket(facts.socket)
    yield _pack(_RETURN, _ALLOW)


def _refuse(
    calls: Iterable[tuple[int | None, int | None]], column: int, error: int
) -> Iterator[bytes]:
    for number in filter(None, (numbers[column] for numbers in calls)):
        yield _pack(_IF_EQUAL, number, 0, 1)
        yield _pack(_RETURN, _REFUSE | error)


def _clone(number: int) -> Iterator[bytes]:
    """Refuse ``clone`` if it is to make a namespace."""
    yield _pack(_IF_EQUAL, number, 0, 4)
    yield _pack(_LOAD, _AT_ARGUMENT)
    yield _pack(_IF_ANY_BIT, _NEW_NAMESPACES, 0, 1)
    yield _pack(_RETURN, _REFUSE | errno.EPERM)
    yield _pack(_RETURN, _ALLOW)


def _socket(number: int) -> Iterator[bytes]:
    """Refuse ``socket`` but for the listed families."""
    yield _pack(_IF_EQUAL, number, 0, len(_FAMILIES) + 2)
    yield _pack(_LOAD, _AT_ARGUMENT)
    for left, family in zip(range(len(_FAMILIES), 0, -1), _FAMILIES, strict=True):
        yield _pack(_IF_EQUAL, family, left, 0)
    yield _pack(_RETURN, _REFUSE | errno.EAFNOSUPPORT)


def _pack(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the jumps are numbers of instructions that are skipped."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
