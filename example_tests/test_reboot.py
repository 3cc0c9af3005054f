"""What survives a reboot, and what does not."""

from pytest_propolis import TestVm, VmFactory

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


async def test_files_survive_a_graceful_reboot(test_vm: TestVm) -> None:
    """`graceful_reboot` asks the guest, which stops its services and unmounts its disks first."""
    before = await test_vm.run(BOOT_ID)
    await test_vm.run("echo kept >/root/kept; echo lost >/dev/shm/lost")
    await test_vm.graceful_reboot()
    assert await test_vm.run(BOOT_ID) != before
    assert await test_vm.run("cat /root/kept") == "kept"
    assert await test_vm.run("test -e /dev/shm/lost", check=False) == ""


async def test_reset_asks_nobody(vm_factory: VmFactory) -> None:
    """`reset` is the button: the guest is not asked. Wait for it to boot again."""
    vm = await vm_factory.start("stubborn", guest="micro")
    await vm.run("touch /tmp/in-memory")
    await vm.reset()
    await vm.wait_to_boot()
    assert (await vm.run_result("test -e /tmp/in-memory")).status == 1
