"""Commands, with a real shell on a real terminal behind them."""

from __future__ import annotations

import os
import random
import secrets
import shlex
from pathlib import Path

import pytest
from local_shell import TIMEOUT_S, Local

from pytest_propolis.console.shell_protocol import new_nonce, new_session
from pytest_propolis.console.transports.console_transport import ConsoleTransport
from pytest_propolis.errors import CapabilityMissing


async def test_output_and_status_come_back(local: Local) -> None:
    assert await local.run("echo hello") == b"hello\n"
    assert await local.run("true") == b""
    assert await local.status("exit_status() { return 7; }; exit_status") == 7


async def test_output_without_a_final_newline_stays_without(local: Local) -> None:
    assert await local.run("printf 'no end'") == b"no end"
    assert await local.run("printf '\\n\\n'") == b"\n\n"


async def test_standard_error_comes_in_its_place(local: Local) -> None:
    assert await local.run("echo one; echo two >&2; echo three") == b"one\ntwo\nthree\n"


async def test_standard_error_comes_apart_over_a_port_and_not_over_the_console(local: Local) -> None:
    if isinstance(local.shell._transport, ConsoleTransport):
        with pytest.raises(CapabilityMissing, match="does not separate standard error"):
            await local.shell.run("true", timeout_s=TIMEOUT_S, separate_stderr=True)
        assert await local.run("echo usable") == b"usable\n"
        return
    for command, out, errors in (
        ("echo out; echo err >&2", b"out\n", b"err\n"),
        ("head -c 300000 /dev/zero >&2; echo end", b"end\n", bytes(300_000)),
        ("echo last >&2; exit 3", b"", b"last\n"),
        ("exec sh -c 'echo replaced >&2; echo out'", b"out\n", b"replaced\n"),
        ("true", b"", b""),
    ):
        result = await local.shell.run(command, timeout_s=TIMEOUT_S, check=False, separate_stderr=True)
        assert (result.stdout, result.stderr) == (out, errors), command
    together = await local.shell.run("echo err >&2", timeout_s=TIMEOUT_S)
    assert together.output == b"err\n"
    with pytest.raises(CapabilityMissing, match="came together"):
        _ = together.stderr


@pytest.mark.parametrize("unfinished", [r"\033]0;a title", r"\033[3", r"\033", r"\303"])
async def test_an_escape_sequence_that_a_command_leaves_unfinished_hides_nothing_of_the_next(
    local: Local, unfinished: str
) -> None:
    await local.run(f"printf '{unfinished}'")
    await local.run("echo shown next")
    assert "\nshown next\n" in local.console.log_path.read_text()
    assert "shown next" in local.console.tail()[-1]


async def test_a_command_of_many_lines_is_one_command(local: Local) -> None:
    command = """
    for number in 1 2 3
    do
        if [ "$number" = 2 ]
        then echo 'the
second'
        fi
    done

    cat <<END
a here document
  with $number, and \\$ and \\\\
END
    """
    assert await local.run(command) == b"the\nsecond\na here document\n  with 3, and $ and \\\n"


async def test_quotes_blanks_and_backslashes_arrive_as_they_are(local: Local) -> None:
    text = "  'a'  \"b\" `c` $d \\n \\\\ \t * ~ ! # & ; äß€  "
    assert await local.run(f"printf %s {shlex.quote(text)}") == text.encode()


async def test_every_character_but_nul_arrives_as_it_is(local: Local) -> None:
    text = "".join(map(chr, range(1, 128))) + "\r\n\r\n" + "\udcff\udc80"
    quoted = "'" + text.replace("'", "'\\''") + "'"
    assert await local.run(f"printf %s {quoted}") == text.encode(errors="surrogateescape")


async def test_a_command_of_64_kib_arrives_whole(local: Local) -> None:
    lines = random.Random(1)
    text = "".join(lines.choice("abc \\'$\n\x1c") * lines.randrange(1, 40) for _ in range(4000))[: 1 << 16]
    quoted = "'" + text.replace("'", "'\\''") + "'"
    assert await local.run(f"printf %s {quoted} | cat", timeout_s=60) == text.encode()


async def test_output_of_all_byte_values_comes_back_to_the_byte(local: Local, tmp_path: Path) -> None:
    content = bytes(range(256)) + bytes(reversed(range(256))) + b"\x1e"
    (tmp_path / "bytes").write_bytes(content)
    assert await local.run(f"cat {tmp_path}/bytes") == content


async def test_64_kib_of_random_bytes_come_back_to_the_byte(local: Local, tmp_path: Path) -> None:
    content = os.urandom(1 << 16)
    (tmp_path / "bytes").write_bytes(content)
    assert await local.run(f"cat {tmp_path}/bytes") == content


async def test_output_that_looks_like_the_protocol_is_output(local: Local, tmp_path: Path) -> None:
    word = secrets.token_hex(6).encode()
    content = b"".join(
        b"\x1e" + mark
        for mark in (
            b"r%b\x02" % word,
            b"r%b\x031\x04" % word,
            b"r%b\x060\x04" % word,
            b"i%b\x02" % word,
            b"s%b\x051\x04" % word,
            b"s%b\x11" % word,
            b"",
            b"r%b\x03" % word,
        )
    )
    (tmp_path / "bytes").write_bytes(content)
    assert await local.run(f"cat {tmp_path}/bytes; echo end") == content + b"end\n"
    assert await local.run("echo next") == b"next\n"


async def test_output_that_looks_like_a_prompt_is_output(local: Local) -> None:
    assert await local.run("printf 'prompt> # $ '") == b"prompt> # $ "


async def test_the_recorded_console_of_another_session_is_output(dash: Local, tmp_path: Path) -> None:
    session, nonce = new_session().encode(), new_nonce().encode()
    record = b"\x1e%b\x11\x1e%b\x02one\n\x1e%b\x030\x04\x1e%b\x02\x1e%b\x053\x04\x1e%b\x11" % (
        *(session, nonce, nonce),
        *(nonce, session, session),
    )
    (tmp_path / "record").write_bytes(record)
    assert await dash.run(f"cat {tmp_path}/record") == record
    assert await dash.run("echo next") == b"next\n"


async def test_variables_functions_and_the_directory_stay(local: Local) -> None:
    await local.run("cd /usr; one=1; two() { echo two $one; }; set -- a b")
    assert await local.run('pwd; two; echo "$@"') == b"/usr\ntwo 1\na b\n"


async def test_exit_ends_the_shell_and_a_fresh_one_takes_its_place(local: Local) -> None:
    await local.run("kept=1")
    assert await local.status("echo before; exit 3; echo after") == 3
    assert await local.run('echo "kept: $kept"') == b"kept: \n"


async def test_killing_the_shell_gives_the_signal_and_a_fresh_shell(local: Local) -> None:
    assert await local.status("kill -9 $$") in (128 + 9, 137)
    assert await local.run("echo alive") == b"alive\n"


async def test_exec_gives_the_output_and_status_of_what_replaced_the_shell(local: Local) -> None:
    result = await local.shell.run("exec sh -c 'echo replaced; exit 5'", timeout_s=TIMEOUT_S, check=False)
    assert (result.status, result.output) == (5, b"replaced\n")
    assert await local.run("echo alive") == b"alive\n"


@pytest.mark.parametrize("command", ["if", "echo 'open", "echo $(", "for do", ")", "cat <<", "{ echo"])
async def test_a_syntax_error_is_a_failed_command(local: Local, command: str) -> None:
    assert await local.status(command) != 0
    assert await local.run("echo alive") == b"alive\n"


async def test_an_empty_command_is_no_trouble(local: Local) -> None:
    for command in ("", "\n", "  ", "# only a remark", ":"):
        assert await local.run(command) == b""


async def test_standard_input_is_empty(local: Local) -> None:
    assert await local.run("cat; read -r line || echo nothing") == b"nothing\n"


async def test_options_that_the_command_sets_do_not_break_the_loop(local: Local) -> None:
    assert await local.status("set -e; false") != 0
    assert await local.run("echo alive") == b"alive\n"
    await local.run("set -u; IFS=:; set -f")
    assert await local.run("echo alive") == b"alive\n"


async def test_a_command_that_reads_the_terminal_itself_or_changes_it_does_not_break_the_loop(local: Local) -> None:
    await local.run("exit_code=0; trap 'true' EXIT; umask 027")
    assert await local.run("echo alive") == b"alive\n"


async def test_a_background_job_does_not_hold_the_command_up(local: Local) -> None:
    assert await local.run("sleep 30 >/dev/null 2>&1 & echo started; kill $!") == b"started\n"
