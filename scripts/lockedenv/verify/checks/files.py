"""Every installed file against the hash that its installer recorded, and the files that nobody has recorded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import List, Optional

from lockedenv.host.disks import size_text
from lockedenv.host.files import read_json
from lockedenv.prefix.records import INSTALLED, hashes, recorded_files, unrecorded
from lockedenv.spec.environment import MARK
from lockedenv.verify.checks import (
    FULL,
    Context,
    Result,
    check,
    failed,
    first,
    passed,
    verdict,
    warned,
)
from lockedenv.verify.drift import REMAKE, REPAIR

AT_START = ("sitecustomize", "usercustomize")
VENV, VENV_LINE = (
    "_virtualenv.pth",
    "import _virtualenv",
)  # what uv puts into a virtual environment that it makes


@check("present", "every file and link that the installation left is there")
def present(context: Context) -> Result:
    prefix = context.installed.prefix
    left, mark = read_json(prefix / INSTALLED), read_json(prefix / MARK)
    if mark.get("state") == "installed" and not {"files", "links", "records"} <= set(left):
        return failed(
            f"{prefix / INSTALLED} is missing or damaged; it says what the installation left",
            REMAKE,
        )
    names = [prefix / name for kind in ("files", "links") for name in left.get(kind, {})]
    paths = [*names, *(path for path in recorded_files(context.installed) if path.suffix != ".pyc")]
    gone = [
        f"{context.installed.inside(path)}: missing" for path in paths if not os.path.lexists(path)
    ]
    dead = [
        name
        for name in left.get("programs", [])
        if (prefix / name).is_file() and not os.access(prefix / name, os.X_OK)
    ]
    gone += [f"{name}: no program any more, chmod +x makes it one" for name in dead]
    return verdict(
        gone, f"{REPAIR}; if something is still missing, {REMAKE}", f"{len(paths)} files and links"
    )


@check(
    "startup",
    "what runs at every start of Python, or comes before its packages, is as it was installed",
)
def startup(context: Context) -> Result:
    installed, prefix = context.installed, context.installed.prefix
    paths = [
        p
        for folder in installed.sites
        for p in folder.iterdir()
        if p.suffix == ".pth" or p.name.split(".")[0] in AT_START
    ]
    if (
        installed.backend == "conda"
    ):  # in a virtual environment the standard library is another Python's
        folders = [
            folder
            for site in installed.sites
            for folder in (site.parent, site.parent / "lib-dynload")
            if folder.is_dir()
        ]
        paths += [
            p
            for folder in folders
            for p in folder.iterdir()
            if p.suffix in (".py", ".so", ".pyc", ".pth")
        ]
        paths += [*prefix.glob("lib/python*.zip"), *prefix.glob("pyvenv.cfg")]
    left = read_json(prefix / INSTALLED).get("files", {})
    owned = (
        {**recorded_files(installed), **{prefix / name: sha for name, sha in left.items()}}
        if paths
        else {}
    )
    has, wrong = hashes(path for path in paths if owned.get(path)), []
    for path in paths:
        by_uv = (
            not left
            and path.name == VENV
            and path.is_file()
            and path.read_text(errors="replace").strip() == VENV_LINE
        )
        if path not in owned and not by_uv:
            wrong.append(
                f"{installed.inside(path)}: no package has it, and it runs at every start of Python, or may"
            )
        elif path in has and has[path] != owned[path]:
            wrong.append(
                f"{installed.inside(path)}: changed since it was installed, and may run at every start of Python"
            )
    return verdict(
        wrong,
        f"if you put it there, remove it; otherwise {REMAKE}",
        f"what runs at the start ({len(paths)}) is all of packages",
    )


@check(
    "files",
    "every file and link of both layers is byte for byte what its installer left",
    level=FULL,
)
def files(context: Context) -> Result:
    installed, prefix = context.installed, context.installed.prefix
    left, recorded = read_json(prefix / INSTALLED), recorded_files(installed)
    wanted = {
        **{prefix / name: sha for name, sha in left.get("files", {}).items()},
        **{p: s for p, s in recorded.items() if s},
    }
    has = hashes(wanted)
    wrong = {path: _what(path, has[path]) for path, sha in wanted.items() if has[path] != sha}
    size = sum(path.stat().st_size for path in wanted if path not in wrong)
    for name, target in left.get("links", {}).items():
        path = prefix / name
        if not path.is_symlink():
            wrong[path] = "no longer a link" if path.exists() else "missing"
        elif os.readlink(path) != target:
            wrong[path] = f"links to {os.readlink(path)}, not to {target}"
    measured = {"files": len(wanted), "links": len(left.get("links", {})), "bytes": size}
    noted = [prefix / name for kind in ("files", "links") for name in left.get(kind, {})]
    nobodys = unrecorded(prefix, [*recorded, *noted])
    stray, hidden = strays(context, nobodys), shadows(context, [*recorded, *nobodys])
    if hidden and not wrong:
        return failed(
            first(hidden),
            "remove what brought it: pip uninstall NAME, or the file",
            hidden[1:] + stray,
            **measured,
        )
    if wrong:
        wheels = {
            p
            for d in installed.dists
            if d.manager == "pip"
            for p in recorded_files(installed.only(d))
        }
        lines = [f"{installed.inside(path)}: {what}" for path, what in sorted(wrong.items())]
        return failed(
            first(lines), REPAIR if set(wrong) <= wheels else REMAKE, lines[1:] + stray, **measured
        )
    good = (
        f"{len(wanted)} files, {size_text(size)}, and {measured['links']} links, all as installed"
    )
    if stray:
        return warned(
            f"{good}; {first(stray)}", "remove what you did not put there", stray[1:], **measured
        )
    return passed(good, **measured)


def shadows(context: Context, paths: List[Path]) -> List[str]:
    """Those that Python takes before a locked module: NAME/__init__.py or NAME.so of no locked package, before NAME.py."""
    inside, owned = context.installed.inside, recorded_files(context.installed.as_locked())
    modules = {
        path.with_name(path.name.split(".")[0]): path
        for path in owned
        if path.suffix in (".py", ".so")
    }
    found = []
    for path in {
        path for path in paths if path.suffix in (".py", ".so") and path.exists()
    }.difference(owned):
        package = path.name.startswith("__init__.")
        hidden = modules.get(path.parent if package else path.with_name(path.name.split(".")[0]))
        if hidden and (package or path.suffix == ".so"):
            found.append(f"{inside(path)}: Python takes it in place of {inside(hidden)}")
    return sorted(found)


def strays(context: Context, paths: List[Path]) -> List[str]:
    """Those of the files that nothing has installed that are in a locked package's folder, or beside a locked module."""
    installed = context.installed
    locked = {p.name for p in context.conda_lock} | {p.name for p in context.pip_lock}

    def module(path: Path) -> Optional[Path]:
        """SITE/NAME of a file in SITE/NAME/... or SITE/NAME.py."""
        site = next((site for site in installed.sites if site in path.parents), None)
        return site / path.relative_to(site).parts[0].split(".")[0] if site else None

    owned = [
        (record.name, [installed.prefix / path for path in record.hashes])
        for record in installed.conda
    ]
    owned += [
        (dist.name, [*recorded_files(installed.only(dist))])
        for dist in installed.dists
        if dist.manager == "pip"
    ]
    code = (".py", ".so")
    modules = {
        module(path): name
        for name, paths in owned
        if name in locked
        for path in paths
        if path.suffix in code
    }
    found = [(path, modules.get(module(path))) for path in paths if module(path)]
    return [
        f"{installed.inside(path)}: is of no package, beside {name}'s own files"
        for path, name in found
        if name
    ]


def _what(path: Path, sha: str) -> str:
    if not path.exists():
        return "missing"
    if not sha:
        return "cannot be read"
    return "empty" if sha == hashlib.sha256().hexdigest() else "changed since it was installed"
