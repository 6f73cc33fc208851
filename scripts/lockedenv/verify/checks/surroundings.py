"""What surrounds the environment: variables, the user's own packages,
what is known of the locked versions."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

from lockedenv.host.versions import version_tuple
from lockedenv.prefix.inventory import PathKind
from lockedenv.prefix.records import site_folders
from lockedenv.spec.vulnerabilities import Vulnerability, find_vulnerabilities
from lockedenv.verify.checks import (
    Context,
    Result,
    check,
    failed,
    first,
    passed,
    warned,
)
from lockedenv.verify.remedies import repair_command
from lockedenv.verify.search_path import find_taken
from lockedenv.verify.tool_files import find_elsewhere
from lockedenv.verify.variables import (
    PRELOAD_FILE,
    Misleading,
    activation_variables,
    judge_preloaded,
    library_folders,
    misleading,
    noted,
    preloaded,
)

ENABLED = ("1", "ON", "YES", "TRUE")  # huggingface_hub/constants.py
SEVERITIES = (
    "unknown",
    "low",
    "moderate",
    "medium",
    "high",
    "critical",
)  # the least first
NO_HF_TRANSFER = (1,)  # from this version on the hub does not use hf-transfer


def compile_problem(prefix: Path, environ: Mapping[str, str]) -> str | None:
    """What torch.compile would lack in a prefix, and how to get it, or None."""
    path = f"{prefix / 'bin'}:{environ.get('PATH', os.defpath)}"
    if environ.get("CXX") or shutil.which("g++", path=path):
        return None
    return (
        "there is no g++ for torch.compile, and CXX is not set; "
        "apt-get update && apt-get install -y g++"
    )


@check(
    "variables",
    "no environment variable puts another CUDA, Python package or library first",
)
def variables(context: Context) -> Result:
    found, others = _judge_variables(context, context.callers_environ, PRELOAD_FILE)
    for setting in find_elsewhere(context.environ):
        problem = f"pip or uv installs elsewhere, by {setting}"
        others.append(
            Misleading(problem, "take that line out while you install into this one")
        )
    if context.installed.backend.has_conda_layer:
        for path, values in activation_variables(context.installed.prefix):
            remedy = f"remove it from {context.installed.prefix / path}"
            replacing, beside = _judge_variables(context, values)
            for row in replacing:
                found.append(Misleading(f"{path} sets {row.problem}", remedy))
            for row in beside:
                others.append(Misleading(f"{path} sets {row.problem}", remedy))
    lines = [variable.problem for variable in [*found, *others]]
    if found:
        return failed(first(lines), _join_remedies(found), lines[1:])
    if others:
        return warned(first(lines), _join_remedies(others), lines[1:])
    return passed(
        "LD_LIBRARY_PATH, BNB_CUDA_VERSION and PYTHONPATH leave the locked libraries first"
    )


def _join_remedies(variables: Iterable[Misleading]) -> str:
    """The remedies of all, each once."""
    return "; ".join(dict.fromkeys(variable.remedy for variable in variables))


def _judge_variables(
    context: Context, environ: Mapping[str, str], preload_file: Path | None = None
) -> tuple[list[Misleading], list[Misleading]]:
    """The variables that replace something locked, and those that change something beside it."""
    prefix = context.installed.prefix
    cudnn = (
        ""
        if context.lock_error
        else context.environment.cudnn(context.installed.backend)
    )
    found = misleading(prefix, environ, context.cuda, cudnn)
    found += _taken_libraries(context, environ)
    before_all = list(preloaded(environ, preload_file))
    names = set()
    if before_all:
        names = {os.path.basename(library) for library in _locked_libraries(context)}
    replacing, others = judge_preloaded(prefix, before_all, names)
    return found + replacing, others + noted(environ)


def _locked_libraries(context: Context) -> list[str]:
    """The paths of the libraries that a program may load;
    a compiler's sysroot and stubs are only linked with."""
    libraries = []
    for entry in context.contents.expected.entries:
        if entry.kind is PathKind.FOLDER or ".so" not in entry.path:
            continue
        if "/sysroot/" not in entry.path and "/stubs/" not in entry.path:
            libraries.append(entry.path)
    return libraries


def _taken_libraries(
    context: Context, environ: Mapping[str, str]
) -> Iterator[Misleading]:
    folders = library_folders(environ)
    if not any(folder.is_dir() for folder in folders):
        return
    libraries = _locked_libraries(context)
    for taken in find_taken(context.installed.prefix, libraries, folders):
        problem = (
            f"LD_LIBRARY_PATH has {taken.path}, which {taken.loaded_by} then loads"
        )
        yield Misleading(problem, "unset LD_LIBRARY_PATH")


@check(
    "hf-transfer",
    "HF_HUB_ENABLE_HF_TRANSFER, if set, has its package where the hub needs it: "
    "else every download fails",
)
def hf_transfer(context: Context) -> Result:
    variable = "HF_HUB_ENABLE_HF_TRANSFER"
    enabled = context.environ.get(variable, "").upper() in ENABLED
    hub = context.installed.version("huggingface-hub") or "0"
    if version_tuple(hub) >= NO_HF_TRANSFER:
        return passed(f"huggingface-hub {hub} leaves {variable} aside, and uses hf-xet")
    installed = context.installed.version("hf-transfer")
    if enabled and not installed:
        text = f"{variable} is set and hf_transfer is not installed"
        return failed(text, repair_command(context.installed.prefix))
    if enabled:
        return passed(f"hf_transfer {installed}, enabled")
    return passed(f"hf_transfer {installed or 'not installed'}, not enabled")


@check(
    "vulnerabilities",
    "no installed package has a known vulnerability; what to do about those that have one",
    brief=True,
)
def known_vulnerabilities(context: Context) -> Result:
    found = find_vulnerabilities(context.installed.version)
    if not found:
        return passed("none of the known ones applies")
    lines = []
    packages: Counter[str] = Counter()
    for known in found:
        packages[f"{known.package} {known.installed}"] += 1
        lines.append(
            f"{known.id} ({known.package} {known.installed}): {known.what}; {known.remedy}"
        )
    worst = max(found, key=_rank_severity)
    remedy = "known, and accepted with these versions (README, Limits): keep to the remedy of each"
    text = f"{len(found)} known CVEs, {_describe_owners(packages)}: {worst.remedy}"
    return warned(text, remedy, lines)


def _rank_severity(known: Vulnerability) -> int:
    if known.severity in SEVERITIES:
        return SEVERITIES.index(known.severity)
    return 0


def _describe_owners(packages: Counter[str]) -> str:
    ((most, _),) = packages.most_common(1)
    if len(packages) == 1:
        return f"all of {most}"
    return f"mostly of {most}"


@check(
    "user-site",
    "no package of the user's own site folder comes before the environment's",
)
def user_site(context: Context) -> Result:
    prefix = context.installed.prefix
    here = _describe_current_folder(context)
    folders = []
    for folder in site_folders(prefix):
        if prefix not in folder.parents:
            folders.append(folder)
    if not folders:
        if here:
            return _judge_current_folder(context, here)
        return passed("packages come from the prefix alone")
    names = set()
    for site in context.installed.sites:
        for path in site.iterdir():
            names.add(path.name.partition(".")[0])
    names.discard("__pycache__")
    remedy = "export PYTHONNOUSERSITE=1, or do without system packages"
    text = f"packages are also taken from {folders[0]}"
    for folder in folders:
        for path in folder.iterdir():
            if _comes_first(path, names):
                return failed(f"{text}, and its {path.name} comes first", remedy)
    return warned(text, remedy, here)


def _comes_first(path: Path, names: set[str]) -> bool:
    """Whether Python runs a path of a site folder at its start,
    or it is named as one of `names`."""
    if path.suffix not in ("", ".py", ".pyc", ".so", ".pth"):
        return False
    if path.suffix == ".pth" or "customize" in path.name:
        return True
    return path.name.partition(".")[0] in names


def _describe_current_folder(context: Context) -> list[str]:
    """The modules of the current folder that Python would import in place of locked ones."""
    prefix = context.installed.prefix.resolve()
    try:
        here = Path.cwd()
    except OSError:
        return []
    if context.callers_environ.get("PYTHONSAFEPATH") or prefix in (here, *here.parents):
        return []
    lines = []
    for module in sorted(context.locked_modules):
        spec = PathFinder.find_spec(module.rpartition("/")[2], [str(here)])
        if (
            spec and spec.origin
        ):  # a folder without __init__ has none, and comes after all others
            lines.append(
                f"{spec.origin} comes before the locked module in a Python that starts here"
            )
    return lines


def _judge_current_folder(context: Context, lines: list[str]) -> Result:
    searched = context.environ.get("PYTHONPATH", "")
    if searched and "" in searched.split(":"):
        text = (
            f"PYTHONPATH has an empty part, which is the current folder: {first(lines)}"
        )
        return failed(text, "unset PYTHONPATH", lines[1:])
    remedy = "rename it, start in another folder, or export PYTHONSAFEPATH=1"
    return warned(first(lines), remedy, lines[1:])
