"""Assign a unique identity to a forked Linux guest, whose memory is a copy of the template's.

Two forks have the same state of the kernel's random number generator, and a clock that stopped with the template. A
helper program of a few hundred bytes, which the template keeps on a RAM disk, fixes both and sets the host name, so the
guest needs no tools for it. It already runs in the template, and waits on a FIFO for the identity of its guest: a newly
started emulator takes up to a tenth of a second for its guest's first fork and exec.
"""

from __future__ import annotations

import os
import random
import string
import struct
from typing import Final

__all__ = ["NOT_EXECUTABLE", "PROGRAM", "RECORD_BYTES", "await_identity_command", "identity_command", "install_command"]

# Each octet that a guest reads from its serial line costs an emulator some 40 us, and letters are typed as they are.
ENTROPY_LETTERS: Final = 48
"""With 5.7 bits each, they are more than the 256 bits that the generator takes."""

PLACES: Final = ("/dev/shm", "/tmp", "/var/tmp", "$HOME")  # noqa: S108 -- in the guest
"""Other directories from which programs may run; RAM disks first."""

NOT_EXECUTABLE: Final = 126
"""The exit status of `install_command` if the guest has no directory from which programs may run."""

ENTROPY_BITS: Final = 256
RECORD_BYTES: Final = 16 + 8 + ENTROPY_LETTERS
"""What the program reads before the name and a newline: a `timespec`, and a `rand_pool_info` with what follows it."""

# Position-independent x86-64. It reports that it runs, reads a record and a name from standard input, sets name and
# clock, adds the entropy, reseeds the generator, reports whether all of that worked, and exits.
_CODE: Final = (
    bytes.fromhex(
        "4881ecb0000000"  # sub  rsp, 176          the record, and what is more than the longest name
        "488d359e000000 e88e000000"  # say("r\n")
        "31db"  # xor  ebx, ebx                    so much of it is there: a shell's printf may write in pieces
        "488d341c baa0000000 29da 31ff 31c0 0f05"  # read(0, rsp + rbx, 160 - ebx)
        "01c3 85c0 7e62"  # to "failed" when it ends
        "83fb49 7ce4 807c1cff0a 75dd"  # again, until all is there: a newline after the 72 octets
        "8d73b7 488d7c2448 b8aa000000 0f05"  # sethostname(rsp + 72, ebx - 73)
        "89c3"  # mov  ebx, eax                    anything but 0 in ebx is a failure from here on
        "31ff 4889e6 b8e3000000 0f05"  # clock_settime(CLOCK_REALTIME, rsp)
        "09c3"  # or   ebx, eax
        "6a01 5e 488d3d51000000 6a02 58 0f05"  # open("/dev/urandom", O_WRONLY)
        "89c7"  # mov  edi, eax
        "488d542410 be03520840 6a10 58 0f05"  # ioctl(fd, RNDADDENTROPY, rsp + 16)
        "09c3"  # or   ebx, eax
        "be07520000 6a10 58 0f05"  # ioctl(fd, RNDRESEEDCRNG)
        "09c3"  # or   ebx, eax
        "488d3522000000 7407"  # ebx is 0: "0\n"
        "488d351b000000"  # failed: "1\n"
        "e807000000"  # say it
        "31ff 6a3c 58 0f05"  # exit(0)
        "6a02 5a 6a01 5f 89f8 0f05 c3"  # say: write(1, rsi, 2)
    )
    + b"r\n0\n1\n/dev/urandom\0"
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
    """Return a command that installs the program at a path in the guest, with FIFOs for its input and output.

    If that file system is mounted noexec (as systemd mounts /run), the path becomes a link to the program elsewhere.
    The command fails with `NOT_EXECUTABLE` if there is no suitable directory.
    """
    moves = f"for _d in {' '.join(PLACES)}; do mv {path} $_d/.propolis-program && ln -s $_d/.propolis-program {path}"
    return (
        f"mkdir -p {path.rpartition('/')[0]} && printf '{_typed(PROGRAM)}' > {path} && chmod 755 {path}"
        f" && mkfifo -m 600 {path}.in {path}.out && {{ _w() {{ {path} </dev/null >/dev/null 2>&1; }}; _w ||"
        f" {{ {moves} && _w && break; mv $_d/.propolis-program {path}; done; _w || (exit {NOT_EXECUTABLE}); }}; }}"
    )


def await_identity_command(path: str) -> str:
    """Return a command that starts the program, which waits for a `identity_command` and exits after it."""
    # In a subshell, so that it is not a job of the shell. FIFOs opened for reading and writing never block on open.
    return f'({path} <> {path}.in 1<> {path}.out 2>&1 &) && read -r _pw < {path}.out && [ "$_pw" = r ]'


def identity_command(path: str, *, name: str) -> str:
    """Return a command that gives the guest its own identity: fresh entropy, the host's time, a host name."""
    seed = _RANDOM.getrandbits(15)
    entropy = "".join(_RANDOM.choices(string.ascii_letters, k=ENTROPY_LETTERS))
    now_s, now_ns = divmod(real_time_ns(), 1_000_000_000)
    record = _typed(struct.pack("<qqii", now_s, now_ns, ENTROPY_BITS, ENTROPY_LETTERS) + entropy.encode())
    # The reader must open the FIFO before the program exits: a FIFO that no process has open loses its contents.
    send = f"{{ printf '{record}%s\\n' {name} > {path}.in && read -r _pw; }} < {path}.out"
    # In shells with a RANDOM variable, assigning to it seeds the generator.
    return f'{send} && [ "$_pw" = 0 ] && RANDOM={seed}'


def real_time_ns() -> int:
    """Return the kernel's time, within one tick: Python's clocks may be a test's own, and guests get the real one."""
    descriptor = os.memfd_create("now", os.MFD_CLOEXEC)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime_ns
    finally:
        os.close(descriptor)


def _typed(data: bytes) -> str:
    """Return a short `printf` format for these octets. Digits are escaped: one could extend an escape."""
    return "".join(chr(byte) if chr(byte) in string.ascii_letters else f"\\{byte:o}" for byte in data)


_RANDOM: Final = random.SystemRandom()
