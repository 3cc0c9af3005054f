"""`psinfo_t` of illumos, as the types of its public header <sys/procfs.h> lay it out in a 64-bit program."""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int, c_long, c_short, c_size_t, c_ulong, c_ushort, c_void_p
from typing import Any

PR_MODEL_ILP32 = 1
PR_MODEL_LP64 = 2


class Timestruc(ctypes.Structure):
    _fields_ = (("tv_sec", c_long), ("tv_nsec", c_long))


class Lwpsinfo(ctypes.Structure):
    _fields_ = (
        *((name, c_int) for name in ("pr_flag", "pr_lwpid")),
        *((name, c_void_p) for name in ("pr_addr", "pr_wchan")),
        *((name, c_char) for name in ("pr_stype", "pr_state", "pr_sname", "pr_nice")),
        ("pr_syscall", c_short),
        *((name, c_char) for name in ("pr_oldpri", "pr_cpu")),
        ("pr_pri", c_int),
        *((name, c_ushort) for name in ("pr_pctcpu", "pr_pad")),
        *((name, Timestruc) for name in ("pr_start", "pr_time")),
        ("pr_clname", c_char * 8),
        ("pr_name", c_char * 16),
        *((name, c_int) for name in ("pr_onpro", "pr_bindpro", "pr_bindpset", "pr_lgrp")),
        ("pr_filler", c_int * 4),
    )


class PsinfoLayout(ctypes.Structure):
    _fields_ = (
        *((name, c_int) for name in ("pr_flag", "pr_nlwp", "pr_pid", "pr_ppid", "pr_pgid", "pr_sid")),
        *((name, c_int) for name in ("pr_uid", "pr_euid", "pr_gid", "pr_egid")),
        ("pr_addr", c_void_p),
        *((name, c_size_t) for name in ("pr_size", "pr_rssize", "pr_pad1")),
        ("pr_ttydev", c_ulong),
        *((name, c_ushort) for name in ("pr_pctcpu", "pr_pctmem")),
        *((name, Timestruc) for name in ("pr_start", "pr_time", "pr_ctime")),
        ("pr_fname", c_char * 16),
        ("pr_psargs", c_char * 80),
        *((name, c_int) for name in ("pr_wstat", "pr_argc")),
        *((name, c_void_p) for name in ("pr_argv", "pr_envp")),
        ("pr_dmodel", c_char),
        ("pr_pad2", c_char * 3),
        *((name, c_int) for name in ("pr_taskid", "pr_projid", "pr_nzomb", "pr_poolid", "pr_zoneid", "pr_contract")),
        ("pr_filler", c_int),
        ("pr_lwp", Lwpsinfo),
    )


def psinfo(**fields: Any) -> bytes:
    """Return the content of a psinfo file; fields that are not given are zero."""
    return bytes(PsinfoLayout(**{"pr_dmodel": bytes([PR_MODEL_LP64]), **fields}))
