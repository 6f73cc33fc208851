"""A line of an environment.yml that cannot be locked is refused in one message with its number, cause and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from specification_texts import RefusedKind, assert_refused, with_dependencies, with_pip

OF_CONDA = [
    RefusedKind(
        "twice in conda",
        with_dependencies("- numpy", "- numpy>=1"),
        5,
        "numpy twice",
        "into one line",
    ),
    RefusedKind(
        "brackets of conda",
        with_dependencies("- numpy[version='>=1.2']"),
        4,
        "cannot be locked",
        "such as numpy=1.26",
    ),
    RefusedKind(
        "an archive",
        with_dependencies("- https://x.example/a-1-0.conda"),
        4,
        "cannot be locked",
        "write",
    ),
    RefusedKind(
        "a channel that is not named",
        with_dependencies("- nvidia::cuda-nvcc"),
        4,
        "is of the channel nvidia",
        "add it to `channels:`",
    ),
    RefusedKind(
        "a version as a mapping",
        with_dependencies("- python: 3.12"),
        4,
        "no package manager",
        "python=V",
    ),
    RefusedKind(
        "a number",
        with_dependencies("- 3.12"),
        4,
        "3.12 is no name",
        "such as numpy>=1.24",
    ),
    RefusedKind(
        "null", with_dependencies("- null"), 4, "null is no name", "such as numpy>=1.24"
    ),
    RefusedKind(
        "a tag",
        with_dependencies("- !env numpy"),
        4,
        "numpy is no name",
        "such as numpy>=1.24",
    ),
    RefusedKind(
        "letters",
        with_dependencies("- nümpy"),
        4,
        "nümpy cannot be locked",
        "such as numpy=1.26",
    ),
    RefusedKind(
        "a hard space",
        with_dependencies("- numpy\u00a0>=1"),
        4,
        "cannot be",
        "such as numpy=1.26",
    ),
    RefusedKind(
        "an unseen character",
        with_dependencies("- numpy\u200b"),
        4,
        r"numpy\u200b cannot be locked",
        "such as numpy=1.26",
    ),
    RefusedKind(
        "a terminal's command",
        with_dependencies('- "numpy\\e[31m"'),
        4,
        r"numpy\x1b[31m cannot be locked",
        "such as numpy=1.26",
    ),
    RefusedKind(
        "two names",
        with_dependencies("- numpy scipy"),
        4,
        "cannot be locked",
        "numpy=1.26",
    ),
    RefusedKind(
        "names and a comma",
        with_dependencies("- numpy, scipy"),
        4,
        "cannot be locked",
        "numpy=1.26",
    ),
    RefusedKind(
        "a bound reversed",
        with_dependencies("- numpy=>1.2"),
        4,
        "cannot be locked",
        "numpy>=1.24,<3",
    ),
    RefusedKind(
        "a bound without end",
        with_dependencies("- numpy>="),
        4,
        "cannot be locked",
        "numpy>=1.24,<3",
    ),
    RefusedKind(
        "a marker for conda",
        with_dependencies("- x; python_version>'3'"),
        4,
        "cannot be",
        "x",
    ),
    RefusedKind(
        "an option of conda",
        with_dependencies("- -c conda-forge x"),
        4,
        "cannot be",
        "numpy=1.26",
    ),
    RefusedKind(
        "a variable",
        with_dependencies("- numpy=${V}"),
        4,
        "cannot be locked",
        "numpy=1.26",
    ),
    RefusedKind(
        "a package of defaults",
        with_dependencies("- defaults::numpy"),
        4,
        "terms exclude",
        "write numpy alone",
    ),
]

OF_PIP = [
    RefusedKind(
        "-r",
        with_pip("- -r other.txt"),
        6,
        "another file cannot be read",
        "write its lines",
    ),
    RefusedKind(
        "-c",
        with_pip("- -c bounds.txt"),
        6,
        "constraints cannot be read",
        "write the bounds",
    ),
    RefusedKind(
        "-e .",
        with_pip("- -e ."),
        6,
        "a folder has no hash",
        "after the set-up, with pip install -e",
    ),
    RefusedKind(
        "--extra-index-url",
        with_pip("- --extra-index-url https://download.pytorch.org/whl/cu124"),
        6,
        "locks name no index",
        "set UV_INDEX",
    ),
    RefusedKind(
        "--extra-index-url with =",
        with_pip("- --extra-index-url=https://index.example"),
        6,
        "locks name no index",
        "set UV_INDEX",
    ),
    RefusedKind(
        "--index-url",
        with_pip("- --index-url https://x.example"),
        6,
        "no index",
        "UV_DEFAULT_INDEX",
    ),
    RefusedKind(
        "--find-links",
        with_pip("- --find-links /wheels"),
        6,
        "locks name no place",
        "UV_FIND_LINKS",
    ),
    RefusedKind(
        "--no-build-isolation",
        with_pip("- torch", "- --no-build-isolation"),
        7,
        "nothing of this section is built",
        "remove the line",
    ),
    RefusedKind(
        "another option",
        with_pip("- --trusted-host x"),
        6,
        "options of pip",
        "remove it",
    ),
    RefusedKind(
        "an option behind a name",
        with_pip("- peft --pre"),
        6,
        "peft --pre",
        "name==2.0rc1",
    ),
    RefusedKind(
        "a repository",
        with_pip("- git+https://github.com/huggingface/peft"),
        6,
        "a repository has no hash",
        "name a release on PyPI",
    ),
    RefusedKind(
        "a repository by name",
        with_pip("- peft @ git+https://github.com/huggingface/peft@main"),
        6,
        "a repository has no hash",
        "name a release on PyPI",
    ),
    RefusedKind(
        "an address",
        with_pip("- x @ https://host.example/x.whl"),
        6,
        "no address",
        "name a release",
    ),
    RefusedKind(
        "a wheel on the disk",
        with_pip("- x-1-py3-none-any.whl"),
        6,
        "no file",
        "name a release",
    ),
    RefusedKind(
        "a folder", with_pip("- ./mine"), 6, "no file", "name a release on PyPI"
    ),
    RefusedKind(
        "no requirement",
        with_pip("- numpy=1.2"),
        6,
        "is no requirement of pip",
        "such as numpy>=1.24",
    ),
    RefusedKind(
        "twice in pip",
        with_pip("- peft", "- Peft>=1"),
        7,
        "asks for peft twice",
        "into one line",
    ),
    RefusedKind(
        "a number under pip",
        with_pip("- 2.5"),
        6,
        "2.5 is no name",
        "such as numpy>=1.24",
    ),
    RefusedKind(
        "a hash",
        with_pip("- torch==2.5.1 --hash=sha256:ab"),
        6,
        "lock.sh finds the hashes",
        "write the version alone",
    ),
    RefusedKind(
        "torch at an address",
        with_pip("- torch @ https://download.pytorch.org/whl/cu124/torch-2.5.1.whl"),
        6,
        "locks name no address",
        "name a release on PyPI",
    ),
    RefusedKind(
        "from both managers",
        with_dependencies("- pytorch", "- pip:", "    - torch"),
        0,
        "asks for pytorch from conda and from pip",
        "remove one of the two lines",
    ),
]
KINDS = [*OF_CONDA, *OF_PIP]


@pytest.mark.parametrize("kind", KINDS, ids=[kind.title for kind in KINDS])
def test_a_kind_that_is_refused_in_one_message(
    kind: RefusedKind, tmp_path: Path
) -> None:
    assert_refused(kind, tmp_path)
