"""The accelerator: whether KVM really runs guests on this host, found out by running one.

`/dev/kvm` can be there, be accessible, even run real-mode code, and still be unable to run an ordinary kernel: under
nested or software virtualisation it hangs or gives up. So a tiny guest of our own does what every kernel does in its
first moments, and says how far it got. Under TCG that takes 0.15 s, nearly all of it QEMU's own start.
"""

# A look at a file's status takes microseconds.

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import time
import zlib
from asyncio.subprocess import DEVNULL, PIPE, Process
from base64 import b85decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from ..errors import CapabilityMissing, HostError
from ..storage.locks import locked
from ..storage.programs import parent_death_prefix
from .child import reap
from .qemu_binary import Qemu

__all__ = ["GUEST_ROM", "GUEST_SOURCE", "AcceleratorChoice", "AcceleratorName", "probe_accelerator"]

AcceleratorName: TypeAlias = Literal["kvm", "tcg"]
Wanted: TypeAlias = Literal["auto", "kvm", "tcg"]

KVM_DEADLINE_S: Final = 4.0
TCG_DEADLINE_S: Final = 30.0
_BUSY_S: Final = 1.0
"""Where TCG takes longer than this, the machine is busy, and a hang under KVM may come from that."""

_KVM: Final = Path("/dev/kvm")
_ORDER: Final[dict[Wanted, tuple[AcceleratorName, ...]]] = {"auto": ("kvm", "tcg"), "kvm": ("kvm",), "tcg": ("tcg",)}
_SUCCESS: Final = 42 << 1 | 1  # isa-debug-exit's way with what the guest writes
_WRONG_RESULT: Final = 21 << 1 | 1
_GAVE_UP: Final = b"KVM internal error"

_STEPS: Final = {
    "P": "entering protected mode",
    "L": "entering long mode",
    "H": "jumping to a kernel's addresses",
    "X": "taking an exception in long mode",
    "T": "changing page tables",
    "U": "going to user mode and back",
    "I": "taking a timer interrupt",
    "S": "starting a second CPU",
}
"""What the guest does, by the letter that it writes to QEMU's debug port when it has done it."""


@dataclass(frozen=True, slots=True)
class AcceleratorChoice:
    """How guests are run on this host.

    :param name: for QEMU's ``-accel``.
    :param reason: why, in one line for a person.
    :param from_cache: whether it was known, so that no guest had to run.
    :param took_s: how long the choice took, in seconds.
    """

    name: AcceleratorName
    reason: str
    from_cache: bool
    took_s: float


@dataclass(frozen=True, slots=True)
class _Trial:
    """What came of running the guest under one accelerator.

    :param hung: whether it failed by taking too long.
    """

    works: bool
    finding: str
    took_s: float = 0.0
    hung: bool = False


_Trials: TypeAlias = dict[AcceleratorName, _Trial]


async def probe_accelerator(qemu: Qemu, *, wanted: Wanted, cache_dir: Path) -> AcceleratorChoice:
    """Choose the accelerator: KVM if the guest runs on it, else TCG if it runs under that.

    The findings are kept in `cache_dir` until the machine boots anew, or its kernel, the KVM modules, `/dev/kvm`, the
    right to open that, or QEMU change. Of several processes, one runs guests, and the others wait for it. It takes
    `KVM_DEADLINE_S` and `TCG_DEADLINE_S` at worst. However it ends, QEMU is gone then.

    :raises CapabilityMissing: when what is wanted does not work, saying why.
    :raises HostError: when `cache_dir` cannot be used.
    """
    started = time.monotonic()
    path, key = cache_dir / _file_name(qemu), _key(qemu)
    trials = _load(path, key)
    from_cache = _untried(wanted, trials) is None
    if not from_cache:
        with _directory_errors(cache_dir):
            cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            async with locked(path.with_suffix(".lock"), purpose="probing the accelerator", progress=_say_nothing):
                trials = _load(path, key)
                from_cache = _untried(wanted, trials) is None
                await _complete(trials, qemu, wanted)
                _save(path, key, trials)
    name, reason = _settle(wanted, trials)
    return AcceleratorChoice(name, reason, from_cache, time.monotonic() - started)


def _untried(wanted: Wanted, trials: _Trials) -> AcceleratorName | None:
    for name in _ORDER[wanted]:
        if name not in trials:
            return name
        if trials[name].works:
            break
    return None


async def _complete(trials: _Trials, qemu: Qemu, wanted: Wanted) -> None:
    while name := _untried(wanted, trials):
        trials[name] = await _try(qemu, name)


def _settle(wanted: Wanted, trials: _Trials) -> tuple[AcceleratorName, str]:
    tried = [(name, trials[name]) for name in _ORDER[wanted] if name in trials]
    failed = [trial.finding for _, trial in tried if not trial.works]
    for name, trial in tried:
        if trial.works:
            return name, f"{failed[0]}: using TCG" if failed else trial.finding
    raise CapabilityMissing("; ".join(failed), hint=_hint(wanted))


def _hint(wanted: Wanted) -> str:
    if wanted == "kvm":
        return (
            "let --propolis-accelerator be auto or tcg, or see to KVM: virtualisation enabled in the firmware or by "
            "the host, the module kvm_intel or kvm_amd loaded, and this user in the group that owns /dev/kvm"
        )
    return "name another QEMU with --propolis-qemu, or run `propolis setup`"


async def _try(qemu: Qemu, name: AcceleratorName) -> _Trial:
    if name == "kvm" and (obstacle := _kvm_obstacle()):
        return _Trial(works=False, finding=obstacle)
    started = time.monotonic()
    try:
        ending = await _run_guest(qemu, name, KVM_DEADLINE_S if name == "kvm" else TCG_DEADLINE_S)
    except OSError as error:
        return _Trial(works=False, finding=f"{qemu.system} cannot be started ({error.strerror})")
    took_s = time.monotonic() - started
    what = f"ran in {took_s:.2f} s" if ending.works else ending.failure()
    sentence = {
        ("kvm", True): f"a 64-bit guest on /dev/kvm {what}",
        ("kvm", False): f"/dev/kvm is there but a 64-bit guest on it {what}",
    }.get((name, ending.works), f"a 64-bit guest under TCG {what}")
    return _Trial(ending.works, sentence, took_s, hung=ending.hung_for_s is not None)


def _kvm_obstacle() -> str | None:
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "there is no /dev/kvm"
    except OSError as error:
        return f"/dev/kvm is there but cannot be opened ({error.strerror})"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    """How QEMU ended, what the guest had said until then, and what QEMU complained of."""

    status: int
    said: str
    complaint: bytes
    hung_for_s: float | None

    @property
    def works(self) -> bool:
        return self.status == _SUCCESS and self.said == "".join(_STEPS)

    def failure(self) -> str:
        if self.hung_for_s is not None:
            return f"hung for {self.hung_for_s:.0f} s {self._where()}"
        if _GAVE_UP in self.complaint:
            return f"crashed ({_GAVE_UP.decode()}) {self._where()}"
        if self.status == _WRONG_RESULT:
            return f"came to a wrong result {self._where()}"
        if self.status == 0:
            return f"reset itself {self._where()}"
        lines = self.complaint.decode(errors="replace").strip().splitlines() or ["nothing"]
        return f"did not run: QEMU ended with status {self.status} and said {lines[-1]}"

    def _where(self) -> str:
        undone = (step for letter, step in _STEPS.items() if letter not in self.said)
        return f"while {next(undone, 'ending')}"


async def _run_guest(qemu: Qemu, name: AcceleratorName, deadline_s: float) -> _Ending:
    with _rom_in_memory() as rom:
        process = await asyncio.create_subprocess_exec(
            *parent_death_prefix(), str(qemu.system), *qemu.arguments, *_arguments(name, rom),
            stdin=DEVNULL, stdout=PIPE, stderr=PIPE, pass_fds=[rom], env={**os.environ, **qemu.environment},
        )  # fmt: skip
        complaint = bytearray()
        hung = False
        try:
            async with asyncio.timeout(deadline_s):
                await _wait_for_end(process, complaint)
        except TimeoutError:
            hung = True
        finally:
            status = await reap(process)
    assert process.stdout is not None
    said = await process.stdout.read()
    return _Ending(
        status=status,
        said=said.decode("ascii", errors="replace"),
        complaint=bytes(complaint),
        hung_for_s=deadline_s if hung else None,
    )


async def _wait_for_end(process: Process, complaint: bytearray) -> None:
    """Until QEMU ends, or says that KVM gave up: it would wait for a debugger then."""
    assert process.stderr is not None
    while chunk := await process.stderr.read(1 << 12):
        complaint += chunk
        if _GAVE_UP in complaint:
            return
    await process.wait()


def _arguments(name: AcceleratorName, rom: int) -> list[str]:
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "pc", "-accel", name, "-cpu", "host" if name == "kvm" else "max", "-smp", "2", "-m", "16M"),
        *("-bios", f"/proc/self/fd/{rom}"),
        *("-chardev", "stdio,id=said,signal=off", "-device", "isa-debugcon,iobase=0xe9,chardev=said"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
    ]


@contextmanager
def _rom_in_memory() -> Iterator[int]:
    descriptor = os.memfd_create("propolis-probe")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(GUEST_ROM)
        yield descriptor
    finally:
        os.close(descriptor)


def _file_name(qemu: Qemu) -> str:
    place = hashlib.sha256(f"{platform.node()} {qemu.system}".encode()).hexdigest()
    return f"accelerator-{place[:16]}.json"


def _key(qemu: Qemu) -> str:
    facts = (
        Path("/proc/sys/kernel/random/boot_id").read_text(),
        platform.release(),
        sorted(module.name for module in Path("/sys/module").glob("kvm*")),
        _kvm_facts(),
        qemu.identity,
    )
    return hashlib.sha256(repr(facts).encode() + GUEST_ROM).hexdigest()


def _kvm_facts() -> tuple[object, ...] | None:
    try:
        status = _KVM.stat()
    except OSError:
        return None
    may_open = os.access(_KVM, os.R_OK | os.W_OK)
    return status.st_rdev, status.st_mode, status.st_uid, status.st_gid, may_open


def _load(path: Path, key: str) -> _Trials:
    try:
        document = json.loads(path.read_bytes())
        if document["key"] != key:
            return {}
        return {name: _Trial(**trial) for name, trial in document["trials"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # missing or damaged: found out anew


def _save(path: Path, key: str, trials: _Trials) -> None:
    sure = {name: asdict(trial) for name, trial in trials.items() if _is_sure(name, trials)}
    part = path.with_suffix(".part")  # we hold the lock
    try:
        part.write_text(json.dumps({"key": key, "trials": sure}, indent=1) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _is_sure(name: AcceleratorName, trials: _Trials) -> bool:
    """A hang of KVM is, if TCG was quick at the same time. TCG that fails is QEMU that was not found out about yet."""
    trial, tcg = trials[name], trials.get("tcg")
    if name == "tcg":
        return trial.works
    return not trial.hung or (tcg is not None and tcg.works and tcg.took_s < _BUSY_S)


@contextmanager
def _directory_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"the directory {directory} cannot be used: {error.strerror or error}",
            hint="make it a directory of yours with space in it, or choose another place with XDG_CACHE_HOME",
        ) from error


def _say_nothing(_line: str) -> None:
    """The probe takes seconds at most: nobody needs to be told who else does it."""


GUEST_SOURCE: Final = r"""
# A 64 KiB ROM that shows at 0xf0000. Its first page is copied to RAM and goes on there, at a kernel's addresses.
.set ROM, 0xf0000; .set COPY, 0x10000; .set HIGH, 0xffffffff80000000; .set APIC, 0xfee00000
.set PML4, 0x1000; .set PDPT_LOW, 0x2000; .set PDPT_HIGH, 0x3000; .set PD_LOW, 0x4000; .set PD_APIC, 0x5000
.set PT, 0x6000; .set IDT, 0x7000; .set TRAMPOLINE, 0x8000; .set AWAKE, 0x8800; .set STACK, 0xa000
.set USER, 0x11000; .set PAGE_A, 0x12000; .set PAGE_B, 0x13000; .set VIRTUAL, 0x14000; .set USER_STACK, 0x15000
.macro say letter; mov $\letter, %al; out %al, $0xe9; .endm
.macro msr number, low, high; mov $\number, %ecx; mov $\low, %eax; mov $\high, %edx; wrmsr; .endm
.macro want value, where; cmpl $\value, \where; jne bad; .endm

.code16
        cli; cld
        lgdtl %cs:gdt_pointer
        mov %cr0, %eax; or $1, %al; mov %eax, %cr0
        ljmpl $0x08, $ROM+protected
.code32
protected:
        mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss
        say 'P'
        mov $ROM, %esi; mov $COPY, %edi; mov $0x400, %ecx; rep movsl
        mov $PML4, %edi; xor %eax, %eax; mov $0x2400, %ecx; rep stosl
        movl $PDPT_LOW+7, PML4; movl $PDPT_HIGH+7, PML4+511*8
        movl $PD_LOW+7, PDPT_LOW; movl $PD_LOW+7, PDPT_HIGH+510*8; movl $PT+7, PD_LOW
        movl $PD_APIC+7, PDPT_LOW+3*8; movl $APIC+0x9b, PD_APIC+0x1f7*8
        mov $PT, %edi; mov $3, %eax
1:      mov %eax, (%edi); add $8, %edi; add $0x1000, %eax; cmp $0x100003, %eax; jb 1b
        orl $4, PT+(USER>>12)*8; orl $4, PT+(USER_STACK>>12)*8; movl $0, PT+(VIRTUAL>>12)*8
        mov $0x620, %eax; mov %eax, %cr4                # PAE, OSFXSR, OSXMMEXCPT
        mov $PML4, %eax; mov %eax, %cr3
        mov $0xc0000080, %ecx; rdmsr; or $0x101, %eax; wrmsr    # EFER: LME, SCE
        mov $0x80010033, %eax; mov %eax, %cr0           # PG, WP, NE, ET, MP, PE
        ljmp $0x18, $COPY+long
.code64
long:   say 'L'
        movabs $HIGH+COPY+high, %rax; jmp *%rax
high:   say 'H'
        mov $HIGH+STACK, %rsp
        lgdt high_gdt_pointer(%rip)
        mov $0x20, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss
        mov $0x38, %eax; ltr %ax
        lea breakpoint(%rip), %rsi; mov $3, %edi; call gate
        lea undefined(%rip), %rsi; mov $6, %edi; call gate
        lea page_fault(%rip), %rsi; mov $14, %edi; call gate
        lea tick(%rip), %rsi; mov $0x20, %edi; call gate
        lidt idt_pointer(%rip)
        mov $0x80000001, %eax; cpuid; bt $29, %edx; jnc bad     # long mode
        mov $0xc0000080, %ecx; rdmsr; bt $10, %eax; jnc bad     # EFER: LMA
        xor %ebp, %ebp                                  # counts exceptions and interrupts
        int3
        ud2
        want 2, %ebp
        say 'X'
        movl $0xaaaa, HIGH+PAGE_A; movl $0xbbbb, HIGH+PAGE_B
        want 0xaaaa, HIGH+VIRTUAL                       # not present: the handler maps PAGE_A
        want 3, %ebp
        movq $PAGE_B+3, HIGH+PT+(VIRTUAL>>12)*8; invlpg HIGH+VIRTUAL
        want 0xbbbb, HIGH+VIRTUAL
        movq $PAGE_A+3, HIGH+PT+(VIRTUAL>>12)*8; mov %cr3, %rax; mov %rax, %cr3
        want 0xaaaa, HIGH+VIRTUAL
        say 'T'
        lea user(%rip), %rsi; mov $HIGH+USER, %rdi; mov $user_end-user, %ecx; rep movsb
        msr 0xc0000081, 0, 0x00230018                   # STAR
        lea back(%rip), %rax; mov %rax, %rdx; shr $32, %rdx; inc %ecx; wrmsr    # LSTAR
        pushq $0x2b; pushq $USER_STACK+0xff0; pushq $2; pushq $0x33; pushq $USER; iretq
user:   mov %cs, %ebx; mov $0x5a, %eax
        movq %rax, %xmm0; movq %xmm0, %rdx; push %rdx
        int3
        pop %rdi; syscall
user_end:
back:   mov $HIGH+STACK, %rsp
        want 0x5a, %edi
        want 0x33, %ebx
        want 4, %ebp
        say 'U'
        mov $0xff, %al; out %al, $0x21; out %al, $0xa1  # the old interrupt controllers: all masked
        mov $APIC, %esi
        movl $0x1ff, 0xf0(%rsi)                         # on
        movl $0xb, 0x3e0(%rsi); movl $0x20, 0x320(%rsi); movl $100000, 0x380(%rsi)      # timer: once, soon
1:      sti; hlt; cli; cmp $5, %ebp; jne 1b
        say 'I'
        mov $HIGH+TRAMPOLINE, %rdi; lea second(%rip), %rsi; mov $second_end-second, %ecx; rep movsb
        mov $APIC, %esi; movl $0xc4500, 0x300(%rsi)     # INIT to the others
        mov $10000, %ecx; 1: pause; loop 1b
2:      movl $0xc4608, 0x300(%rsi)                      # start them at TRAMPOLINE; one that runs ignores it
        mov $100000, %ecx
3:      cmpb $1, HIGH+AWAKE; je 4f; pause; loop 3b; jmp 2b
4:      say 'S'
        mov $42, %al; out %al, $0xf4
bad:    mov $21, %al; out %al, $0xf4
1:      cli; hlt; jmp 1b

gate:   shl $4, %edi; mov %rsi, %rax
        mov %ax, HIGH+IDT(%rdi); movl $0xee000018, HIGH+IDT+2(%rdi)
        shr $16, %rax; mov %ax, HIGH+IDT+6(%rdi)
        shr $16, %rax; mov %eax, HIGH+IDT+8(%rdi); movl $0, HIGH+IDT+12(%rdi); ret
breakpoint: inc %ebp; iretq
undefined: inc %ebp; addq $2, (%rsp); iretq
page_fault: inc %ebp; movq $PAGE_A+3, HIGH+PT+(VIRTUAL>>12)*8; add $8, %rsp; iretq
tick:   inc %ebp; push %rax; mov $APIC, %eax; movl $0, 0xb0(%rax); pop %rax; iretq
.code16
second: movb $1, %cs:AWAKE-TRAMPOLINE
1:      cli; hlt; jmp 1b
second_end:

.balign 8                       # all marked as accessed: the processor cannot mark them in a ROM
gdt:    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff
        .quad 0x00cff3000000ffff, 0x00affb000000ffff
        .word 0x67, tss, 0x8901, 0x8000; .quad 0xffffffff
gdt_pointer: .word gdt_pointer-gdt-1; .long ROM+gdt
high_gdt_pointer: .word gdt_pointer-gdt-1; .quad HIGH+COPY+gdt
idt_pointer: .word 0xfff; .quad HIGH+IDT
.balign 8
tss:    .long 0; .quad HIGH+STACK; .fill 92, 1, 0
end:
.org 0xfff0
        .byte 0xea; .word 0, 0xf000
.org 0x10000
"""
"""The guest, for GNU as: ``as --64``, ``ld -Ttext 0``, ``objcopy -O binary`` make `GUEST_ROM` of it."""

_CODE: Final = (
    "c-mD{O-NKx6h3$U@uxc*Wm-rtQ-T5+8>EOrA*vU+kbXei*rrKbNQ7<U$z#-kMuZj-Zl*sfTlf|&-Y7IPX1ztiw4CMSVsaE~$bn>ZoWApB488Eq{m"
    "ysJJ%9Jz@?KY1idJ$-CDkNkdn&wfoFw_k^b^rcb|y9R-5AIhJ`va?k)Q;*h_>G(2@c(<1a(0BV7XcKDnyoh=LArY5kdF%F)H>RAcFMXWfWlR03&m"
    "lXpVCGNrJ(2B5~BKTRuDHWhdmr-+J>jY%aa|9dDL9j*XY8cu-k;&SYQNo=s>(DS5702&h3bL_$MT8(SzmKt_MQpqdqMRbDwmg>J1-oHQv~{yI3^|"
    "E|po#64%#SWiDJNiJ)>5eP&t6CNhY!Y0l$ag2#Vjkw4J2V2i_C8F&WM+em8OS!n#CUsWo)yl<OgVf)G=-yhDje5l)BhR53gZYBx>Lf*I^Ya)KU{G"
    "jFOGFcwI;pS5%E%a8^@>wQ?s0B-VK|yID3G@1R`=$EGSYY0Nr97+#oUerY~$RwF`HP=6=H9T{6b5#0&l-gOrU0yXTKPrQy8)ubBEX~x~!%*lxkWA"
    "N6(HFhXsu~MnfYwNowZFH**L+VO5T$ARaH@TpgC~`t0@Ukc_;CS>FxGNSr~%B_q!Oj63;)QO%#szrYWe+qWi*Agd_Pn#|!s8i|ntq}WIUicbpKEt"
    "U0(`_YbZgD==3jWqOv_9@X|H&Ks9e5qHPDB(X1c6M#AM)|IR;y4<nGEJHo_rUmP^M`Q@<($cvjFx<<T-w}A|8%L*VmLZQ4@k479FPH`Uut^Y57Gm"
    "bVRXu8o0}kcZl9}P)C@k|)#0$gq1#aP6(4g0rd^?C)P8dsR5M*)J>(OdHa1QNt6GJa%hdL#^?h#PsJ>m_cNgeBDJ~Hu`vLIz>v(U{mi0#=xfKSnk"
    "GQW{J4w98`~#3JU04"
)
_RESET_VECTOR: Final = bytes.fromhex("ea 00 00 00 f0")  # ljmp $0xf000, $0

GUEST_ROM: Final = zlib.decompress(b85decode(_CODE)).ljust(0xFFF0, b"\0") + _RESET_VECTOR.ljust(16, b"\0")
"""`GUEST_SOURCE`, assembled: 64 KiB that take the place of the BIOS."""
