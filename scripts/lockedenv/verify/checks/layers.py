"""Is it the locked environment? Nothing is imported; the records on disk are compared with the locks."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import List

from lockedenv.host.files import read_json
from lockedenv.host.process import ask
from lockedenv.prefix.lifecycle import edited, moved_from
from lockedenv.prefix.records import CONSTRAINTS, INSTALLED, file_sha256
from lockedenv.spec.environment import MARK
from lockedenv.spec.variables import clean
from lockedenv.verify.checks import (
    Context,
    Result,
    check,
    failed,
    first,
    passed,
    skipped,
    verdict,
    warned,
)
from lockedenv.verify.drift import (
    REMAKE,
    REPAIR,
    Finding,
    conda_findings,
    duplicates,
    extras,
    pip_findings,
)


def _verdict(findings: List[Finding], good: str) -> Result:
    return verdict(list(map(str, findings)), "; ".join(sorted({f.remedy for f in findings})), good)


@check("locks", "the lock files are there, whole, and of the version that this program knows")
def locks(context: Context) -> Result:
    if context.lock_error:
        return failed(
            context.lock_error, f"restore the locks: git checkout -- {context.environment.folder}"
        )
    return passed(f"{len(context.conda_lock)} conda packages, {len(context.pip_lock)} wheels")


@check("place", "the environment is where it was made: its scripts name that path")
def place(context: Context) -> Result:
    prefix = context.installed.prefix
    made = moved_from(prefix)
    for name in (
        "accelerate",
        "tqdm",
        "torchrun",
    ):  # without our mark, one of these has the path in its first lines
        if not (prefix / MARK).exists() and (prefix / "bin" / name).is_file():
            found = re.search(
                r"(/.*?)/bin/python",
                (prefix / "bin" / name).read_text(encoding="utf-8", errors="replace")[:600],
            )
            made = found[1] if found and Path(found[1]).resolve() != prefix.resolve() else made
    if made:
        return failed(
            f"the environment was made at {made} and moved to {prefix}: its scripts name the old place",
            f"move it back, or rebuild it: scripts/setup_runpod_environment.sh --force --prefix {prefix}",
        )
    mark = read_json(prefix / MARK)
    if mark.get("made_by") == "setup" and mark.get("state") == "installed":
        gone = [name for name in ("activate", CONSTRAINTS) if not (prefix / name).is_file()]
        if gone:
            return failed(
                f"{prefix / gone[0]} is missing, which enters the environment or holds its packages",
                REPAIR,
            )
        if prefix / "activate" in edited(prefix):
            return warned(
                f"{prefix}/activate has lines that are not the set-up's",
                f"look at them; after rm {prefix}/activate, scripts/post_create.sh writes it again",
            )
    return passed(f"it was made at {prefix}")


@check(
    "conda-layer",
    "each conda package is the locked one: version, build, channel, archive hash, once, not by pip",
)
def conda_layer(context: Context) -> Result:
    if context.installed.backend != "conda":
        return skipped("not a conda prefix: both layers are wheels")
    if context.lock_error:
        return failed("there is no lock to compare with", "see the check `locks`")
    broken = [
        Finding("conda-meta", p, REMAKE) for p in context.installed.problems if "conda record" in p
    ]
    findings = broken + conda_findings(context.conda_lock, context.installed)
    return _verdict(
        findings, f"{len(context.conda_lock)} packages as locked: version, build, channel, hash"
    )


@check("pip-layer", "each wheel is the locked version, once, and not put there by conda")
def pip_layer(context: Context) -> Result:
    if context.lock_error:
        return failed("there is no lock to compare with", "see the check `locks`")
    findings = [
        Finding("dist-info", p, REPAIR) for p in context.installed.problems if "METADATA" in p
    ]
    findings += pip_findings(context.pip_lock, context.installed, REPAIR)
    findings += duplicates(context.installed, [p.name for p in context.pip_lock])
    flash = context.environment.flash_attn()
    built = [flash] if flash and context.installed.version(flash.name) == flash.version else []
    noted = read_json(context.installed.prefix / INSTALLED).get("records", {}).get("flash-attn")
    for dist in [dist for dist in context.installed.dists if dist.name == "flash-attn"]:
        if noted and file_sha256(dist.path / "RECORD") != noted:
            findings.append(
                Finding(
                    dist.name, "its RECORD is not the one that the install by hash left", REPAIR
                )
            )
    also = "".join(f", and {p.name} {p.version}" for p in built)
    result = _verdict(findings, f"{len(context.pip_lock)} wheels as locked{also}")
    extra = extras(context.conda_lock, context.pip_lock + built, context.installed)
    if extra:
        result.summary += f"; beyond the lock: {', '.join(extra[:4])}" + (
            f" and {len(extra) - 4} more" * (len(extra) > 4)
        )
        result.measured["extra"] = extra
    return result


@check(
    "requirements", "every installed package finds what it requires, in a version that it accepts"
)
def requirements(context: Context) -> Result:
    command = [
        context.installed.prefix / "bin/uv",
        *"pip check --no-config --no-cache --python".split(),
        context.installed.python,
    ]
    with tempfile.TemporaryDirectory(
        prefix="verify-"
    ) as folder:  # uv leaves its own behind if it is interrupted
        status, said, why = ask(command, 60, env=clean(context.environ, TMPDIR=folder))
    lines = re.findall(r"The package .*", said + why)
    if lines:
        remedy = "first put right what the checks of both layers name; then uninstall what you have added, or take one that fits"
        return warned(first(lines), remedy, lines[1:])
    if status != 0:
        return skipped(
            f"uv does not say ({' '.join((said + why).split())[:120]}); the layers' checks may know why"
        )
    return passed("uv pip check: all requirements are met")
