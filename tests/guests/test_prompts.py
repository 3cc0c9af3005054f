"""Logging in at prompts on a terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from local_pty import console_on_program

from pytest_propolis.errors import BootError
from pytest_propolis.guests.prompts import log_in_at_prompts

PROMPT = re.compile(r"\S+:~# ")
LOGIN = "stty -echo; printf '%s login: ' {host}; read -r user; printf '{answer}'; read -r rest"


@pytest.mark.parametrize("host", ["localhost", "web01.example.org"])
async def test_any_host_name_will_do(host: str, tmp_path: Path) -> None:
    script = LOGIN.format(host=host, answer=f"{host}:~# ")
    async with console_on_program("sh", "-c", script, directory=tmp_path, environment=dict(os.environ)) as console:
        await log_in_at_prompts(console, user="root", prompt=PROMPT)


async def test_a_password_prompt_is_named(tmp_path: Path) -> None:
    script = LOGIN.format(host="web01", answer="Password: ")
    async with console_on_program("sh", "-c", script, directory=tmp_path, environment=dict(os.environ)) as console:
        with pytest.raises(BootError, match="asks for a password of 'root'"):
            await log_in_at_prompts(console, user="root", prompt=PROMPT)
