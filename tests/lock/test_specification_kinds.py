"""What people really have in an environment.yml: each kind is read, or refused in one message with line, cause and remedy."""

from __future__ import annotations

import asyncio
import os
import textwrap
from pathlib import Path

import pytest
import yaml
from fixtures.channel import LocalChannel
from fixtures.commands import clean_environ, sh
from fixtures.machine import Machine
from lockedenv.lock.specification import SpecificationError, read_specification
from lockedenv.spec import locks
from rattler.index import index_fs

HEAD = "name: mine\nchannels: [conda-forge]\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "environment.yml"
    path.write_text(textwrap.dedent(text))
    return path


def with_dependencies(*lines: str) -> str:
    return HEAD + "dependencies:\n" + "".join(f"  {line}\n" for line in lines)


def with_pip(*lines: str) -> str:
    return with_dependencies(
        "- python=3.12", "- pip:", *(f"    {line}" for line in lines)
    )


READ = [
    (
        "torch under pip alone",
        with_pip("- torch"),
        {"python": "python=3.12"},
        {"torch": "torch"},
    ),
    (
        "pins with spaces",
        with_dependencies("- python 3.12.*", "- numpy >=1.24, <3", "- scipy >= 1.11"),
        {
            "python": "python 3.12.*",
            "numpy": "numpy >=1.24, <3",
            "scipy": "scipy >= 1.11",
        },
        {},
    ),
    (
        "comments",
        with_dependencies("# all", "- numpy  # why", "", "- scipy"),
        {"numpy": "numpy", "scipy": "scipy"},
        {},
    ),
    (
        "quoted comments",
        with_dependencies('- "numpy>=1  # why"', "- pip:", "    - 'peft  # why'"),
        {"numpy": "numpy>=1"},
        {"peft": "peft"},
    ),
    ("pip alone", with_dependencies("- pip"), {"pip": "pip"}, {}),
    (
        "an empty pip section",
        with_dependencies("- numpy", "- pip:"),
        {"numpy": "numpy"},
        {},
    ),
    (
        "selectors",
        with_dependencies(
            "- gcc  # [linux]", "- clang  # [osx]", "- numpy  # fast [win]"
        ),
        {"gcc": "gcc"},
        {},
    ),
    (
        "extras in brackets",
        with_pip("- transformers[torch]>=5", "- datasets[audio,vision]"),
        {"python": "python=3.12"},
        {
            "transformers": "transformers[torch]>=5",
            "datasets": "datasets[audio,vision]",
        },
    ),
    (
        "markers",
        with_pip("- pywin32; sys_platform == 'win32'"),
        {"python": "python=3.12"},
        {"pywin32": "pywin32; sys_platform == 'win32'"},
    ),
    (
        "names in other spellings",
        with_dependencies("- PyYAML", "- pip:", "    - Flash_Attn.4"),
        {"pyyaml": "PyYAML"},
        {"flash-attn-4": "Flash_Attn.4"},
    ),
    (
        "a channel by name and a build",
        "channels: [pytorch, conda-forge]\ndependencies: ['pytorch::pytorch=2.5.1=*cuda*']\n",
        {"pytorch": "pytorch::pytorch=2.5.1=*cuda*"},
        {},
    ),
    (
        "no name, a prefix, platforms",
        "channels: [conda-forge]\nprefix: /opt/x\nplatforms: [linux-64, osx-arm64]\ndependencies: [numpy]\n",
        {"numpy": "numpy"},
        {},
    ),
    (
        "a channel by its address",
        "channels: ['https://conda.anaconda.org/conda-forge/']\ndependencies: [conda-forge::numpy]\n",
        {"numpy": "conda-forge::numpy"},
        {},
    ),
    (
        "a byte order mark",
        "\ufeff" + with_dependencies("- numpy"),
        {"numpy": "numpy"},
        {},
    ),
    (
        "lines of Windows",
        with_dependencies("- numpy").replace("\n", "\r\n"),
        {"numpy": "numpy"},
        {},
    ),
    (
        "two pip sections and an empty one",
        with_dependencies("- numpy", "- pip: [peft]", "- pip: [trl]", "- pip: []"),
        {"numpy": "numpy"},
        {"peft": "peft", "trl": "trl"},
    ),
    (
        "anchors",
        HEAD + "dependencies:\n  - &n numpy\n  - scipy\n  - pip: &p [peft]\n",
        {"numpy": "numpy", "scipy": "scipy"},
        {"peft": "peft"},
    ),
    (
        "a local version",
        with_pip("- torch==2.5.1+cu124"),
        {"python": "python=3.12"},
        {"torch": "torch==2.5.1+cu124"},
    ),
    ("a name as a list", "name: [a]\n" + with_dependencies("- x")[11:], {"x": "x"}, {}),
    (
        "all forms of a spec",
        with_dependencies(
            "- a=1.2.*=py312*_0",
            "- b 1.2 h1234_0",
            "- c>=1.2|1.1,!=1.5",
            "- d ~=1.2",
            "- e=*=*mkl",
            "- f ==1!2.0+g1",
            "- _g_mutex",
            "- 7zip",
        ),
        {
            "a": "a=1.2.*=py312*_0",
            "b": "b 1.2 h1234_0",
            "c": "c>=1.2|1.1,!=1.5",
            "d": "d ~=1.2",
            "e": "e=*=*mkl",
            "f": "f ==1!2.0+g1",
            "_g_mutex": "_g_mutex",
            "7zip": "7zip",
        },
        {},
    ),
    (
        "JSON",
        '{"channels": ["conda-forge"], "dependencies": ["numpy"]}',
        {"numpy": "numpy"},
        {},
    ),
]


@pytest.mark.parametrize(
    "title, text, conda, pip", READ, ids=[title for title, *_ in READ]
)
def test_a_kind_that_is_read(
    title: str, text: str, conda: dict[str, str], pip: dict[str, str], tmp_path: Path
) -> None:
    specification = read_specification(write(tmp_path, text))
    assert specification.conda == conda
    assert specification.pip == pip


NO_CHANNELS = "dependencies: [numpy]\n"
REFUSED = [
    # title, text, line, cause, remedy
    (
        "defaults",
        "channels:\n  - defaults\n" + NO_CHANNELS,
        2,
        "its terms exclude",
        "conda-forge in",
    ),
    (
        "defaults by its address",
        "channels:\n  - https://repo.anaconda.com/pkgs/main\n" + NO_CHANNELS,
        2,
        "its terms exclude",
        "write conda-forge in its place",
    ),
    ("no channels", NO_CHANNELS, 0, "conda would take defaults", "- conda-forge"),
    (
        "nodefaults alone",
        "channels: [nodefaults]\n" + NO_CHANNELS,
        0,
        "names no channel",
        "add",
    ),
    (
        "a channel with a password",
        "channels:\n  - https://me:secret@conda.example/x\n" + NO_CHANNELS,
        2,
        "the lock would publish",
        "take a channel that needs none",
    ),
    (
        "a channel with a token",
        "channels: ['https://conda.anaconda.org/t/ab-12/me']\n" + NO_CHANNELS,
        1,
        "the lock would publish",
        "take a channel that needs none",
    ),
    (
        "-r",
        with_pip("- -r other.txt"),
        6,
        "another file cannot be read",
        "write its lines",
    ),
    (
        "-c",
        with_pip("- -c bounds.txt"),
        6,
        "constraints cannot be read",
        "write the bounds",
    ),
    (
        "-e .",
        with_pip("- -e ."),
        6,
        "a folder has no hash",
        "after the set-up, with pip install -e",
    ),
    (
        "--extra-index-url",
        with_pip("- --extra-index-url https://download.pytorch.org/whl/cu124"),
        6,
        "locks name no index",
        "set UV_INDEX",
    ),
    (
        "--extra-index-url with =",
        with_pip("- --extra-index-url=https://index.example"),
        6,
        "locks name no index",
        "set UV_INDEX",
    ),
    (
        "--index-url",
        with_pip("- --index-url https://x.example"),
        6,
        "no index",
        "UV_DEFAULT_INDEX",
    ),
    (
        "--find-links",
        with_pip("- --find-links /wheels"),
        6,
        "locks name no place",
        "UV_FIND_LINKS",
    ),
    (
        "--no-build-isolation",
        with_pip("- torch", "- --no-build-isolation"),
        7,
        "nothing of this section is built",
        "remove the line",
    ),
    (
        "another option",
        with_pip("- --trusted-host x"),
        6,
        "options of pip",
        "remove it",
    ),
    (
        "an option behind a name",
        with_pip("- peft --pre"),
        6,
        "peft --pre",
        "name==2.0rc1",
    ),
    (
        "a repository",
        with_pip("- git+https://github.com/huggingface/peft"),
        6,
        "a repository has no hash",
        "name a release on PyPI",
    ),
    (
        "a repository by name",
        with_pip("- peft @ git+https://github.com/huggingface/peft@main"),
        6,
        "a repository has no hash",
        "name a release on PyPI",
    ),
    (
        "an address",
        with_pip("- x @ https://host.example/x.whl"),
        6,
        "no address",
        "name a release",
    ),
    (
        "a wheel on the disk",
        with_pip("- x-1-py3-none-any.whl"),
        6,
        "no file",
        "name a release",
    ),
    ("a folder", with_pip("- ./mine"), 6, "no file", "name a release on PyPI"),
    (
        "no requirement",
        with_pip("- numpy=1.2"),
        6,
        "is no requirement of pip",
        "such as numpy>=1.24",
    ),
    (
        "twice in pip",
        with_pip("- peft", "- Peft>=1"),
        7,
        "asks for peft twice",
        "into one line",
    ),
    (
        "twice in conda",
        with_dependencies("- numpy", "- numpy>=1"),
        5,
        "numpy twice",
        "into one line",
    ),
    (
        "from both managers",
        with_dependencies("- pytorch", "- pip:", "    - torch"),
        0,
        "asks for pytorch from conda and from pip",
        "remove one of the two lines",
    ),
    (
        "brackets of conda",
        with_dependencies("- numpy[version='>=1.2']"),
        4,
        "cannot be locked",
        "such as numpy=1.26",
    ),
    (
        "an archive",
        with_dependencies("- https://x.example/a-1-0.conda"),
        4,
        "cannot be locked",
        "write",
    ),
    (
        "a channel that is not named",
        with_dependencies("- nvidia::cuda-nvcc"),
        4,
        "is of the channel nvidia",
        "add it to `channels:`",
    ),
    (
        "a version as a mapping",
        with_dependencies("- python: 3.12"),
        4,
        "no package manager",
        "python=V",
    ),
    (
        "a list in a list",
        with_dependencies("- [numpy]"),
        4,
        "one name with its version",
        "numpy>=1.24",
    ),
    (
        "an empty entry",
        with_dependencies("- numpy", "-"),
        5,
        "is empty",
        "remove this line",
    ),
    (
        "a selector of other words",
        with_dependencies("- numpy  # [linux and not osx]"),
        4,
        "the selector [linux and not osx] is not understood",
        "take one of",
    ),
    (
        "variables",
        HEAD + "variables:\n  A: b\ndependencies: [numpy]\n",
        3,
        "`variables:`",
        "remove it",
    ),
    (
        "other platforms",
        HEAD + "platforms: [osx-64]\ndependencies: [x]\n",
        3,
        "linux-64",
        "add it",
    ),
    ("no dependencies", HEAD, 0, "it has no `dependencies:`", "conda environment file"),
    (
        "dependencies as a word",
        HEAD + "dependencies: numpy\n",
        3,
        "has to be a list",
        "`- ` line",
    ),
    (
        "a requirements.txt",
        "numpy>=1\nscipy\n",
        1,
        "is not a conda environment file",
        "`channels:`",
    ),
    ("no YAML", HEAD + "dependencies:\n\t- numpy\n", 4, "is no YAML", "mend this line"),
    ("nothing", "", 1, "is not a conda environment file", "`dependencies:`"),
    (
        "a section twice",
        HEAD + "dependencies: [numpy]\ndependencies: [scipy]\n",
        4,
        "has `dependencies:` twice",
        "into one section",
    ),
    (
        "channels twice",
        HEAD + "channels: [nvidia]\ndependencies: [scipy]\n",
        3,
        "has `channels:` twice",
        "into one section",
    ),
    (
        "a misspelt section",
        HEAD + "dependancies: [numpy]\n",
        3,
        "`dependancies:` is not carried into a lock",
        "did you mean dependencies?",
    ),
    (
        "a list as a key",
        HEAD + "? [a]\n: b\n",
        3,
        "a list before a colon",
        "write one name",
    ),
    (
        "a template as an entry",
        with_dependencies("- {{ numpy }}"),
        4,
        "a list before a colon",
        "write one name",
    ),
    ("an empty mapping", with_dependencies("- {}"), 4, "is empty", "remove this line"),
    (
        "lists without end",
        HEAD + "dependencies: " + "[" * 5000,
        0,
        "lists in lists without end",
        "it needs `channels:`",
    ),
    (
        "an anchor in itself",
        HEAD + "dependencies: &a [*a]\n",
        3,
        "has to be one name",
        "numpy>=1.24",
    ),
    (
        "tabs behind a name",
        with_dependencies("- numpy\t>=1"),
        4,
        "is no YAML",
        "mend this line",
    ),
    (
        "two documents",
        with_dependencies("- x") + "---\n",
        5,
        "another document",
        "mend this line",
    ),
    (
        "a character of no text",
        with_dependencies("- num\0py"),
        4,
        "it has the character U+0000",
        "remove it",
    ),
    (
        "a number",
        with_dependencies("- 3.12"),
        4,
        "3.12 is no name",
        "such as numpy>=1.24",
    ),
    (
        "a number under pip",
        with_pip("- 2.5"),
        6,
        "2.5 is no name",
        "such as numpy>=1.24",
    ),
    ("null", with_dependencies("- null"), 4, "null is no name", "such as numpy>=1.24"),
    (
        "a tag",
        with_dependencies("- !env numpy"),
        4,
        "numpy is no name",
        "such as numpy>=1.24",
    ),
    (
        "letters",
        with_dependencies("- nümpy"),
        4,
        "nümpy cannot be locked",
        "such as numpy=1.26",
    ),
    (
        "a hard space",
        with_dependencies("- numpy\u00a0>=1"),
        4,
        "cannot be",
        "such as numpy=1.26",
    ),
    (
        "an unseen character",
        with_dependencies("- numpy\u200b"),
        4,
        r"numpy\u200b cannot be locked",
        "such as numpy=1.26",
    ),
    (
        "a terminal's command",
        with_dependencies('- "numpy\\e[31m"'),
        4,
        r"numpy\x1b[31m cannot be locked",
        "such as numpy=1.26",
    ),
    (
        "two names",
        with_dependencies("- numpy scipy"),
        4,
        "cannot be locked",
        "numpy=1.26",
    ),
    (
        "names and a comma",
        with_dependencies("- numpy, scipy"),
        4,
        "cannot be locked",
        "numpy=1.26",
    ),
    (
        "a bound reversed",
        with_dependencies("- numpy=>1.2"),
        4,
        "cannot be locked",
        "numpy>=1.24,<3",
    ),
    (
        "a bound without end",
        with_dependencies("- numpy>="),
        4,
        "cannot be locked",
        "numpy>=1.24,<3",
    ),
    (
        "a marker for conda",
        with_dependencies("- x; python_version>'3'"),
        4,
        "cannot be",
        "x",
    ),
    (
        "an option of conda",
        with_dependencies("- -c conda-forge x"),
        4,
        "cannot be",
        "numpy=1.26",
    ),
    (
        "a variable",
        with_dependencies("- numpy=${V}"),
        4,
        "cannot be locked",
        "numpy=1.26",
    ),
    (
        "a package of defaults",
        with_dependencies("- defaults::numpy"),
        4,
        "terms exclude",
        "write numpy alone",
    ),
    (
        "main",
        "channels: [main]\n" + NO_CHANNELS,
        1,
        "its terms exclude",
        "write conda-forge",
    ),
    (
        "Anaconda's channel by its address",
        "channels: ['https://conda.anaconda.org/anaconda']\n" + NO_CHANNELS,
        1,
        "its terms exclude",
        "write conda-forge",
    ),
    (
        "a channel with a question mark",
        "channels: ['https://x.example/c?token=ab']\n" + NO_CHANNELS,
        1,
        "the lock would publish",
        "take a channel that needs none",
    ),
    (
        "a folder as a channel",
        "channels: ['file:///srv/channel']\n" + NO_CHANNELS,
        1,
        "is a folder of this machine",
        "serve it over HTTP",
    ),
    (
        "a hash",
        with_pip("- torch==2.5.1 --hash=sha256:ab"),
        6,
        "lock.sh finds the hashes",
        "write the version alone",
    ),
    (
        "torch at an address",
        with_pip("- torch @ https://download.pytorch.org/whl/cu124/torch-2.5.1.whl"),
        6,
        "locks name no address",
        "name a release on PyPI",
    ),
    (
        "a mapping under pip",
        with_dependencies("- pip: {x: 1}"),
        4,
        "has to be a list",
        "`- ` line",
    ),
]


@pytest.mark.parametrize(
    "title, text, line, cause, remedy", REFUSED, ids=[title for title, *_ in REFUSED]
)
def test_a_kind_that_is_refused_in_one_message(
    title: str, text: str, line: int, cause: str, remedy: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecificationError) as error:
        read_specification(path)
    message = str(error.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: "), message
    assert cause in message, message
    assert remedy in message, message


def refusal(path: Path) -> str:
    with pytest.raises(SpecificationError) as error:
        read_specification(path)
    return str(error.value).replace(str(path), "environment.yml")


def test_what_is_no_text_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "environment.yml"
    assert refusal(path) == "environment.yml: cannot be read: No such file or directory"
    path.mkdir()
    assert refusal(path) == "environment.yml: cannot be read: Is a directory"
    path.rmdir()
    os.mkfifo(path)
    assert "cannot be read: it is not a regular file" in refusal(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "cannot be read: it is not a regular file" in refusal(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(100_000_000)
    assert "cannot be read: it has more than 1,000,000 bytes" in refusal(path)


def test_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "environment.yml"
    text = with_dependencies("- numpy  # für alle")
    path.write_text(text, encoding="latin-1")
    assert refusal(path) == "environment.yml:4: is not UTF-8; save the file as UTF-8"
    path.write_text(text, encoding="utf-16")
    assert refusal(path) == "environment.yml:1: is not UTF-8; save the file as UTF-8"


MANY_KINDS = """\
channels:  # by address, and no name
  - {address}/pytorch/
  - {address}/nvidia
  - {address}/conda-forge
dependencies:
  - python 3.11.*
  - pytorch >=2.5, <3
  - libcublas
  - "tqdm  # quoted comment"
  - no-such-package  # [osx]
  - uv  # [linux]
  - setuptools
  - pip
  - pip:
      - "idna>=3  # quoted comment"
      - pywin32; sys_platform == 'win32'
"""


def prepare_locking(
    machine: Machine, channel: LocalChannel, mine: Path, text: str
) -> dict[str, str]:
    """Writes an environment.yml over the local channel; gives the variables of lock.sh."""
    for name in ("pytorch", "nvidia", "conda-forge"):
        asyncio.run(index_fs(channel.root / name))
    mine.mkdir()
    (mine / "environment.yml").write_text(text.format(address=machine.address))
    mapping = mine.with_name("mapping.json")
    mapping.write_text("{}")
    return clean_environ(
        CONDA_LOCK_SOLVER=str(machine.micromamba / "micromamba"),
        PYPI_TO_CONDA_MAPPING=mapping.as_uri(),
    )


LOCAL_VERSION = """\
channels: ["{address}/conda-forge"]
dependencies:
  - python=3.11
  - pip: [torch==2.5.1+cu124]
"""


def test_a_package_that_no_channel_has_is_named_in_one_message(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    text = LOCAL_VERSION.replace(
        "  - python=3.11\n", "  - python=3.11\n  - no-such-package\n"
    )
    environ = prepare_locking(machine, channel, mine, text)
    lock = machine.project / "scripts/lock.sh"
    done = sh(lock, "--environment", mine, env=environ, check=False)
    assert done.returncode == 1, done.stdout
    assert len(done.stdout.splitlines()) == 1, done.stdout
    line = done.stdout.strip()
    start = f"lock.sh: {mine}/environment.yml: the solver finds no packages for it: "
    assert line.startswith(start)
    assert "no-such-package" in line
    assert "mend the names" in line


def test_a_build_that_the_index_lacks_is_named_with_what_to_write(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    environ = prepare_locking(machine, channel, mine, LOCAL_VERSION)
    lock = machine.project / "scripts/lock.sh"
    done = sh(lock, "--environment", mine, env=environ, check=False)
    assert done.returncode == 1
    cause = "torch==2.5.1+cu124 is a build that PyPI does not have: leave out the +"
    assert f"{mine}/environment.yml: conda has solved" in done.stdout
    assert cause in done.stdout
    assert "Traceback" not in done.stdout
    assert [path.name for path in mine.iterdir()] == ["environment.yml"]


def test_a_file_of_many_kinds_locks_and_is_current(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    environ = prepare_locking(machine, channel, mine, MANY_KINDS)
    lock = machine.project / "scripts/lock.sh"
    done = sh(lock, "--environment", mine, env=environ)
    assert "mine: locked 7 conda and 1 pip packages" in done.stdout, done.stdout
    names = {
        package.name
        for package in locks.read_conda_lock(mine / "conda-lock.yml").packages
    }
    assert {"python", "pytorch", "tqdm", "uv"} <= names
    assert [
        package.name for package in locks.read_pip_lock(mine / "locks/pip.txt")
    ] == ["idna"]
    assert yaml.safe_load((mine / "conda-lock.yml").read_text())["metadata"][
        "platforms"
    ] == ["linux-64"]
    done = sh(lock, "--environment", mine, "--check", env=environ)
    assert "the locks are current" in done.stdout
