"""Waking up in a fork: what a Linux guest must be told, because its memory is that of another.

Two forks have the same state of the kernel's random number generator, and a clock that stopped with the template. A
program of a few hundred bytes, which the template keeps in a RAM disk, mends both: the guest needs no tool for it.
"""

from __future__ import annotations

import random
import string
import struct
import time
from typing import Final

__all__ = ["PROGRAM", "RECORD_BYTES", "install_command", "wake_command"]

# Each octet that a guest reads from its serial line costs an emulator some 40 us, and letters are typed as they are.
ENTROPY_LETTERS: Final = 48
"""With 5.7 bits each, they are more than the 256 bits that the generator takes."""

ENTROPY_BITS: Final = 256
RECORD_BYTES: Final = 16 + 8 + ENTROPY_LETTERS
"""What the program reads: a `timespec`, and a `rand_pool_info` with what follows it."""

# Position-independent x86-64. It reads a record from standard input, sets the clock, stirs the entropy in, and has the
# generator use it now; its exit status is 0 if all of that worked.
_CODE: Final = (
    bytes.fromhex(
        "4883ec60"  # sub  rsp, 96                 the record
        "31db"  # xor  ebx, ebx                    so much of it is there: a shell's printf may write in pieces
        "488d341c 6a48 5a 29da 31ff 31c0 0f05"  # read(0, rsp + rbx, 72 - ebx)
        "01c3 85c0 7e05 83fb48 7ce6"  # again, until all is there or it ends
        "83eb48"  # sub  ebx, 72                   anything but 0 in ebx is a failure
        "b8e3000000 31ff 4889e6 0f05"  # clock_settime(CLOCK_REALTIME, rsp)
        "09c3"  # or   ebx, eax
        "6a02 58 488d3d31000000 6a01 5e 0f05"  # open("/dev/urandom", O_WRONLY)
        "89c7"  # mov  edi, eax
        "be03520840 488d542410 6a10 58 0f05"  # ioctl(fd, RNDADDENTROPY, rsp + 16)
        "09c3"  # or   ebx, eax
        "6a10 58 be07520000 0f05"  # ioctl(fd, RNDRESEEDCRNG)
        "09c3"  # or   ebx, eax
        "31ff 85db 400f95c7"  # edi = ebx != 0
        "6a3c 58 0f05"  # exit(edi)
    )
    + b"/dev/urandom\0"
)
_ADDRESS: Final = 0x400000
_HEADERS_BYTES: Final = 64 + 56


def _elf(code: bytes) -> bytes:
    """A static program of one segment."""
    size = _HEADERS_BYTES + len(code)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _ADDRESS + _HEADERS_BYTES, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000)
    return ident + header + segment + code


PROGRAM: Final = _elf(_CODE)
"""The program as a file."""


def install_command(path: str) -> str:
    """A command that puts the program at a path in the guest."""
    return f"mkdir -p {path.rpartition('/')[0]} && printf '{_typed(PROGRAM)}' > {path} && chmod 755 {path}"


def wake_command(path: str, *, name: str) -> str:
    """A command that makes a guest one of its own, from now on: fresh entropy, the host's time, a host name."""
    seed = _RANDOM.getrandbits(15)
    entropy = "".join(_RANDOM.choices(string.ascii_letters, k=ENTROPY_LETTERS))
    now_s, now_ns = divmod(time.time_ns(), 1_000_000_000)
    record = _typed(struct.pack("<qqii", now_s, now_ns, ENTROPY_BITS, ENTROPY_LETTERS) + entropy.encode())
    # Shells that have RANDOM as a stream of numbers begin a new one when it is set.
    return f"printf '{record}' | {path} && echo {name} > /proc/sys/kernel/hostname && RANDOM={seed}"


def _typed(data: bytes) -> str:
    """What `printf` makes these octets of, in few characters. No digit stands for itself: it could end an escape."""
    return "".join(chr(byte) if chr(byte) in string.ascii_letters else f"\\{byte:o}" for byte in data)


_RANDOM: Final = random.SystemRandom()
