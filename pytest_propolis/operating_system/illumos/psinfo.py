"""``/proc/PID/psinfo``, as a 64-bit program reads it: `psinfo_t` of <sys/procfs.h>."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

__all__ = ["PSINFO_BYTES", "Psinfo"]

PSINFO_BYTES: Final = 416
"""The size of `psinfo_t` under LP64, which ends with the `lwpsinfo_t` of one thread."""

_FIELDS: Final = struct.Struct("@ii6i2i 3Q Q L HH4x 2q2q2q 16s80s ii QQ b3x iii ii i 4x")
"""`psinfo_t` up to `pr_lwp`. The types are those of LP64, which CPython's native ones are there."""

_NANOSECONDS: Final = 1_000_000_000
_ILP32: Final = 1


@dataclass(frozen=True, slots=True)
class Psinfo:
    """The fields that are used.

    :param lwps: how many threads run; none in a zombie.
    :param start_ns: when it was started, in nanoseconds since 1970.
    :param arguments: the beginning of its command line.
    :param argument_count: how many arguments it was started with.
    :param argument_vector: where its arguments are, in its own memory.
    :param environment_vector: where its variables are, in its own memory.
    :param pointer_bytes: the size of its pointers.
    :param contract: the id of its process contract.
    """

    lwps: int
    pid: int
    parent: int
    group: int
    real_uid: int
    start_ns: int
    arguments: bytes
    argument_count: int
    argument_vector: int
    environment_vector: int
    pointer_bytes: int
    contract: int

    @classmethod
    def parse(cls, data: bytes) -> Psinfo:
        """Parse the content of the file.

        :raises ValueError: when it has another size than a 64-bit program reads.
        """
        if len(data) != PSINFO_BYTES:
            raise ValueError(f"psinfo has {len(data)} bytes, not {PSINFO_BYTES}: this Python is not a 64-bit program")
        (
            _flag, lwps, pid, parent, group, _session, uid, _euid, _gid, _egid,
            _addr, _size, _rssize, _pad1, _ttydev, _pctcpu, _pctmem,
            start_s, start_ns, _time_s, _time_ns, _ctime_s, _ctime_ns,
            _fname, psargs, _wstat, argc, argv, envp, dmodel,
            _taskid, _projid, _nzomb, _poolid, _zoneid, contract,
        ) = _FIELDS.unpack_from(data)  # fmt: skip
        return cls(
            lwps=lwps,
            pid=pid,
            parent=parent,
            group=group,
            real_uid=uid,
            start_ns=start_s * _NANOSECONDS + start_ns,
            arguments=psargs.partition(b"\0")[0],
            argument_count=argc,
            argument_vector=argv,
            environment_vector=envp,
            pointer_bytes=4 if dmodel == _ILP32 else 8,
            contract=contract,
        )
