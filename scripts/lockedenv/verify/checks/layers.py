"""Is it the locked environment? Nothing is imported;
the records on disk are compared with the locks."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lockedenv.host.process import ask
from lockedenv.prefix.mark import MadeBy, MarkError, State, read_mark
from lockedenv.prefix.place import find_name
from lockedenv.prefix.records import CONSTRAINTS
from lockedenv.prefix.status import moved_from
from lockedenv.spec.environment import MARK
from lockedenv.spec.variables import clean
from lockedenv.verify.checks import (
    Context,
    Result,
    check,
    damaged,
    failed,
    first,
    passed,
    skipped,
    warned,
)
from lockedenv.verify.drift import PackageFinding, extras
from lockedenv.verify.remedies import (
    RemedyKind,
    command_for,
    pip_uninstall_command,
    rebuild_command,
    remove_command,
)

# Without our mark, one of these scripts has the path of the prefix in its first lines.
SCRIPTS = ("accelerate", "tqdm", "torchrun")
NAMED = 4  # added packages that are named in one line
NO_LOCK = "there is no lock to compare with"


def _verdict(context: Context, findings: Sequence[PackageFinding], good: str) -> Result:
    if not findings:
        return passed(good)
    lines = []
    actions = []
    for finding in findings:
        lines.append(str(finding))
        actions.append(finding.action)
    action = max(actions, key=list(RemedyKind).index)
    remedy = _remedy(context, action, findings)
    result = failed(first(lines), remedy, lines[1:])
    result.action = action
    return result


def _remedy(
    context: Context, action: RemedyKind, findings: Sequence[PackageFinding]
) -> str:
    prefix = context.installed.prefix
    if action is not RemedyKind.REMOVE:
        return command_for(action, prefix)
    paths = []
    names = set()
    for finding in findings:
        if finding.path:
            paths.append(str(finding.path))
        else:
            names.add(finding.package)
    commands = []
    if paths:
        commands.append(remove_command(prefix, paths))
    if names:
        commands.append(pip_uninstall_command(prefix, sorted(names)))
    return " && ".join(commands)


@check(
    "locks",
    "the lock files are there, whole, and of the version that this program knows",
)
def locks(context: Context) -> Result:
    if context.lock_error:
        folder = context.environment.folder
        return failed(
            context.lock_error,
            f"restore the locks: git -C {folder} checkout -- {folder}",
        )
    return passed(
        f"{len(context.conda_lock)} conda packages, {len(context.pip_lock)} wheels"
    )


@check("place", "the environment is where it was made: its scripts name that path")
def place(context: Context) -> Result:
    prefix = context.installed.prefix
    try:
        mark = read_mark(prefix)
    except MarkError as error:
        return failed(str(error), f"mv {prefix / MARK} {prefix / MARK}.damaged")
    made = moved_from(prefix) if mark else _path_in_scripts(prefix)
    if made:
        return failed(
            f"the environment was made at {made} and moved to {prefix}: "
            "its scripts name the old place",
            f"move it back (mv {find_name(prefix)} {made}), "
            f"or rebuild it: {rebuild_command(prefix)}",
        )
    if mark and mark.made_by is MadeBy.SETUP and mark.state is State.INSTALLED:
        for name in ("activate", CONSTRAINTS):
            if not (prefix / name).is_file():
                text = (
                    f"{prefix / name} is missing, "
                    "which enters the environment or holds its packages"
                )
                return damaged(prefix, RemedyKind.REPAIR, [text])
    return passed(f"it was made at {prefix}")


def _path_in_scripts(prefix: Path) -> str:
    """Another path that a script of the prefix names as its own; empty if none does."""
    for name in SCRIPTS:
        script = prefix / "bin" / name
        if not script.is_file():
            continue
        text = script.read_text(encoding="utf-8", errors="replace")[:600]
        found = re.search(r"(/.*?)/bin/python", text)
        if found and Path(found[1]).resolve() != prefix.resolve():
            return found[1]
    return ""


@check(
    "conda-layer",
    "each conda package is the locked one: version, build, channel, archive hash, once, not by pip",
    speaks=True,
)
def conda_layer(context: Context) -> Result:
    installed = context.installed
    if not installed.backend.has_conda_layer:
        return skipped("not a conda prefix: both layers are wheels")
    if context.lock_error:
        return failed(NO_LOCK, "see the check `locks`")
    good = (
        f"{len(context.conda_lock)} packages as locked: version, build, channel, hash"
    )
    return _verdict(context, context.conda_findings, good)


@check(
    "pip-layer",
    "each wheel is the locked one, by version and by its list of files, and once",
    speaks=True,
)
def pip_layer(context: Context) -> Result:
    if context.lock_error:
        return failed(NO_LOCK, "see the check `locks`")
    installed = context.installed
    good = f"{len(context.pip_lock)} wheels as locked"
    if context.flash_attn:
        good += f", and {context.flash_attn.name} {context.flash_attn.version}"
    result = _verdict(context, context.pip_findings, good)
    added = extras(installed, context.locked)
    if added:
        result.summary += f"; beyond the lock: {_some(added)}"
        result.measured["extra"] = added
    return result


def _some(names: Sequence[str]) -> str:
    text = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        text += f" and {len(names) - NAMED} more"
    return text


@check(
    "requirements",
    "every installed package finds what it requires, in a version that it accepts",
)
def requirements(context: Context) -> Result:
    options = [
        "pip",
        "check",
        "--no-config",
        "--no-cache",
        "--python",
        context.installed.python,
    ]
    command = [context.installed.prefix / "bin/uv", *options]
    # uv leaves its temporary files behind if it is interrupted.
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        checked = ask(command, 60, env=clean(context.environ, TMPDIR=folder))
    text = checked.output + checked.error
    lines = re.findall(r"The package .*", text)
    if lines:
        remedy = (
            "first mend what the checks of both layers name; then uninstall what you have added, "
            "or take a version that fits"
        )
        return warned(first(lines), remedy, lines[1:])
    if checked.status != 0:
        answer = " ".join(text.split())[:120]
        return skipped(f"uv does not say ({answer}); the layers' checks may know why")
    return passed("uv pip check: all requirements are met")
