"""Every path of the prefix: as it was installed,
and nothing beside it that would be taken first or run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lockedenv.errors import printable
from lockedenv.host.disks import size_text
from lockedenv.prefix.activation import has_guard
from lockedenv.prefix.compare_inventory import (
    PathDifference,
    PathProblem,
    compare_full,
    keeps_content,
)
from lockedenv.prefix.inventory import (
    INVENTORY,
    WRITTEN,
    Inventory,
    InventoryEntry,
    PathKind,
)
from lockedenv.prefix.place import Prefix
from lockedenv.spec.layers import Layer
from lockedenv.spec.level import Level
from lockedenv.verify.bytecode import BytecodeFault, find_bad_bytecode
from lockedenv.verify.checks import (
    Context,
    Result,
    check,
    damaged,
    failed,
    first,
    passed,
    warned,
)
from lockedenv.verify.contents import PrefixContents, describe
from lockedenv.verify.python_paths import is_start_file
from lockedenv.verify.remedies import (
    RemedyKind,
    pip_uninstall_command,
    remove_command,
    repair_command,
)
from lockedenv.verify.strays import Danger, Stray

# What `uv venv` puts into site-packages, which nothing records: the only line of the .pth file.
VENV_PTH = "_virtualenv.pth"
VENV_LINE = "import _virtualenv"
# The set-up writes them, and people may add lines.
PERSONAL = ("activate", "bin/activate", "pip.conf")
CACHE_TAGS = ("CACHEDIR.TAG", ".gitignore")  # uv puts them into what it works on
START_DANGERS = (Danger.AT_START, Danger.MAPS)  # what the check `startup` reports
LISTED = 4  # strays that are named in one line
REMOVED = 5  # strays that are named in a command


@check(
    "present",
    "every path has the type, size and modification time that were recorded",
    speaks=True,
    yields_to="files",
)
def present(context: Context) -> Result:
    contents = context.contents
    if contents.inventory_error:
        return damaged(contents.prefix, RemedyKind.REPAIR, [contents.inventory_error])
    differences, personal = _split(contents, contents.quick_differences)
    lines = _describe_all(contents, differences) + contents.forged
    if lines:
        result = damaged(contents.prefix, _action(contents, differences), lines)
        result.follows_from = _failed_layer(context, differences)
        return result
    if personal:
        return _personal_change(contents, personal)
    count = len(contents.expected.entries)
    if not contents.inventory:
        return passed(
            f"{count} paths, compared by the hashes that the packages' records have"
        )
    if contents.times_changed:
        return passed(
            f"{count} paths, compared by hash: the modification times were changed wholesale, "
            "as by a copy or an image"
        )
    return passed(f"{count} paths, compared by type, size and modification time")


@check(
    "files",
    "every file and link is byte for byte what was installed, and no bytecode is of another source",
    level=Level.FULL,
    explained_by=("present",),
    speaks=True,
)
def files(context: Context) -> Result:
    contents = context.contents
    hashed = 0
    links = 0
    size = 0
    for entry in contents.expected.entries:
        if entry.kind is PathKind.FILE and entry.sha256:
            hashed += 1
            size += max(entry.size, 0)
        elif entry.kind is PathKind.LINK:
            links += 1
    measured = {"files": hashed, "links": links, "bytes": size}
    differences, personal = _split(contents, contents.full_differences)
    lines = _describe_all(contents, differences)
    if lines:
        action = _action(contents, differences)
        result = damaged(contents.prefix, action, lines, **measured)
        result.follows_from = _failed_layer(context, differences)
        return result
    bytecode, compiled = find_bad_bytecode(contents.prefix, contents.recorded_bytecode)
    if contents.times_changed:
        # Then every source has another time than its bytecode has noted.
        bytecode = [
            found for found in bytecode if found.fault is BytecodeFault.UNCHECKED
        ]
    if bytecode:
        paths = []
        for found in bytecode:
            lines.append(str(found))
            paths.append(found.path)
        result = failed(
            first(lines), _remove(contents.prefix, paths), lines[1:], **measured
        )
        result.action = RemedyKind.REMOVE
        return result
    if personal:
        return _personal_change(contents, personal)
    text = f"{hashed} files, {size_text(size)}, and {links} links, all as installed"
    if compiled:
        text += f"; {compiled} files of bytecode fit their sources"
    return passed(text, **measured)


@check(
    "startup",
    "what runs at every start of Python, or comes before its packages, is as it was installed",
)
def startup(context: Context) -> Result:
    contents = context.contents
    entries = [
        entry for entry in contents.expected.entries if _runs_at_start(contents, entry)
    ]
    # At each level by hash: these are few, and each of them runs before anything is checked.
    changed = compare_full(contents.prefix, Inventory((), tuple(entries)))
    lines = []
    for difference in changed:
        if difference.problem is not PathProblem.MISSING:
            text = describe(contents.prefix, difference)
            lines.append(f"{text}, and may run at every start of Python")
    if lines:
        return damaged(contents.prefix, _action(contents, changed), lines)
    strays = [stray for stray in context.strays if stray.danger in START_DANGERS]
    unknown = _unknown_venv_file(contents)
    if unknown:
        strays.append(unknown)
    if strays:
        return _stray_failure(contents, strays)
    known = [stray for stray in context.strays if stray.known]
    if known:
        packages = sorted({stray.package for stray in known})
        command = pip_uninstall_command(contents.prefix, packages)
        lines = [str(stray) for stray in known]
        return warned(first(lines), f"if you did not install it: {command}", lines[1:])
    if len(entries) == 1:
        return passed(f"1 start-up file, of a locked package: {entries[0].path}")
    return passed(f"{len(entries)} start-up files, all of locked packages")


@check(
    "strays",
    "nothing beside the locked files would be taken first, or run, in their place",
    speaks=True,
)
def strays(context: Context) -> Result:
    contents = context.contents
    dangerous = []
    inside = []
    unclear = []
    others = []
    for stray in context.strays:
        if stray.danger in START_DANGERS:
            continue
        if stray.danger:
            dangerous.append(stray)
        elif stray.closed:
            unclear.append(stray)
        elif not stray.package and _is_in_locked_package(context, stray.path):
            inside.append(stray)
        elif not stray.package and _is_worth_naming(contents, stray.path):
            others.append(stray)
    if dangerous:
        return _stray_failure(contents, dangerous)
    own = "no paths of your own"
    if others:
        own = f"paths of your own ({len(others)}): {_some(others)}"
    if inside or unclear:
        lines = []
        for stray in inside:
            lines.append(
                printable(f"{stray.path}: no package has it, beside locked files")
            )
        for stray in unclear:
            lines.append(str(stray))
        paths = _paths([*inside, *unclear])
        remedy = f"if you did not put it there: {_remove(contents.prefix, paths)}"
        return warned(first(lines), remedy, lines[1:])
    return passed(own, own=_paths(others))


# What the checks share


def _describe_all(
    contents: PrefixContents, differences: Iterable[PathDifference]
) -> list[str]:
    lines = []
    for difference in differences:
        lines.append(describe(contents.prefix, difference))
    return lines


def _split(
    contents: PrefixContents, differences: Iterable[PathDifference]
) -> tuple[list[PathDifference], list[PathDifference]]:
    """Damage, and the lines that people put into a file which is theirs to edit."""
    damage = []
    personal = []
    for difference in differences:
        changed = difference.problem in (PathProblem.SIZE, PathProblem.CONTENT)
        if (
            difference.path in PERSONAL
            and changed
            and _keeps_our_lines(contents, difference.path)
        ):
            personal.append(difference)
        else:
            damage.append(difference)
    return damage, personal


def _keeps_our_lines(contents: PrefixContents, path: str) -> bool:
    """Whether what the set-up wrote into a file is still there, with lines before or after it."""
    if path == "pip.conf" and has_guard(Prefix(contents.prefix)):
        return True
    for entry in contents.expected.entries:
        if entry.path == path:
            return keeps_content(contents.prefix, entry)
    return False


def _personal_change(contents: PrefixContents, changed: list[PathDifference]) -> Result:
    lines = []
    for difference in changed:
        path = contents.prefix / difference.path
        lines.append(f"{path} has lines that are not the set-up's")
    path = contents.prefix / changed[0].path
    remedy = f"look at it; to have it written again: rm {path} && {repair_command(contents.prefix)}"
    return warned(first(lines), remedy, lines[1:])


def _stray_failure(contents: PrefixContents, found: list[Stray]) -> Result:
    lines = []
    packages = set()
    paths = []
    for stray in found:
        lines.append(str(stray))
        if stray.package:
            packages.add(stray.package)
        else:
            paths.append(stray.path)
    commands = []
    if paths:
        commands.append(_remove(contents.prefix, paths))
    if packages:
        commands.append(pip_uninstall_command(contents.prefix, sorted(packages)))
    result = failed(first(lines), " && ".join(commands), lines[1:])
    result.action = RemedyKind.REMOVE
    return result


def _remove(prefix: Path, paths: list[str]) -> str:
    if len(paths) <= REMOVED:
        return remove_command(prefix, paths)
    return (
        f"{remove_command(prefix, paths[:REMOVED])}, and so on: --json FILE lists all"
    )


def _action(
    contents: PrefixContents, differences: Iterable[PathDifference]
) -> RemedyKind:
    """post_create.sh puts wheels right and writes what is the set-up's own;
    the rest needs a rebuild."""
    wheels = set()
    for dist in contents.installed.dists:
        if dist.manager == Layer.PIP:
            wheels.add(dist.name)
    if contents.inventory:
        for package in contents.inventory.packages:
            if package.layer is Layer.PIP:
                wheels.add(package.name)
    mendable = {*WRITTEN, *PERSONAL, INVENTORY}
    for difference in differences:
        if difference.package not in wheels and difference.path not in mendable:
            return RemedyKind.REBUILD
    return RemedyKind.REPAIR


def _failed_layer(context: Context, differences: Iterable[PathDifference]) -> str:
    """The check of a layer that names every package whose files differ; empty if there is none."""
    packages = {difference.package for difference in differences}
    for check_name, findings in (
        ("conda-layer", context.conda_findings),
        ("pip-layer", context.pip_findings),
    ):
        named = set()
        for finding in findings:
            named.add(finding.package)
        if named and packages <= named:
            return check_name
    return ""


def _runs_at_start(contents: PrefixContents, entry: InventoryEntry) -> bool:
    return entry.kind is PathKind.FILE and is_start_file(contents, entry.path)


def _unknown_venv_file(contents: PrefixContents) -> Stray | None:
    """uv's start-up file, where no inventory has its hash: its one line is known."""
    if contents.inventory:
        return None
    for site in contents.installed.sites:
        path = site / VENV_PTH
        if path.is_file() and path.read_text(errors="replace").strip() != VENV_LINE:
            return Stray(
                path.relative_to(contents.prefix).as_posix(), "", Danger.AT_START
            )
    return None


def _is_in_locked_package(context: Context, path: str) -> bool:
    """Whether a path lies in a locked package's folder in site-packages, or beside its module."""
    for lead in context.contents.sites:
        if path.startswith(lead):
            name = path[len(lead) :].partition("/")[0].partition(".")[0]
            return f"{lead}{name}" in context.locked_modules
    return False


def _is_worth_naming(contents: PrefixContents, path: str) -> bool:
    """Whether a stray is a file or a link; `python -m venv` makes empty folders, and uv tags."""
    place = contents.prefix / path
    return path not in CACHE_TAGS and (
        os.path.islink(place) or not os.path.isdir(place)
    )


def _paths(found: Iterable[Stray]) -> list[str]:
    return [stray.path for stray in found]


def _some(found: list[Stray]) -> str:
    names = [printable(name) for name in _folded(found)]
    text = ", ".join(names[:LISTED])
    if len(names) > LISTED:
        text += f" and {len(names) - LISTED} more"
    return text


def _folded(found: list[Stray]) -> list[str]:
    """The paths, a folder in place of what lies in one."""
    names: dict[str, None] = {}
    for stray in found:
        first_part, slash, _ = stray.path.partition("/")
        if first_part in ("lib", "bin", "etc", "share", "include"):
            names[stray.path] = None
        else:
            names[first_part + slash] = None
    return list(names)
