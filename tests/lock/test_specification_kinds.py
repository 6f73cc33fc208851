"""What people really have in an environment.yml: each kind is read, or refused in one message with line, cause and remedy."""

from __future__ import annotations

import asyncio
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
    return with_dependencies("- python=3.12", "- pip:", *(f"    {line}" for line in lines))


READ = [
    ("torch under pip alone", with_pip("- torch"), {"python": "python=3.12"}, {"torch": "torch"}),
    (
        "pins with spaces",
        with_dependencies("- python 3.12.*", "- numpy >=1.24, <3", "- scipy >= 1.11"),
        {"python": "python 3.12.*", "numpy": "numpy >=1.24, <3", "scipy": "scipy >= 1.11"},
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
    ("an empty pip section", with_dependencies("- numpy", "- pip:"), {"numpy": "numpy"}, {}),
    (
        "selectors",
        with_dependencies("- gcc  # [linux]", "- clang  # [osx]", "- numpy  # fast [win]"),
        {"gcc": "gcc"},
        {},
    ),
    (
        "extras in brackets",
        with_pip("- transformers[torch]>=5", "- datasets[audio,vision]"),
        {"python": "python=3.12"},
        {"transformers": "transformers[torch]>=5", "datasets": "datasets[audio,vision]"},
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
    ("a byte order mark", "\ufeff" + with_dependencies("- numpy"), {"numpy": "numpy"}, {}),
    (
        "lines of Windows",
        with_dependencies("- numpy").replace("\n", "\r\n"),
        {"numpy": "numpy"},
        {},
    ),
]


@pytest.mark.parametrize("title, text, conda, pip", READ, ids=[title for title, *_ in READ])
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
    ("nodefaults alone", "channels: [nodefaults]\n" + NO_CHANNELS, 0, "names no channel", "add"),
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
    ("-r", with_pip("- -r other.txt"), 6, "another file cannot be read", "write its lines"),
    ("-c", with_pip("- -c bounds.txt"), 6, "constraints cannot be read", "write the bounds"),
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
    ("--index-url", with_pip("- --index-url https://x.example"), 6, "no index", "UV_DEFAULT_INDEX"),
    ("--find-links", with_pip("- --find-links /wheels"), 6, "locks name no place", "UV_FIND_LINKS"),
    (
        "--no-build-isolation",
        with_pip("- torch", "- --no-build-isolation"),
        7,
        "nothing of this section is built",
        "remove the line",
    ),
    ("another option", with_pip("- --trusted-host x"), 6, "options of pip", "remove it"),
    ("an option behind a name", with_pip("- peft --pre"), 6, "options of pip", "remove it"),
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
    ("an address", with_pip("- x @ https://host.example/x.whl"), 6, "no address", "name a release"),
    ("a wheel on the disk", with_pip("- x-1-py3-none-any.whl"), 6, "no file", "name a release"),
    ("a folder", with_pip("- ./mine"), 6, "no file", "name a release on PyPI"),
    (
        "no requirement",
        with_pip("- numpy=1.2"),
        6,
        "is no requirement of pip",
        "such as numpy>=1.24",
    ),
    ("twice in pip", with_pip("- peft", "- Peft>=1"), 7, "asks for peft twice", "into one line"),
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
    ("an empty entry", with_dependencies("- numpy", "-"), 5, "is empty", "remove this line"),
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
    ("other platforms", HEAD + "platforms: [osx-64]\ndependencies: [x]\n", 3, "linux-64", "add it"),
    ("no dependencies", HEAD, 0, "it has no `dependencies:`", "conda environment file"),
    ("dependencies as a word", HEAD + "dependencies: numpy\n", 3, "has to be a list", "`- ` line"),
    (
        "a requirements.txt",
        "numpy>=1\nscipy\n",
        1,
        "is not a conda environment file",
        "`channels:`",
    ),
    ("no YAML", HEAD + "dependencies:\n\t- numpy\n", 4, "is no YAML", "mend this line"),
    ("nothing", "", 1, "is not a conda environment file", "`dependencies:`"),
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
    assert cause in message and remedy in message, message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match="cannot be read"):
        read_specification(tmp_path / "environment.yml")


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


def test_a_file_of_many_kinds_locks_and_is_current(
    machine: Machine, channel: LocalChannel, tmp_path: Path
) -> None:
    for name in ("pytorch", "nvidia", "conda-forge"):
        asyncio.run(index_fs(channel.root / name))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "environment.yml").write_text(MANY_KINDS.format(address=machine.address))
    (tmp_path / "mapping.json").write_text("{}")
    environ = clean_environ(
        CONDA_LOCK_SOLVER=str(machine.micromamba / "micromamba"),
        PYPI_TO_CONDA_MAPPING=(tmp_path / "mapping.json").as_uri(),
    )
    lock = machine.project / "scripts/lock.sh"
    done = sh(lock, "--environment", mine, env=environ)
    assert "mine: locked 7 conda and 1 pip packages" in done.stdout, done.stdout
    names = {package.name for package in locks.read_conda_lock(mine / "conda-lock.yml").packages}
    assert {"python", "pytorch", "tqdm", "uv"} <= names
    assert [package.name for package in locks.read_pip_lock(mine / "locks/pip.txt")] == ["idna"]
    assert yaml.safe_load((mine / "conda-lock.yml").read_text())["metadata"]["platforms"] == [
        "linux-64"
    ]
    done = sh(lock, "--environment", mine, "--check", env=environ)
    assert "the locks are current" in done.stdout
