"""A guest that writes all the while, and checks that its memory keeps what it has written.

Tests of inner runs get a copy of this module beside them.
"""

from __future__ import annotations

from pytest_propolis import TestVm

__all__ = ["found_damage", "rounds_beyond", "start_writing"]

# Files in memory that are rewritten all the while, each with its own checksum beside it: a page that arrives stale,
# mixed or not at all shows as a file that does not match.
WRITER = """
mkdir -p /mnt && mount -t tmpfs tmpfs /mnt || exit 1
cat > /mnt/verify <<'END'
n=0
while :; do
    n=$((n+1)); f=/mnt/f$((n%8))
    if [ -e $f.sum ]; then md5sum -c -s $f.sum || { echo $n >> /mnt/bad; }; fi
    (echo $n; dd if=/dev/urandom bs=64k count=4 2>/dev/null) > $f; md5sum $f > $f.sum
    echo $n > /mnt/rounds
done
END
sh /mnt/verify > /dev/null 2>&1 &
"""


async def start_writing(vm: TestVm) -> None:
    """Have the guest begin."""
    await vm.run(WRITER)


async def rounds_beyond(vm: TestVm, beyond: int) -> int:
    """Wait until the guest has written more than so many files, and return how many."""
    # The file is empty for a moment, each time that it is written.
    look = f'n=$(cat /mnt/rounds 2>/dev/null); [ "${{n:-0}}" -gt {beyond} ]'
    return int(await vm.run(f"until {look}; do sleep 0.1; done; echo $n", timeout_s=120))


async def found_damage(vm: TestVm) -> str:
    """Return what the guest and its kernel have found to be damaged; empty for nothing."""
    return await vm.run("cat /mnt/bad 2>/dev/null; dmesg | grep -E 'Oops|BUG:|segfault'", check=False)
