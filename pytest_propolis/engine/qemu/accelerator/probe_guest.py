"""A tiny guest that executes what every kernel executes first, and reports how far it got."""

from __future__ import annotations

import zlib
from base64 import b85decode
from typing import Final

__all__ = ["GUEST_ROM", "GUEST_SOURCE", "STEPS", "SUCCESS", "WRONG_RESULT"]

SUCCESS: Final = 42 << 1 | 1  # isa-debug-exit's way with what the guest writes
WRONG_RESULT: Final = 21 << 1 | 1
"""QEMU's exit status when the guest completed, and when it detected a failure."""

STEPS: Final = {
    "P": "entering protected mode",
    "L": "entering long mode",
    "H": "jumping to a kernel's addresses",
    "X": "taking an exception in long mode",
    "T": "changing page tables",
    "U": "going to user mode and back",
    "I": "taking a timer interrupt",
    "S": "starting a second CPU",
}
"""The guest's steps, by the letter that it writes to QEMU's debug port after each."""

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
