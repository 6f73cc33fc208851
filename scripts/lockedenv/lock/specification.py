"""environment.yml, read once: what it asks for, or one message with line, cause and remedy.

People have many kinds of environment.yml. What can be locked by hash is taken as conda and pip
take it; the rest is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lockedenv.errors import Stop, printable
from lockedenv.host.files import FileRefused, read_regular
from lockedenv.spec.locks import canonical
from lockedenv.spec.suggest import did_you_mean
from packaging.requirements import InvalidRequirement, Requirement

PYPI_NAMES = {"pytorch": "torch", "torchtriton": "triton"}

# Selectors at the end of a line, as conda-lock reads them; other words are other platforms.
# https://conda.github.io/conda-lock/src_environment_yml/#platform-selectors
OUR_SELECTORS = {"linux", "linux64", "unix"}
OTHER_SELECTORS = {"osx", "osx64", "arm64", "win", "win64", "aarch64", "ppc64le"}
_SELECTOR = re.compile(r"#.*\[([^\[\]]+)\][^()]*$")

LARGEST = 1_000_000  # bytes; exports of whole environments have 20,000
_KEYS = ("channels", "dependencies", "platforms")
_IGNORED_KEYS = (
    "name",
    "prefix",
)  # what a prefix is called and where it lies is the set-up's
_STRING = "tag:yaml.org,2002:str"

# A spec of conda: a name, then versions that are bounded or begin with a digit, then a build.
# https://docs.conda.io/projects/conda/en/stable/user-guide/concepts/pkg-specs.html
_BOUND = r"\s*(?:==|>=|<=|!=|~=|=|<|>)\s*[A-Za-z0-9*][A-Za-z0-9.*_+!-]*"
_VERSION = r"\s*[0-9*][A-Za-z0-9.*_+!-]*"
_BUILD = r"(?:\s*=\s*|\s+)[A-Za-z0-9_.*]+"
_CONDA_SPEC = re.compile(
    r"(?:(?P<channel>[^\s:]+)::)?(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)"
    rf"(?:(?:{_BOUND}|\s{_VERSION})(?:\s*[,|](?:{_BOUND}|{_VERSION}))*(?:{_BUILD})?)?",
    re.ASCII,
)

# Channels of Anaconda, Inc., whose terms exclude larger organisations.
_ANACONDA = {"defaults", "main", "r", "msys2", "anaconda", "pro", "free"}
_ANACONDA_HOST = re.compile(
    r"repo\.anaconda\.com|conda\.anaconda\.org/(main|r|anaconda)(/|$)"
)

# Lines of a pip section that are no requirements, with what to do. Each names something that has
# no hash, or another place.
_OTHER_FILE = "another file cannot be read from here; write its lines into this section"
_CONSTRAINTS = (
    "constraints cannot be read from here; write the bounds behind the names "
    "in this section"
)
_EDITABLE = (
    "a folder has no hash; remove the line and install it after the set-up, "
    "with pip install -e"
)
_PLACE = "locks name no place; remove the line and set UV_FIND_LINKS for lock.sh and the set-up"
_INDEX = "locks name no index; remove the line and set UV_DEFAULT_INDEX for lock.sh and the set-up"
_MORE_INDEX = (
    "locks name no index; remove the line and set UV_INDEX for lock.sh and the set-up"
)
_PIP_OPTIONS = {
    "-r": _OTHER_FILE,
    "--requirement": _OTHER_FILE,
    "-c": _CONSTRAINTS,
    "--constraint": _CONSTRAINTS,
    "-e": _EDITABLE,
    "--editable": _EDITABLE,
    "-f": _PLACE,
    "--find-links": _PLACE,
    "-i": _INDEX,
    "--index-url": _INDEX,
    "--extra-index-url": _MORE_INDEX,
    "--no-build-isolation": (
        "nothing of this section is built: only wheels are locked; remove the line"
    ),
    "--pre": "write the version that is wanted instead, such as name==2.0rc1",
    "--hash": "lock.sh finds the hashes of all files itself; write the version alone",
}
_ANY_OPTION = "options of pip cannot be locked; remove it"


class SpecificationError(Stop):
    """environment.yml asks for what cannot be locked.

    The message names the file, the line, the cause, the remedy.
    """

    def __init__(self, path: Path, line: int, problem: str) -> None:
        place = f"{path}:{line}" if line else str(path)
        lines = [printable(line) for line in problem.split("\n")]
        super().__init__(f"{place}: " + "\n".join(lines))


@dataclass(frozen=True)
class Specification:
    """What environment.yml asks for.

    `conda` and `pip`: name -> the spec as written, without its comment.
    """

    path: Path
    channels: list[str] = field(default_factory=list)
    conda: dict[str, str] = field(default_factory=dict)
    pip: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return {*self.conda, *self.pip}


def pypi_name(name: str) -> str:
    """What a conda package is called on PyPI."""
    return canonical(PYPI_NAMES.get(name, name))


def read_specification(path: Path) -> Specification:
    """environment.yml (or environment-dev.yml), parsed. Raises SpecificationError."""
    root = _parse(path, _without_other_platforms(path, _read_text(path)))
    if not isinstance(root, yaml.MappingNode):
        raise SpecificationError(
            path,
            1,
            "is not a conda environment file: it needs `channels:` and `dependencies:`",
        )
    specification = Specification(path)
    sections = _read_sections(path, root)
    if "dependencies" not in sections:
        raise SpecificationError(
            path, 0, "is not a conda environment file: it has no `dependencies:`"
        )
    if "platforms" in sections:
        _refuse_without_linux(path, sections["platforms"])
    _read_channels(specification, sections.get("channels"))
    _read_dependencies(specification, sections["dependencies"])
    return specification


def _read_text(path: Path) -> str:
    try:
        content = read_regular(path, LARGEST)
    except OSError as error:
        raise SpecificationError(path, 0, f"cannot be read: {error.strerror}") from None
    except FileRefused as error:
        raise SpecificationError(
            path,
            0,
            f"cannot be read: {error}; a conda environment file is a small text file",
        ) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecificationError(
            path, line, "is not UTF-8; save the file as UTF-8"
        ) from None


def _parse(path: Path, text: str) -> yaml.Node | None:
    """The document of a text; None if it is empty."""
    try:
        root: yaml.Node | None = yaml.compose(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"is no YAML: it has the character U+{error.character:04X}; remove it"
        raise SpecificationError(path, line, problem) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        problem = f"is no YAML: {error.problem}; mend this line"
        raise SpecificationError(path, line, problem) from None
    except RecursionError:
        raise SpecificationError(
            path,
            0,
            "has lists in lists without end; it needs `channels:` and `dependencies:`",
        ) from None
    return root


def _read_sections(path: Path, root: yaml.MappingNode) -> dict[str, yaml.Node]:
    """Name of a section -> what is in it."""
    sections = {}
    for key, value in root.value:
        name = _key(path, key)
        if name not in (*_KEYS, *_IGNORED_KEYS):
            raise SpecificationError(
                path,
                _line(key),
                f"`{name}:` is not carried into a lock; remove it{did_you_mean(name, _KEYS)}",
            )
        if name in sections:
            raise SpecificationError(
                path, _line(key), f"has `{name}:` twice; write both into one section"
            )
        sections[name] = value
    return sections


def _key(path: Path, node: yaml.Node) -> str:
    """The word before a colon."""
    if not isinstance(node, yaml.ScalarNode):
        raise SpecificationError(
            path, _line(node), "has a list before a colon; write one name there"
        )
    return str(node.value)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _without_other_platforms(path: Path, text: str) -> str:
    """The text with empty lines in place of those with a selector of another platform."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _SELECTOR.search(line)
        if match and not line.lstrip().startswith("#"):
            word = match[1].strip()
            if word in OTHER_SELECTORS:
                line = ""
            elif word not in OUR_SELECTORS and re.search(
                r"\b(linux|osx|win|unix|not|or|and)\b", word
            ):
                raise SpecificationError(
                    path,
                    number,
                    f"the selector [{word}] is not understood; take one of "
                    f"{', '.join(sorted(OUR_SELECTORS | OTHER_SELECTORS))}",
                )
        lines.append(line)
    return "\n".join(lines) + "\n"


def _items(path: Path, node: yaml.Node | None, section: str) -> list[Any]:
    """The nodes of a list; none for an empty section."""
    if node is None or (
        isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~")
    ):
        return []
    if not isinstance(node, yaml.SequenceNode):
        raise SpecificationError(
            path,
            _line(node),
            f"`{section}:` has to be a list, one `- ` line for each entry",
        )
    return list(node.value)


def _text(path: Path, node: yaml.Node) -> str:
    """The text of an entry without a comment that is quoted with it."""
    if not isinstance(node, yaml.ScalarNode):
        raise SpecificationError(
            path,
            _line(node),
            "has to be one name with its version, such as numpy>=1.24",
        )
    text: str = re.split(r"(?:^|\s)#", node.value)[0].strip()
    if not text:
        raise SpecificationError(path, _line(node), "is empty; remove this line")
    if node.tag != _STRING:  # a number, yes or no, null, a tag of some program
        raise SpecificationError(
            path,
            _line(node),
            f"{text} is no name; write one with its version, such as numpy>=1.24",
        )
    return text


def _refuse_without_linux(path: Path, node: yaml.Node) -> None:
    platforms = [_text(path, item) for item in _items(path, node, "platforms")]
    if "linux-64" not in platforms:
        raise SpecificationError(
            path,
            _line(node),
            "locks are for linux-64, which `platforms:` has not; add it",
        )


def _read_channels(specification: Specification, node: yaml.Node | None) -> None:
    path = specification.path
    items = _items(path, node, "channels")
    for item in items:
        channel = _text(path, item)
        where = _line(item)
        if channel.split("/")[0] in {*_ANACONDA, "pkgs"} or _ANACONDA_HOST.search(
            channel
        ):
            raise SpecificationError(
                path,
                where,
                f"the channel {channel} cannot be locked: its terms exclude larger organisations "
                "(https://www.anaconda.com/legal/terms/terms-of-service) and its name stands for "
                "several addresses; write conda-forge in its place",
            )
        if re.search(r"[$?]|://[^/]*@|/t/[^/]+/", channel):
            raise SpecificationError(
                path,
                where,
                "the address of this channel has a password or token, which the lock would "
                "publish; take a channel that needs none, or a proxy that adds it",
            )
        if channel == "local" or re.match(r"[./~]|file:", channel):
            raise SpecificationError(
                path,
                where,
                f"the channel {channel} is a folder of this machine, which others have not; "
                "serve it over HTTP and write its address",
            )
        specification.channels.append(channel)
    if set(specification.channels) <= {"nodefaults"}:
        raise SpecificationError(
            path,
            0,
            "names no channel, and conda would take defaults, which cannot be locked; add\n"
            "channels:\n  - conda-forge\n  - nodefaults",
        )


def _read_dependencies(specification: Specification, node: yaml.Node) -> None:
    path = specification.path
    for item in _items(path, node, "dependencies"):
        if isinstance(item, yaml.MappingNode):
            if not item.value:
                raise SpecificationError(
                    path, _line(item), "is empty; remove this line"
                )
            for key, value in item.value:
                name = _key(path, key)
                if name != "pip":
                    raise SpecificationError(
                        path,
                        _line(key),
                        f"`{name}:` is no package manager here; write {name}=VERSION, or `pip:`",
                    )
                for requirement in _items(path, value, "pip"):
                    _read_requirement(specification, requirement)
        else:
            _read_conda_spec(specification, item)
    for name in specification.conda:
        if pypi_name(name) in specification.pip:
            raise SpecificationError(
                path,
                0,
                f"asks for {name} from conda and from pip; remove one of the two lines",
            )


def _read_conda_spec(specification: Specification, node: yaml.Node) -> None:
    path = specification.path
    text = _text(path, node)
    match = _CONDA_SPEC.fullmatch(text)
    if not match or "://" in text:
        raise SpecificationError(
            path,
            _line(node),
            f"{text} cannot be locked: write a name, a version and a build, such as numpy=1.26, "
            "numpy>=1.24,<3 or libblas=*=*mkl",
        )
    channel = match["channel"]
    name = match["name"]
    known = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in specification.channels}
    if channel in _ANACONDA:
        raise SpecificationError(
            path,
            _line(node),
            f"{text} is of a channel whose terms exclude larger organisations; write {name} alone",
        )
    if channel and channel not in {*known, *specification.channels}:
        raise SpecificationError(
            path,
            _line(node),
            f"{text} is of the channel {channel}; add it to `channels:`",
        )
    if name.lower() in specification.conda:
        raise SpecificationError(
            path, _line(node), f"asks for {name} twice; write both bounds into one line"
        )
    specification.conda[name.lower()] = text


def _read_requirement(specification: Specification, node: yaml.Node) -> None:
    path = specification.path
    text = _text(path, node)
    if text.startswith("-"):
        option = re.split(r"[\s=]", text)[0]
        remedy = _PIP_OPTIONS.get(option, _ANY_OPTION)
        raise SpecificationError(path, _line(node), f"{text}: {remedy}")
    behind = re.search(r"\s(--[\w-]+)", text)
    if behind:
        remedy = _PIP_OPTIONS.get(behind[1], _ANY_OPTION)
        raise SpecificationError(path, _line(node), f"{text}: {remedy}")
    if re.match(r"(git|hg|svn|bzr)\+", text) or re.search(
        r"@\s*(git|hg|svn|bzr)\+", text
    ):
        raise SpecificationError(
            path,
            _line(node),
            f"{text}: a repository has no hash that pip checks; name a release on PyPI, or remove "
            "the line and install it after the set-up",
        )
    if (
        "://" in text
        or re.match(r"[./~]", text)
        or text.endswith((".whl", ".tar.gz", ".zip"))
    ):
        raise SpecificationError(
            path,
            _line(node),
            f"{text}: locks name no address and no file; name a release on PyPI, or remove the "
            "line and install it after the set-up",
        )
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        problem = str(error).splitlines()[0]
        raise SpecificationError(
            path,
            _line(node),
            f"{text} is no requirement of pip ({problem}); write it such as numpy>=1.24",
        ) from None
    name = canonical(requirement.name)
    if name in specification.pip:
        raise SpecificationError(
            path, _line(node), f"asks for {name} twice; write both bounds into one line"
        )
    specification.pip[name] = text
