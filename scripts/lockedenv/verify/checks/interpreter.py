"""The Python that a virtual environment runs, which is the machine's and comes from no lock."""

from __future__ import annotations

from pathlib import Path

from lockedenv.errors import Stop
from lockedenv.host.files import FileRefused, read_regular
from lockedenv.prefix.interpreter import Interpreter, read_interpreter
from lockedenv.verify.checks import (
    Context,
    Result,
    check,
    damaged,
    first,
    passed,
    skipped,
    warned,
)
from lockedenv.verify.remedies import RemedyKind

START_MODULES = ("sitecustomize", "usercustomize")
# The sitecustomize.py of Ubuntu's python3-minimal, which reports crashes to the distribution.
UBUNTU = b"""\
# install the apport exception handler if available
try:
    import apport_python_hook
except ImportError:
    pass
else:
    apport_python_hook.install()
"""


@check(
    "interpreter",
    "PyPI backend: the machine's Python is the recorded one, and starts nothing else",
)
def interpreter(context: Context) -> Result:
    if not context.installed.backend.is_venv:
        return skipped("Python is a package of the lock")
    prefix = context.installed.prefix
    try:
        found = read_interpreter(prefix / "bin/python")
    except Stop as error:
        return damaged(prefix, RemedyKind.REBUILD, [str(error)])
    lines = _differences(context, found)
    noted = context.contents.inventory
    recorded = noted is not None and noted.interpreter is not None
    start_files = _start_files(Path(found.folder))
    if start_files and not recorded:
        lines += start_files
    if lines:
        return damaged(prefix, RemedyKind.REBUILD, lines)
    text = f"Python {found.version} {found.build}"
    if start_files:  # it was there when the environment was made, and has not changed
        remedy = "look at it; a Python of uv's has none: uv python install"
        return warned(f"{text}; {first(start_files)}", remedy, start_files[1:])
    if recorded:
        return passed(f"{text}, standard library as recorded")
    return passed(f"{text}; its standard library was not recorded")


def _differences(context: Context, found: Interpreter) -> list[str]:
    lines = []
    locked = "" if context.lock_error else context.environment.python
    if locked and not found.version.startswith(f"{locked}."):
        lines.append(f"Python is {found.version}, and the lock is for {locked}")
    noted = context.contents.inventory
    if noted is None or noted.interpreter is None:
        return lines
    recorded = noted.interpreter
    if found.version != recorded.version:
        lines.append(f"Python is {found.version}, made with it was {recorded.version}")
    elif found.build != recorded.build:
        lines.append(f"Python's build is {found.build}, recorded is {recorded.build}")
    if found.sha256 != recorded.sha256:
        lines.append(
            f"the standard library in {found.folder} was changed since the set-up"
        )
    return lines


def _start_files(folder: Path) -> list[str]:
    """The modules of the base interpreter that every start of Python imports."""
    lines = []
    for place in (folder, folder / "lib-dynload"):
        for name in START_MODULES:
            for path in sorted(place.glob(f"{name}*")):
                if path.name.partition(".")[0] == name and not _is_ubuntus(path):
                    lines.append(f"{path} runs at every start of Python")
    return lines


def _is_ubuntus(path: Path) -> bool:
    try:
        content = read_regular(path, len(UBUNTU))
    except (OSError, FileRefused):
        return False
    return path.suffix == ".py" and content == UBUNTU
