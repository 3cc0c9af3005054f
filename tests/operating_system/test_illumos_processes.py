"""Processes on illumos, by a recorded procfs: files as its kernel lays them out, without its kernel."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from psinfo_layout import PR_MODEL_ILP32, PsinfoLayout, Timestruc, psinfo

from pytest_propolis.operating_system.illumos.processes import IllumosProcesses
from pytest_propolis.operating_system.illumos.psinfo import PSINFO_BYTES, Psinfo

PID = 4711
SENT: list[tuple[int, signal.Signals]] = []


@pytest.fixture
def processes(tmp_path: Path) -> IllumosProcesses:
    (tmp_path / "proc").mkdir()
    SENT.clear()
    return IllumosProcesses(tmp_path / "proc", kill=lambda pid, number: SENT.append((pid, number)))


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Records a process; returns its directory."""

    def write(pid: int = PID, **fields: object) -> Path:
        directory = tmp_path / "proc" / str(pid)
        directory.mkdir(parents=True, exist_ok=True)
        given = {"pr_pid": pid, "pr_nlwp": 1, "pr_start": Timestruc(1_700_000_000, 42), **fields}
        (directory / "psinfo").write_bytes(psinfo(**given))
        (directory / "ctl").touch()
        return directory

    return write


def test_the_layout_is_that_of_the_public_header() -> None:
    assert ctypes.sizeof(PsinfoLayout) == PSINFO_BYTES


def test_every_field_is_read_from_its_place() -> None:
    data = psinfo(
        pr_flag=1, pr_nlwp=2, pr_pid=3, pr_ppid=4, pr_pgid=5, pr_sid=6, pr_uid=7, pr_euid=8, pr_gid=9, pr_egid=10,
        pr_addr=11, pr_size=12, pr_rssize=13, pr_pad1=14, pr_ttydev=15, pr_pctcpu=16, pr_pctmem=17,
        pr_start=Timestruc(18, 19), pr_time=Timestruc(20, 21), pr_ctime=Timestruc(22, 23),
        pr_fname=b"propolis-server", pr_psargs=b"propolis-server run", pr_wstat=24, pr_argc=25,
        pr_argv=0xFFFFFC7FFFDFF000, pr_envp=27, pr_taskid=28, pr_projid=29, pr_nzomb=30, pr_poolid=31, pr_zoneid=32,
        pr_contract=33,
    )  # fmt: skip
    assert Psinfo.parse(data) == Psinfo(
        lwps=2,
        pid=3,
        parent=4,
        group=5,
        real_uid=7,
        start_ns=18 * 10**9 + 19,
        arguments=b"propolis-server run",
        argument_count=25,
        argument_vector=0xFFFFFC7FFFDFF000,
        environment_vector=27,
        pointer_bytes=8,
        contract=33,
    )


def test_what_a_32_bit_program_would_read_is_refused() -> None:
    with pytest.raises(ValueError, match="this Python is not a 64-bit program"):
        Psinfo.parse(bytes(360))


def test_the_status_of_a_process(processes: IllumosProcesses, record: Callable[..., Path]) -> None:
    record(pr_ppid=17, pr_uid=1001)
    status = processes.status(PID)
    assert status is not None
    assert (status.start_time, status.parent, status.is_dead) == (1_700_000_000 * 10**9 + 42, 17, False)
    assert processes.real_uid(PID) == 1001


def test_a_process_without_threads_is_dead(processes: IllumosProcesses, record: Callable[..., Path]) -> None:
    record(pr_nlwp=0)
    status = processes.status(PID)
    assert status is not None
    assert status.is_dead


def test_a_process_that_is_gone_has_no_status(processes: IllumosProcesses) -> None:
    assert processes.status(PID) is None
    assert processes.real_uid(PID) is None
    with pytest.raises(ProcessLookupError, match=str(PID)), processes.open(PID):
        pass


def test_all_processes_are_listed(processes: IllumosProcesses, record: Callable[..., Path]) -> None:
    record(1)
    record(PID)
    assert sorted(processes.pids()) == [1, PID]


def test_the_boot_is_known_by_the_start_of_init(processes: IllumosProcesses, record: Callable[..., Path]) -> None:
    record(1, pr_start=Timestruc(5, 6))
    assert processes.boot_id() == "5000000006"


@pytest.mark.parametrize(
    ("model", "form"), [({}, "@Q"), ({"pr_dmodel": bytes([PR_MODEL_ILP32])}, "@I")], ids=["64-bit", "32-bit"]
)
def test_arguments_and_variables_are_read_from_its_memory(
    processes: IllumosProcesses, record: Callable[..., Path], model: dict[str, bytes], form: str
) -> None:
    directory = record(pr_argc=2, pr_argv=0x1000, pr_envp=0x2000, pr_psargs=b"server run", **model)
    long = b"PROPOLIS=" + 5000 * b"x"  # crosses a page
    with (directory / "as").open("wb") as memory:
        for vector, base, strings in ((0x1000, 0x3000, [b"server", b"a word"]), (0x2000, 0x8000, [b"A=1", long])):
            for index, text in enumerate(strings):
                place = base + 0x2FF0 * index
                os.pwrite(memory.fileno(), struct.pack(form, place), vector + index * struct.calcsize(form))
                os.pwrite(memory.fileno(), text + b"\0", place)
    assert processes.command_line(PID) == b"server\0a word\0"
    assert processes.environment(PID) == b"A=1\0" + long + b"\0"


def test_where_its_memory_may_not_be_read_the_first_arguments_are_known(
    processes: IllumosProcesses, record: Callable[..., Path]
) -> None:
    record(pr_argc=2, pr_argv=0x1000, pr_envp=0x2000, pr_psargs=b"server run")
    assert processes.command_line(PID) == b"server\0run\0"
    assert processes.environment(PID) == b""


def test_a_signal_is_a_message_to_the_control_file(processes: IllumosProcesses, record: Callable[..., Path]) -> None:
    directory = record()
    with processes.open(PID) as process:
        process.signal(signal.SIGTERM)
    assert (directory / "ctl").read_bytes() == struct.pack("@ll", 9, signal.SIGTERM)
    assert SENT == []


def test_what_may_not_be_controlled_is_signalled_with_more_privileges(
    processes: IllumosProcesses, record: Callable[..., Path]
) -> None:
    control = record() / "ctl"
    control.unlink()
    control.mkdir()  # as the superuser, this test may write to any file: it may not write to a directory
    with processes.open(PID) as process:
        process.signal(signal.SIGKILL)
    assert SENT == [(PID, signal.SIGKILL)]


def test_a_process_that_ends_after_it_was_opened_gets_no_signal(
    processes: IllumosProcesses, record: Callable[..., Path]
) -> None:
    directory = record()
    (directory / "ctl").unlink()
    (directory / "ctl").mkdir()
    with processes.open(PID) as process:
        record(pr_nlwp=0)
        with pytest.raises(ProcessLookupError):
            process.signal(signal.SIGKILL)
        assert process.wait_gone(0)
    assert SENT == []


def test_waiting_for_the_end_is_bounded(processes: IllumosProcesses, record: Callable[..., Path]) -> None:
    record()
    with processes.open(PID) as process:
        assert not process.wait_gone(0.01)
