"""A Plan for people, line by line, and as the JSON of schemas/plan.schema.json."""

from __future__ import annotations

import json
import tempfile
from typing import Any

from lockedenv.host.disks import size_text
from lockedenv.install.plan import Plan, PlanAction
from lockedenv.prefix.status import PrefixStatus
from lockedenv.redaction import redact_document

SHOWN = 20  # lines of packages or files; the rest is counted
PAST = {
    PrefixStatus.ABSENT: "",
    PrefixStatus.CHANGED: " (rebuilt: the locks have changed)",
    PrefixStatus.MAKING: " (started anew: an earlier run did not finish)",
}


def plan_lines(plan: Plan) -> list[str]:
    """What is going to be done, and where."""
    job = plan.job
    path = job.prefix.public_path
    lines = [
        f"backend      {plan.backend}: {plan.backend_reason}",
        f"environment  {job.environment.name}: {path}{PAST.get(plan.state, ' (rebuilt)')}",
        f"cache        {job.cache}",
    ]
    for need in plan.disks:
        lines.append(
            f"disk         {need.purpose.value}: about {size_text(need.needed)} of "
            f"{size_text(need.disk.free)} free at {need.disk.folder}"
        )
    if not plan.links_and_locks:
        lines.append(
            f"the disk of {path} has no hard links or no file locks: wheels are unpacked in "
            f"{tempfile.gettempdir()}, and copied"
        )
    elif len(plan.disks) > 1:
        lines.append(
            "the cache is on another disk: everything is unpacked beside the environment, so that "
            "it can be linked"
        )
    lines.append(f"flash-attn   {plan.flash_attention.text}")
    lines += rebuild_lines(plan)
    return lines


def plan_summary(plan: Plan) -> str:
    """The plan in one line: what is installed, from where, and the room that it needs."""
    name = f"{plan.job.environment.name}{PAST.get(plan.state, ' (rebuilt)')}"
    text = f"{name}, {plan.backend} backend: {plan.backend_reason}"
    for need in plan.disks[:1]:
        text += (
            f"; needs {size_text(need.needed)}, {size_text(need.disk.free)} are free"
        )
    return text


def rebuild_lines(plan: Plan) -> list[str]:
    """What a reader has to know before it happens: what comes back, what is
    moved, what is odd here.
    """
    if plan.action is not PlanAction.REBUILD:
        return list(plan.notes)
    path = plan.job.prefix.public_path
    lines = [f"{path} stays the old environment until the new one is verified"]
    packages = []
    for package in plan.packages_added:
        if plan.request.keep_extras:
            packages.append(f"comes back   {package}")
        else:
            listed = plan.job.prefix.beside("maximalcai-extras-*.txt")
            packages.append(f"removed      {package} (listed in {listed})")
    files = []
    for name in plan.files_added:
        files.append(f"moved        {name}, your own, to {path}.kept-*")
    for group in (packages, files):
        lines += group[:SHOWN]
        if len(group) > SHOWN:
            lines.append(f"and {len(group) - SHOWN} more")
    return [*lines, *plan.notes]


def plan_document(plan: Plan) -> dict[str, Any]:
    """The plan as JSON; with the action "verify", none of what follows the backend is there."""
    document: dict[str, Any] = {
        "schema_version": 1,
        "environment": plan.job.environment.name,
        "prefix": str(plan.job.prefix.public_path),
        "cache": str(plan.job.cache),
        "state": plan.state.value,
        "action": plan.action.value,
        "backend": plan.backend,
    }
    if plan.action is PlanAction.VERIFY:
        return document
    disks = []
    for need in plan.disks:
        disks.append(
            {
                "folder": str(need.disk.folder),
                "what": need.purpose.value,
                "needed_bytes": need.needed,
                "free_bytes": need.disk.free,
            }
        )
    document.update(
        backend_reason=plan.backend_reason,
        disk=disks,
        flash_attn=plan.flash_attention.text,
        packages_added=list(plan.packages_added),
        files_added=list(plan.files_added),
    )
    return document


def plan_json(plan: Plan) -> str:
    """The document as text, without secrets."""
    return json.dumps(redact_document(plan_document(plan)), indent=2)
