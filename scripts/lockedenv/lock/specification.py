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
from lockedenv.errors import Stop
from lockedenv.spec.locks import canonical
from packaging.requirements import InvalidRequirement, Requirement

PYPI_NAMES = {"pytorch": "torch", "torchtriton": "triton"}

# Selectors at the end of a line, as conda-lock reads them; other words are other platforms.
# https://conda.github.io/conda-lock/src_environment_yml/#platform-selectors
OUR_SELECTORS = {"linux", "linux64", "unix"}
OTHER_SELECTORS = {"osx", "osx64", "arm64", "win", "win64", "aarch64", "ppc64le"}
_SELECTOR = re.compile(r"#.*\[([^\[\]]+)\][^()]*$")
_CONDA_NAME = re.compile(r"(?:([^\s:]+)::)?([A-Za-z0-9._-]+)")
_IGNORED_KEYS = {"name", "prefix"}  # what a prefix is called and where it lies is the set-up's

# Lines of a pip section that are no requirements, with what to do. Each names something that has
# no hash, or another place.
_OTHER_FILE = "another file cannot be read from here; write its lines into this section"
_CONSTRAINTS = (
    "constraints cannot be read from here; write the bounds behind the names in this section"
)
_EDITABLE = (
    "a folder has no hash; remove the line and install it after the set-up, with pip install -e"
)
_PLACE = "locks name no place; remove the line and set UV_FIND_LINKS for lock.sh and the set-up"
_INDEX = "locks name no index; remove the line and set UV_DEFAULT_INDEX for lock.sh and the set-up"
_MORE_INDEX = "locks name no index; remove the line and set UV_INDEX for lock.sh and the set-up"
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
}
_ANY_OPTION = "options of pip cannot be locked; remove it"


class SpecificationError(Stop):
    """environment.yml asks for what cannot be locked.

    The message names the file, the line, the cause, the remedy.
    """

    def __init__(self, path: Path, line: int, problem: str) -> None:
        place = f"{path}:{line}" if line else str(path)
        super().__init__(f"{place}: {problem}")


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
    try:
        root = yaml.compose(_without_other_platforms(path, path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecificationError(path, 0, f"cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 0
        problem = getattr(error, "problem", None) or error
        raise SpecificationError(path, line, f"is no YAML: {problem}; mend this line") from None
    if not isinstance(root, yaml.MappingNode):
        raise SpecificationError(
            path, 1, "is not a conda environment file: it needs `channels:` and `dependencies:`"
        )
    specification = Specification(path)
    sections = {key.value: value for key, value in root.value}
    for key, value in root.value:
        if key.value not in ("channels", "dependencies", "platforms", *_IGNORED_KEYS):
            raise SpecificationError(
                path, _line(key), f"`{key.value}:` is not carried into a lock; remove it"
            )
    if "dependencies" not in sections:
        raise SpecificationError(
            path, 0, "is not a conda environment file: it has no `dependencies:`"
        )
    if "platforms" in sections:
        _refuse_without_linux(path, sections["platforms"])
    _read_channels(specification, sections.get("channels"))
    _read_dependencies(specification, sections["dependencies"])
    return specification


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
    if node is None or (isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~")):
        return []
    if not isinstance(node, yaml.SequenceNode):
        raise SpecificationError(
            path, _line(node), f"`{section}:` has to be a list, one `- ` line for each entry"
        )
    return list(node.value)


def _text(path: Path, node: yaml.Node) -> str:
    """The text of an entry without a comment that is quoted with it."""
    if not isinstance(node, yaml.ScalarNode):
        raise SpecificationError(
            path, _line(node), "has to be one name with its version, such as numpy>=1.24"
        )
    text: str = re.split(r"(?:^|\s)#", node.value)[0].strip()
    if not text:
        raise SpecificationError(path, _line(node), "is empty; remove this line")
    return text


def _refuse_without_linux(path: Path, node: yaml.Node) -> None:
    platforms = [_text(path, item) for item in _items(path, node, "platforms")]
    if "linux-64" not in platforms:
        raise SpecificationError(
            path, _line(node), "locks are for linux-64, which `platforms:` has not; add it"
        )


def _read_channels(specification: Specification, node: yaml.Node | None) -> None:
    path = specification.path
    items = _items(path, node, "channels")
    for item in items:
        channel = _text(path, item)
        where = _line(item)
        if channel == "defaults" or "repo.anaconda.com" in channel:
            raise SpecificationError(
                path,
                where,
                f"the channel {channel} cannot be locked: its terms exclude larger organisations "
                "(https://www.anaconda.com/legal/terms/terms-of-service) and its name stands for "
                "several addresses; write conda-forge in its place",
            )
        if "$" in channel or re.search(r"://[^/]*@|/t/[^/]+/", channel):
            raise SpecificationError(
                path,
                where,
                "the address of this channel has a password or token, which the lock would "
                "publish; take a channel that needs none, or a proxy that adds it",
            )
        specification.channels.append(channel)
    if not [channel for channel in specification.channels if channel != "nodefaults"]:
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
            for key, value in item.value:
                if key.value != "pip":
                    raise SpecificationError(
                        path,
                        _line(key),
                        f"`{key.value}:` is no package manager here; "
                        f"write {key.value}=VERSION, or `pip:`",
                    )
                for requirement in _items(path, value, "pip"):
                    _read_requirement(specification, requirement)
        else:
            _read_conda_spec(specification, item)
    for name in specification.conda:
        if pypi_name(name) in specification.pip:
            raise SpecificationError(
                path, 0, f"asks for {name} from conda and from pip; remove one of the two lines"
            )


def _read_conda_spec(specification: Specification, node: yaml.Node) -> None:
    path = specification.path
    text = _text(path, node)
    match = _CONDA_NAME.match(text)
    if not match or re.search(r"[\[\]@/]|://", text[match.end() :]) or "://" in text:
        raise SpecificationError(
            path,
            _line(node),
            f"{text} cannot be locked: write a name, a version and a build, such as numpy=1.26 or "
            "libblas=*=*mkl",
        )
    channel, name = match.groups()
    known = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in specification.channels}
    if channel and channel not in {*known, *specification.channels}:
        raise SpecificationError(
            path, _line(node), f"{text} is of the channel {channel}; add it to `channels:`"
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
    if re.search(r"\s--\w", text):
        raise SpecificationError(path, _line(node), f"{text}: {_ANY_OPTION}")
    if re.match(r"(git|hg|svn|bzr)\+", text) or re.search(r"@\s*(git|hg|svn|bzr)\+", text):
        raise SpecificationError(
            path,
            _line(node),
            f"{text}: a repository has no hash that pip checks; name a release on PyPI, or remove "
            "the line and install it after the set-up",
        )
    if "://" in text or re.match(r"[./~]", text) or text.endswith((".whl", ".tar.gz", ".zip")):
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
