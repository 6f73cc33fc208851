"""What people really have in an environment.yml: each kind is read; what is no text in UTF-8 is refused."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from lockedenv.lock.specification import read_specification
from specification_texts import HEAD, read_refusal, with_dependencies, with_pip, write


@dataclass(frozen=True)
class ReadKind:
    """An environment.yml, and the specs that are read from it by name."""

    title: str
    text: str
    conda: dict[str, str]
    pip: dict[str, str]


READ = [
    ReadKind(
        "torch under pip alone",
        with_pip("- torch"),
        {"python": "python=3.12"},
        {"torch": "torch"},
    ),
    ReadKind(
        "pins with spaces",
        with_dependencies("- python 3.12.*", "- numpy >=1.24, <3", "- scipy >= 1.11"),
        {
            "python": "python 3.12.*",
            "numpy": "numpy >=1.24, <3",
            "scipy": "scipy >= 1.11",
        },
        {},
    ),
    ReadKind(
        "comments",
        with_dependencies("# all", "- numpy  # why", "", "- scipy"),
        {"numpy": "numpy", "scipy": "scipy"},
        {},
    ),
    ReadKind(
        "quoted comments",
        with_dependencies('- "numpy>=1  # why"', "- pip:", "    - 'peft  # why'"),
        {"numpy": "numpy>=1"},
        {"peft": "peft"},
    ),
    ReadKind("pip alone", with_dependencies("- pip"), {"pip": "pip"}, {}),
    ReadKind(
        "an empty pip section",
        with_dependencies("- numpy", "- pip:"),
        {"numpy": "numpy"},
        {},
    ),
    ReadKind(
        "selectors",
        with_dependencies(
            "- gcc  # [linux]", "- clang  # [osx]", "- numpy  # fast [win]"
        ),
        {"gcc": "gcc"},
        {},
    ),
    ReadKind(
        "extras in brackets",
        with_pip("- transformers[torch]>=5", "- datasets[audio,vision]"),
        {"python": "python=3.12"},
        {
            "transformers": "transformers[torch]>=5",
            "datasets": "datasets[audio,vision]",
        },
    ),
    ReadKind(
        "markers",
        with_pip("- pywin32; sys_platform == 'win32'"),
        {"python": "python=3.12"},
        {"pywin32": "pywin32; sys_platform == 'win32'"},
    ),
    ReadKind(
        "names in other spellings",
        with_dependencies("- PyYAML", "- pip:", "    - Flash_Attn.4"),
        {"pyyaml": "PyYAML"},
        {"flash-attn-4": "Flash_Attn.4"},
    ),
    ReadKind(
        "a channel by name and a build",
        "channels: [pytorch, conda-forge]\ndependencies: ['pytorch::pytorch=2.5.1=*cuda*']\n",
        {"pytorch": "pytorch::pytorch=2.5.1=*cuda*"},
        {},
    ),
    ReadKind(
        "no name, a prefix, platforms",
        "channels: [conda-forge]\nprefix: /opt/x\nplatforms: [linux-64, osx-arm64]\ndependencies: [numpy]\n",
        {"numpy": "numpy"},
        {},
    ),
    ReadKind(
        "a channel by its address",
        "channels: ['https://conda.anaconda.org/conda-forge/']\ndependencies: [conda-forge::numpy]\n",
        {"numpy": "conda-forge::numpy"},
        {},
    ),
    ReadKind(
        "a byte order mark",
        "\ufeff" + with_dependencies("- numpy"),
        {"numpy": "numpy"},
        {},
    ),
    ReadKind(
        "lines of Windows",
        with_dependencies("- numpy").replace("\n", "\r\n"),
        {"numpy": "numpy"},
        {},
    ),
    ReadKind(
        "two pip sections and an empty one",
        with_dependencies("- numpy", "- pip: [peft]", "- pip: [trl]", "- pip: []"),
        {"numpy": "numpy"},
        {"peft": "peft", "trl": "trl"},
    ),
    ReadKind(
        "anchors",
        HEAD + "dependencies:\n  - &n numpy\n  - scipy\n  - pip: &p [peft]\n",
        {"numpy": "numpy", "scipy": "scipy"},
        {"peft": "peft"},
    ),
    ReadKind(
        "a local version",
        with_pip("- torch==2.5.1+cu124"),
        {"python": "python=3.12"},
        {"torch": "torch==2.5.1+cu124"},
    ),
    ReadKind(
        "a name as a list",
        "name: [a]\n" + with_dependencies("- x")[11:],
        {"x": "x"},
        {},
    ),
    ReadKind(
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
    ReadKind(
        "JSON",
        '{"channels": ["conda-forge"], "dependencies": ["numpy"]}',
        {"numpy": "numpy"},
        {},
    ),
]


@pytest.mark.parametrize("kind", READ, ids=[kind.title for kind in READ])
def test_a_kind_that_is_read(kind: ReadKind, tmp_path: Path) -> None:
    specification = read_specification(write(tmp_path, kind.text))
    assert specification.conda == kind.conda
    assert specification.pip == kind.pip


def test_what_is_no_text_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "environment.yml"
    assert (
        read_refusal(path)
        == "environment.yml: cannot be read: No such file or directory"
    )
    path.mkdir()
    assert read_refusal(path) == "environment.yml: cannot be read: Is a directory"
    path.rmdir()
    os.mkfifo(path)
    assert "cannot be read: it is not a regular file" in read_refusal(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "cannot be read: it is not a regular file" in read_refusal(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(100_000_000)
    assert "cannot be read: it has more than 1,000,000 bytes" in read_refusal(path)


def test_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "environment.yml"
    text = with_dependencies("- numpy  # für alle")
    path.write_text(text, encoding="latin-1")
    assert (
        read_refusal(path) == "environment.yml:4: is not UTF-8; save the file as UTF-8"
    )
    path.write_text(text, encoding="utf-16")
    assert (
        read_refusal(path) == "environment.yml:1: is not UTF-8; save the file as UTF-8"
    )
