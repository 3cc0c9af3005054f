"""`propolis serve`, and `propolis-server-qemu run`, with the command line of `propolis-server run`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..errors import PropolisError
from ..settings import Settings

if TYPE_CHECKING:
    from ..agent.servers.standalone import Address
    from ..agent_api.agent_process import AgentConfig
    from ..agent_api.boot_source import BootSource

__all__ = ["serve", "server_program"]

LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
UNIX: Final = "unix:"
DISABLE: Final = "disable"
DNS: Final = "dns"


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # older versions take no parameter at run time
    _ParamType = click.ParamType


class _AddressType(_ParamType):
    name = "IP:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        from ..agent.servers.standalone import Address

        if value.startswith(UNIX):
            return Address(path=Path(value.removeprefix(UNIX)).absolute())
        return _tcp_address(value) or self.fail(f"{value!r} is neither IP:PORT nor unix:PATH", param, ctx)


class _MetricAddrType(_ParamType):
    name = "disable|dns|IP:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | None:
        if value.lower() == DISABLE:
            return None
        if value.lower() == DNS:
            self.fail(
                "'dns' finds the registry by the internal DNS of an Oxide rack, which this platform does not have; "
                "give its IP:PORT",
                param,
                ctx,
            )
        if (address := _tcp_address(value)) is None:
            self.fail(f"{value!r} is neither disable nor dns nor IP:PORT", param, ctx)
        if address.port == 0:
            self.fail(f"{value!r} is where a registry listens, which is never at port 0", param, ctx)
        return str(address)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bootrom", metavar="BOOTROM_PATH", type=click.Path(path_type=Path))
@click.argument("address", metavar="IP:PORT", type=_AddressType())
@click.argument("vnc", metavar="[VNC_IP:PORT]", type=_AddressType(), required=False)
@click.option("--bootrom-version", metavar="VERSION", help="Accepted as by propolis-server; only written to the log.")
@click.option(
    "--metric-addr",
    type=_MetricAddrType(),
    default=DISABLE,
    show_default=True,
    help="Register the VM there as a producer of metrics for oximeter, or produce none.",
)
@click.option("--log-level", type=click.Choice(list(LEVELS)), default="info", show_default=True)
@click.option("--kernel", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Boot this Linux kernel.")
@click.option("--initrd", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its initial RAM disk.")
@click.option("--append", metavar="PARAMETERS", default="", help="Its command line.")
@click.option("--qemu", metavar="FILE", help="QEMU program to use; default: found on PATH.")
@click.option("--accelerator", type=click.Choice(["auto", "kvm", "tcg"]), help="Default: auto.")
def serve(
    *,
    bootrom: Path,
    address: Address,
    vnc: Address | None,
    bootrom_version: str | None,
    metric_addr: str | None,
    log_level: str,
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    qemu: str | None,
    accelerator: str | None,
) -> None:
    """Serve the Propolis API for one VM at a time, with QEMU, until SIGTERM.

    BOOTROM_PATH is a UEFI image (OVMF_CODE.fd), or the word bios for QEMU's BIOS; with --kernel, the word none.
    The API has no authentication: any program that reaches IP:PORT controls the VM. Port 0 takes a free port, and
    unix:PATH a UNIX socket of this user alone. Disks are raw files, or qcow2 files if their names end in .qcow2.
    """
    from ..agent.servers.standalone import serve as serve_until_stopped
    from ..hosts.run_directory import agent_directory, make_private_directory, run_token

    boot = _boot_source(bootrom, kernel, initrd, append)
    if metric_addr is not None and address.path is not None:
        raise click.UsageError("--metric-addr needs IP:PORT, where the server listens: metrics are served at that IP")
    settings = Settings.resolve(command_line={"qemu": qemu, "accelerator": accelerator}, ini={})
    logging.basicConfig(stream=sys.stderr, level=LEVELS[log_level], format=LOG_FORMAT)
    if bootrom_version is not None:
        logging.getLogger(__name__).info("the boot ROM's version is %s", bootrom_version)
    run = run_token(None)
    directory = agent_directory(run)
    os.umask(0o077)
    make_private_directory(directory)
    config = _agent_config(run, directory, settings)
    serving = serve_until_stopped(
        config, boot=boot, address=address, vnc=vnc, ready=_report_ready, metric_addr=metric_addr
    )
    try:
        asyncio.run(serving)
    except PropolisError:
        shutil.rmtree(directory, ignore_errors=True)  # nothing was started
        raise


def _agent_config(run: str, directory: Path, settings: Settings) -> AgentConfig:
    import msgspec

    from ..agent_api.agent_process import AgentConfig, AgentOptions

    return AgentConfig(
        run=run,
        directory=str(directory),
        qemu=str(settings.qemu) if settings.qemu else None,
        options=msgspec.convert(settings, AgentOptions, from_attributes=True),
    )


def _tcp_address(text: str) -> Address | None:
    """Parse an address such as ``127.0.0.1:80`` or ``[::1]:80``; return None if it is invalid."""
    from ..agent.servers.standalone import Address

    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not (port.isascii() and port.isdigit()) or int(port) >= 1 << 16:
            return None
        return Address(host=str(ipaddress.ip_address(host)), port=int(port))
    except ValueError:
        return None


def _boot_source(bootrom: Path, kernel: Path | None, initrd: Path | None, append: str) -> BootSource:
    from ..agent_api.boot_source import DirectKernel, Firmware

    if kernel is not None:
        if str(bootrom) != "none":
            raise click.UsageError("with --kernel, BOOTROM_PATH must be the word none")
        return DirectKernel(
            kernel=str(kernel.absolute()), initrd=str(initrd.absolute()) if initrd else None, command_line=append
        )
    if initrd is not None or append:
        raise click.UsageError("--initrd and --append need --kernel")
    if str(bootrom) == "bios":
        return Firmware()
    if not bootrom.is_file():
        raise click.BadParameter(f"{str(bootrom)!r} is not a file", param_hint="BOOTROM_PATH")
    return Firmware(uefi=True, boot_rom=str(bootrom.absolute()))


def _report_ready(address: Address) -> None:
    click.echo(f"listening on {address}; the API has no authentication", err=True)
    sys.stderr.flush()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def server_program() -> None:
    """propolis-server, with QEMU: a server of the Propolis API for one VM at a time."""


server_program.add_command(serve, "run")


def main() -> None:
    """Run `propolis-server-qemu`."""
    try:
        server_program(standalone_mode=True)
    except PropolisError as error:
        click.echo(f"propolis-server-qemu: {error}", err=True)
        sys.exit(1)
