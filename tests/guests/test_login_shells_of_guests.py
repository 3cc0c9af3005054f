"""The read-eval loop in a real guest whose superuser has another login shell, with its startup files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
from debian_guest import needs_debian

from pytest_propolis import TestVm, VmFactory

TIMEOUT_S: Final = 120.0
SHELLS: Final = {
    "tcsh": ("/usr/bin/tcsh", "/etc/csh.login"),
    "csh": ("/usr/bin/tcsh",),
    "zsh": ("/usr/bin/zsh", "/usr/lib/x86_64-linux-gnu/zsh", "/etc/zsh"),
    "fish": ("/usr/bin/fish", "/usr/share/fish", "/etc/fish"),
}
"""The files of each shell, on this machine and in the guest, which both run Debian."""

STARTUP: Final = {
    "tcsh": (".cshrc", "set prompt = 'ready %# '; alias printf echo; setenv FROM startup"),
    "csh": (".cshrc", "set prompt = 'ready %# '; alias printf echo; setenv FROM startup"),
    "zsh": (".zshrc", "PS1='ready %# '; alias printf=echo; setopt no_match; export FROM=startup"),
    "fish": (".config/fish/config.fish", "function fish_prompt; echo 'ready # '; end; set -x FROM startup"),
}


async def install(vm: TestVm, name: str, directory: Path) -> None:
    """Copy a shell from this machine with the libraries that it needs, and make it the superuser's."""
    program, *others = SHELLS[name]
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"=> (\S+)", listed)
    archive = directory / "shell.tar"
    there = [path for path in others if Path(path).exists()]
    subprocess.run(["tar", "-C", "/", "-chf", archive, program, *there, *libraries], check=True, capture_output=True)
    await vm.put(archive, "/tmp/shell.tar")
    # What the guest has of the C library is its own: the programs of this machine need no later one.
    await vm.run("tar -C / --skip-old-files -xf /tmp/shell.tar && ldconfig", timeout_s=TIMEOUT_S)
    file, text = STARTUP[name]
    await vm.run(f"mkdir -p $(dirname /root/{file}) && cat >/root/{file} <<'END'\n{text}\nEND")
    if name == "csh":
        await vm.run("ln -sf tcsh /usr/bin/csh")
    await vm.run(f"echo /usr/bin/{name} >>/etc/shells && usermod -s /usr/bin/{name} root")


@needs_debian
@pytest.mark.parametrize("name", [name for name in SHELLS if Path(SHELLS[name][0]).exists() and shutil.which("ldd")])
async def test_the_loop_starts_from_a_login_shell_with_its_startup_files(
    vm_factory: VmFactory, tmp_path: Path, name: str
) -> None:
    vm = await vm_factory.start(guest="debian")
    await install(vm, name, tmp_path)
    # A new login, without the boot that takes a minute.
    await vm.run("systemd-run --on-active=1 systemctl restart serial-getty@ttyS0.service >/dev/null 2>&1")
    await vm.wait_to_boot(timeout_s=TIMEOUT_S)
    assert await vm.run("ps -o comm= $(ps -o ppid= $$)") != ""
    assert await vm.run("echo $FROM $0; printf '%s\\n' 'it works'") != ""
    assert (await vm.run_result("exit 3")).status == 3
    async with vm.interactive() as console:
        await console.send("echo $SHELL\n")
        await console.wait_for(f"/usr/bin/{name}", timeout_s=TIMEOUT_S)
