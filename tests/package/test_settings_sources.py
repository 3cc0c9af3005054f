"""The sources of settings, and the errors of invalid ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_propolis.errors import SettingsError
from pytest_propolis.settings import OPTIONS, Settings

PLACES = ("command_line", "environment", "ini", "settings_file")


def resolve(
    *,
    command_line: Mapping[str, str | None] | None = None,
    environment: Mapping[str, str] | None = None,
    ini: Mapping[str, str | None] | None = None,
) -> Settings:
    return Settings.resolve(command_line=command_line or {}, environment=environment or {}, ini=ini or {})


def settings_file(directory: Path, text: str) -> Settings:
    path = directory / "settings.toml"
    path.write_text(text)
    return resolve(command_line={"settings_file": str(path)})


def test_without_any_choice_the_documented_defaults_hold() -> None:
    settings = resolve()
    assert (settings.guest, settings.cpus, settings.memory_mib, settings.boot) == ("alpine", 2, 512, "warm")
    assert (settings.accelerator, settings.keep, settings.boot_timeout) == ("auto", "never", 300.0)
    assert settings.standby == "auto"
    assert (settings.artifact_dir, settings.log_dir, settings.qemu, settings.settings_file) == (None,) * 4


def test_every_option_has_a_flag_a_variable_and_an_ini_key_of_the_same_name() -> None:
    for option in OPTIONS:
        words = option.name.split("_")
        assert option.flag == "--propolis-" + "-".join(words)
        assert option.variable == "PROPOLIS_" + "_".join(words).upper()
        assert option.ini_key == "propolis_" + "_".join(words)
        assert option.description
        assert option.usage.startswith(option.flag)


@given(st.dictionaries(st.sampled_from(PLACES), st.integers(1, 64), min_size=1))
def test_the_first_place_that_has_a_value_wins(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, int]
) -> None:
    command_line = {"cpus": str(values["command_line"])} if "command_line" in values else {}
    if "settings_file" in values:
        path = tmp_path_factory.mktemp("settings") / "settings.toml"
        path.write_text(f"[settings]\ncpus = {values['settings_file']}\n")
        command_line["settings_file"] = str(path)
    settings = resolve(
        command_line=command_line,
        environment={"PROPOLIS_CPUS": str(values["environment"])} if "environment" in values else {},
        ini={"cpus": str(values["ini"])} if "ini" in values else {},
    )
    assert settings.cpus == next(values[place] for place in PLACES if place in values)


def test_an_empty_text_is_no_choice() -> None:
    assert resolve(command_line={"cpus": ""}, environment={"PROPOLIS_CPUS": ""}, ini={"cpus": "3"}).cpus == 3


def test_the_settings_file_itself_can_be_named_in_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[settings]\nguest = "micro"\nboot_timeout = 1.5\n')
    settings = resolve(environment={"PROPOLIS_SETTINGS_FILE": str(path)})
    assert (settings.guest, settings.boot_timeout, settings.settings_file) == ("micro", 1.5, path)


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    settings = resolve(
        command_line={"log_dir": "logs", "artifact_dir": "~/images", "image_dirs": os.pathsep.join(("a", "~/b", "/c"))}
    )
    assert (settings.log_dir, settings.artifact_dir) == (tmp_path / "logs", Path("/somewhere/images"))
    assert settings.image_dirs == (tmp_path / "a", Path("/somewhere/b"), Path("/c"))


def test_a_relative_path_in_a_file_is_relative_to_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "vm").mkdir(parents=True)
    elsewhere.mkdir()
    (project / "vm" / "settings.toml").write_text(
        '[settings]\nqemu = "bin/qemu"\nartifact_dir = "/images"\nimage_dirs = ["a", "../b"]\n'
    )
    monkeypatch.chdir(elsewhere)
    settings = Settings.resolve(
        command_line={"artifact_dir": "images"},
        environment={},
        ini={"settings_file": "vm/settings.toml", "log_dir": "logs", "artifacts": "artifacts.toml"},
        ini_directory=project,
    )
    assert settings.image_dirs == (project / "vm" / "a", project / "vm" / ".." / "b")
    assert settings.artifacts == (project / "artifacts.toml",)
    assert settings.settings_file == project / "vm" / "settings.toml"
    assert settings.log_dir == project / "logs"
    assert settings.qemu == project / "vm" / "bin" / "qemu"
    assert settings.artifact_dir == elsewhere / "images"


def test_home_is_expanded_in_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "settings.toml").write_text('[settings]\nqemu = "~/qemu"\n')
    settings = resolve(
        command_line={"settings_file": "~/settings.toml"},
        environment={"PROPOLIS_ARTIFACT_DIR": "~/images"},
        ini={"log_dir": "~/logs"},
    )
    assert settings.qemu == tmp_path / "qemu"
    assert (settings.artifact_dir, settings.log_dir) == (tmp_path / "images", tmp_path / "logs")


def test_a_path_below_a_home_that_is_not_known_is_refused_with_the_remedy() -> None:
    with pytest.raises(SettingsError, match=r"'~nosuchuser/logs' needs a home directory.*set HOME"):
        resolve(command_line={"log_dir": "~nosuchuser/logs"})


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("cpus", "many", "must be a whole number from 1 to 64"),
        ("cpus", "0", "must be from 1 to 64"),
        ("cpus", "65", "must be from 1 to 64"),
        ("memory_mib", "512M", "must be a whole number from 64 to 1048576"),
        ("memory_mib", "63", "must be from 64 to 1048576"),
        ("boot_timeout", "soon", "must be a number of seconds"),
        ("boot_timeout", "0", "must be more than 0 seconds"),
        ("boot_timeout", "-1", "must be more than 0 seconds"),
        ("boot_timeout", "nan", "must be more than 0 seconds"),
        ("boot_timeout", "inf", "must be more than 0 seconds"),
        ("accelerator", "hvf", "must be one of auto, kvm, tcg"),
        ("keep", "Never", "must be one of never, failed, always"),
        ("pause_on_failure", "maybe", "must be yes or no"),
        ("boot", "hot", "must be one of warm, cold"),
        ("guest", "  ", "must not be empty"),
        ("qemu", "  ", "must not be empty"),
        ("artifact_dir", "/\udcff", "must be text in UTF-8: link to it under such a name"),
    ],
)
def test_a_bad_value_is_refused_with_its_place_and_what_is_allowed(name: str, text: str, complaint: str) -> None:
    option = next(option for option in OPTIONS if option.name == name)
    places = {
        option.flag: {"command_line": {name: text}},
        f"environment variable {option.variable}": {"environment": {option.variable: text}},
        f"ini key {option.ini_key}": {"ini": {name: text}},
    }
    for place, given_there in places.items():
        with pytest.raises(SettingsError) as caught:
            resolve(**given_there)
        assert caught.value.message == f"{place}: {text!r} {complaint}"


def test_a_bad_value_in_the_settings_file_is_refused_with_the_file_and_the_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"settings file .*/settings\.toml: cpus: 'no' must be a whole number"):
        settings_file(tmp_path, '[settings]\ncpus = "no"\n')


def test_a_bad_value_that_a_better_place_overrides_does_no_harm() -> None:
    assert resolve(command_line={"cpus": "3"}, environment={"PROPOLIS_CPUS": "no"}).cpus == 3


def test_a_missing_settings_file_is_named_with_who_asked_for_it(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"
    with pytest.raises(SettingsError) as caught:
        resolve(ini={"settings_file": str(path)})
    assert caught.value.message == f"settings file {path} cannot be read: No such file or directory"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("ini key propolis_settings_file names this file")


def test_a_directory_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        resolve(command_line={"settings_file": str(tmp_path)})


@pytest.mark.parametrize("text", ["cpus 3", "[settings", "\x00"])
def test_what_is_not_toml_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="is not TOML"):
        settings_file(tmp_path, text)


def test_a_file_that_is_not_utf_8_is_said_to_be_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b'[settings]\nguest = "\xff"\n')
    with pytest.raises(SettingsError, match="is not TOML"):
        resolve(command_line={"settings_file": str(path)})


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("[settings]\ncpu = 3\n", "cpu"),
        ("[setings]\ncpus = 3\n", "setings"),
        ("cpus = 3\n", "cpus"),
        ('[settings]\nsettings_file = "x"\n', "settings_file"),
    ],
)
def test_unknown_keys_are_named_together_with_the_known_ones(tmp_path: Path, text: str, keys: str) -> None:
    with pytest.raises(SettingsError, match=f"has unknown keys: {keys}") as caught:
        settings_file(tmp_path, text)
    assert "memory_mib" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["settings = 3\n", "settings = ['cpus']\n", "settings = 'cpus'\n"])
def test_settings_that_are_no_table_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="settings"):
        settings_file(tmp_path, text)
