"""Options, as a user gives them: by flag, environment variable, ini key or settings file."""

from __future__ import annotations

from pathlib import Path

import pytest
from inner_run import InnerRun

from pytest_propolis.settings import OPTIONS, Option

JOINED_HOSTS = Path(__file__).with_name("joined_hosts.toml")
NO_DURATIONS = Path(__file__).with_name("no_durations.json")

GIVEN = {
    "guest": ("micro", "'micro'"),
    "cpus": ("3", "3"),
    "memory_mib": ("256", "256"),
    "boot": ("cold", "'cold'"),
    "standby": ("3", "3"),
    "linger": ("7.5", "7.5"),
    "boot_timeout": ("7.5", "7.5"),
    "channel": ("console", "'console'"),
    "accelerator": ("tcg", "'tcg'"),
    "keep": ("failed", "'failed'"),
    "keep_ttl": ("90", "90.0"),
    "pause_on_failure": ("yes", "True"),
    "fail_on": ("oops", "'oops'"),
    "artifact_dir": ("/some/images", "PosixPath('/some/images')"),
    "disk_dir": ("/some/disks", "PosixPath('/some/disks')"),
    "artifacts": ("/some/a.toml:/b.toml", "(PosixPath('/some/a.toml'), PosixPath('/b.toml'))"),
    "image_dirs": ("/some/images:/others", "(PosixPath('/some/images'), PosixPath('/others'))"),
    "log_dir": ("/some/logs", "PosixPath('/some/logs')"),
    "qemu": ("/some/qemu", "PosixPath('/some/qemu')"),
    "server": ("http://127.0.0.1:12400", "'http://127.0.0.1:12400'"),
    "crucible_downstairs": ("/bin/true", "PosixPath('/bin/true')"),
    "boot_rom": ("/tmp/OVMF.fd", "PosixPath('/tmp/OVMF.fd')"),
    "hosts": (str(JOINED_HOSTS), repr(JOINED_HOSTS)),
    "listen": ("127.0.0.1:0", "'127.0.0.1:0'"),
    "coordination": ("etcd://127.0.0.1:2379", "'etcd://127.0.0.1:2379'"),
    "leases": ("/tmp", "PosixPath('/tmp')"),
    "shard": ("1/1", "Shard(number=1, total=1)"),
    "durations": (str(NO_DURATIONS), repr(NO_DURATIONS)),
    "write_durations": ("/dev/null", "PosixPath('/dev/null')"),
    "status": ("/dev/null", "PosixPath('/dev/null')"),
}
"""For each option a text that can be given, and what comes of it."""

SHOW = """
from pytest_propolis.settings import OPTIONS

def test_show(propolis):
    for option in OPTIONS:
        print(f"{option.name} is {getattr(propolis.settings, option.name)!r}")
"""

BAD = [
    ("cpus", "0", "'0' must be from 1 to 64"),
    ("cpus", "two", "'two' must be a whole number from 1 to 64"),
    ("memory_mib", "63", "'63' must be from 64 to 1048576"),
    ("memory_mib", "1GiB", "'1GiB' must be a whole number from 64 to 1048576"),
    ("boot", "hot", "'hot' must be one of warm, cold"),
    ("standby", "some", "'some' must be auto or a whole number from 0 to 64"),
    ("linger", "-1", "'-1' must be 0 or more seconds"),
    ("linger", "soon", "'soon' must be a number of seconds"),
    ("boot_timeout", "0", "'0' must be more than 0 seconds"),
    ("boot_timeout", "soon", "'soon' must be a number of seconds"),
    ("boot_timeout", "nan", "'nan' must be more than 0 seconds"),
    ("channel", "serial", "'serial' must be one of auto, console, port"),
    ("accelerator", "xen", "'xen' must be one of auto, kvm, tcg"),
    ("keep", "sometimes", "'sometimes' must be one of never, failed, always"),
    ("keep_ttl", "0", "'0' must be more than 0 seconds"),
    ("shard", "2", "'2' must be I/N, as in 2/5"),
    ("shard", "0/5", "'0/5' must be from 1/N to N/N"),
    ("shard", "6/5", "'6/5' must be from 1/N to N/N"),
    ("guest", " ", "' ' must not be empty"),
]


@pytest.fixture(autouse=True)
def bare_environment(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove settings that do not come from the test."""
    for option in OPTIONS:
        monkeypatch.delenv(option.variable, raising=False)
    inner.write(test_show=SHOW)


def shown(inner: InnerRun, *arguments: str) -> dict[str, str]:
    """The settings of a run, by name."""
    result = inner.run("-s", *arguments)
    result.assert_outcomes(passed=1)
    lines = [line.removeprefix("test_show.py ") for line in result.outlines]
    return {name: value for name, separator, value in (line.partition(" is ") for line in lines) if separator}


def as_flag(option: Option) -> str:
    return f"{option.flag}={GIVEN[option.name][0]}" if option.metavar else option.flag


def everything_given(shown: dict[str, str]) -> bool:
    return all(shown[name] == value for name, (_, value) in GIVEN.items())


def usage_error(inner: InnerRun, *arguments: str) -> str:
    """The one line with which a run ends that was started wrongly."""
    result = inner.run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in result.stderr.str()
    (line,) = [line for line in result.errlines if line.startswith("ERROR: ")]
    return line.removeprefix("ERROR: ")


def test_every_option_is_tried_here() -> None:
    assert {option.name for option in OPTIONS} == GIVEN.keys() | {"settings_file"}


def test_every_option_has_a_flag(inner: InnerRun) -> None:
    assert everything_given(shown(inner, *map(as_flag, OPTIONS[:-1])))


def test_every_option_has_an_environment_variable(inner: InnerRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for option in OPTIONS[:-1]:
        monkeypatch.setenv(option.variable, GIVEN[option.name][0])
    assert everything_given(shown(inner))


def test_every_option_has_an_ini_key(inner: InnerRun) -> None:
    lines = [f"{option.ini_key} = {GIVEN[option.name][0]}" for option in OPTIONS[:-1]]
    inner.pytester.makeini("\n".join(["[pytest]", *lines]))
    assert everything_given(shown(inner))


def test_every_option_can_stand_in_a_settings_file(inner: InnerRun) -> None:
    lines = [f'{name} = "{text}"' for name, (text, _) in GIVEN.items()]
    file = inner.pytester.path / "propolis.toml"
    file.write_text("\n".join(["[settings]", *lines]))
    assert everything_given(shown(inner, f"--propolis-settings-file={file}"))


NATIVE = """
[{table}]
propolis_memory_mib = 256
propolis_cpus = 3
propolis_boot_timeout = 7.5
propolis_pause_on_failure = true
propolis_standby = 0
propolis_keep_ttl = "90"
propolis_guest = "micro"
"""


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="pytest 9 reads native TOML")
@pytest.mark.parametrize(
    ("file", "table"),
    [("pyproject.toml", "tool.pytest"), ("pytest.toml", "pytest"), (".pytest.toml", "pytest")],
)
def test_native_values_of_toml_are_taken(inner: InnerRun, file: str, table: str) -> None:
    inner.pytester.path.joinpath(file).write_text(NATIVE.format(table=table))
    found = shown(inner, "-o", "propolis_accelerator=tcg")
    names = ("memory_mib", "cpus", "boot_timeout", "pause_on_failure", "standby", "keep_ttl", "guest", "accelerator")
    assert [found[name] for name in names] == ["256", "3", "7.5", "True", "0", "90.0", "'micro'", "'tcg'"]


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="pytest 9 reads native TOML")
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("propolis_cpus = 2.5", "'2.5' must be a whole number from 1 to 64"),
        ("propolis_cpus = true", "'True' must be a whole number from 1 to 64"),
        ("propolis_keep = ['failed']", "\"['failed']\" must be one of never, failed, always"),
    ],
)
def test_a_native_value_of_the_wrong_kind_is_one_usage_error(inner: InnerRun, line: str, complaint: str) -> None:
    inner.pytester.path.joinpath("pytest.toml").write_text(f"[pytest]\n{line}\n")
    assert usage_error(inner) == f"ini key {line.split()[0]}: {complaint}"


LIST_OF_PATHS = """
[tool.pytest{options}]
propolis_image_dirs = ["images", "/others"]
"""

FILES_WITH_PATHS = {
    "setup.cfg": "[tool:pytest]\npropolis_image_dirs = images:/others\n",
    "tox.ini": "[pytest]\npropolis_image_dirs = images:/others\n",
    "pyproject.toml": LIST_OF_PATHS.format(options=".ini_options"),
}


@pytest.mark.parametrize("file", FILES_WITH_PATHS)
def test_paths_in_other_files_are_relative_to_these(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    project = inner.pytester.path
    project.joinpath(file).write_text(FILES_WITH_PATHS[file])
    project.joinpath("sub").mkdir()
    monkeypatch.chdir(project / "sub")
    found = shown(inner, str(project / "test_show.py"))
    assert found["image_dirs"] == str((project / "images", Path("/others")))


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="pytest 9 reads native TOML")
def test_a_list_of_toml_is_taken_for_paths(inner: InnerRun) -> None:
    project = inner.pytester.path
    project.joinpath("pyproject.toml").write_text(LIST_OF_PATHS.format(options=""))
    assert shown(inner)["image_dirs"] == str((project / "images", Path("/others")))


@pytest.mark.parametrize("start", [".", "sub"])
@pytest.mark.parametrize("distribution", [(), ("-n1",)], ids=["one-process", "xdist"])
def test_paths_in_the_ini_file_do_not_depend_on_where_pytest_is_started(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch, start: str, distribution: tuple[str, ...]
) -> None:
    project = inner.pytester.path
    project.joinpath("sub").mkdir()
    project.joinpath("test_show.py").unlink()
    project.joinpath("sub", "test_places.py").write_text(
        "def test_places(propolis):\n"
        "    settings = propolis.settings\n"
        f"    assert str(settings.log_dir) == {str(project / 'logs')!r}\n"
        f"    assert str(settings.qemu) == {str(project / 'vm' / 'qemu')!r}\n"
    )
    project.joinpath("vm").mkdir()
    project.joinpath("vm", "vm.toml").write_text('[settings]\nqemu = "qemu"\n')
    inner.pytester.makeini("[pytest]\npropolis_settings_file = vm/vm.toml\npropolis_log_dir = logs\n")
    monkeypatch.delenv("PROPOLIS_QEMU", raising=False)
    monkeypatch.chdir(project / start)
    inner.run(*distribution, str(project / "sub")).assert_outcomes(passed=1)


def test_flag_goes_before_environment_before_ini_before_settings_file(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner.pytester.path.joinpath("propolis.toml").write_text(
        "[settings]\ncpus = 4\nmemory_mib = 400\nboot_timeout = 40\nkeep = 'never'"
    )
    inner.pytester.makeini(
        "[pytest]\npropolis_settings_file = propolis.toml\n"
        "propolis_cpus = 3\npropolis_memory_mib = 300\npropolis_boot_timeout = 30"
    )
    monkeypatch.setenv("PROPOLIS_CPUS", "2")
    monkeypatch.setenv("PROPOLIS_MEMORY_MIB", "200")
    found = shown(inner, "--propolis-cpus=1")
    assert [found[name] for name in ("cpus", "memory_mib", "boot_timeout", "keep")] == ["1", "200", "30.0", "'never'"]


def test_every_option_is_in_the_help(inner: InnerRun) -> None:
    text = inner.run("--help").stdout.str()
    assert [option.flag for option in OPTIONS if option.flag not in text] == []


@pytest.mark.parametrize(("name", "text", "complaint"), BAD)
def test_a_bad_value_is_one_usage_error_that_names_it(inner: InnerRun, name: str, text: str, complaint: str) -> None:
    flag = next(option.flag for option in OPTIONS if option.name == name)
    assert usage_error(inner, f"{flag}={text}") == f"{flag}: {complaint}"


def test_a_bad_value_in_the_environment_is_named_by_its_variable(
    inner: InnerRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROPOLIS_CPUS", "many")
    assert usage_error(inner).startswith("environment variable PROPOLIS_CPUS: 'many' must be")


def test_a_bad_value_in_the_ini_file_is_named_by_its_key(inner: InnerRun) -> None:
    inner.pytester.makeini("[pytest]\npropolis_keep = often")
    assert usage_error(inner).startswith("ini key propolis_keep: 'often' must be one of")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[settings]\ncpus = 'x'", "settings file *: cpus: 'x' must be a whole number*"),
        ("[settings]\ncolour = 1", "settings file * has unknown keys: colour*"),
        ("cpus = 1", "settings file * has unknown keys: cpus*"),
        ("settings = 1", "settings file *"),
        ("[settings", "settings file * is not TOML: *"),
        (b"\xff\xfe", "settings file * is not TOML: *"),
        (None, "settings file * cannot be read: No such file or directory*"),
    ],
    ids=["bad-value", "unknown-key", "no-table", "not-a-table", "not-toml", "not-text", "missing"],
)
def test_a_bad_settings_file_is_one_usage_error_that_names_it(
    inner: InnerRun, content: str | bytes | None, complaint: str
) -> None:
    file = inner.pytester.path / "propolis.toml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = usage_error(inner, f"--propolis-settings-file={file}")
    pytest.LineMatcher([line]).fnmatch_lines([complaint])
    assert str(file) in line
