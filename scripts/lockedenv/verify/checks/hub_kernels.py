"""Whether compiled kernels from outside the lock are in use, or would be fetched at run time."""

from __future__ import annotations

from pathlib import Path

from lockedenv.spec.hub_kernels import OFFLINE_VARIABLE, find_hub_kernels
from lockedenv.verify.checks import Context, Result, check, passed, warned
from lockedenv.verify.remedies import pip_uninstall_command


@check(
    "hub-kernels",
    "no compiled kernel from the Hugging Face Hub is in use, or would be fetched",
)
def hub_kernels(context: Context) -> Result:
    version = context.installed.version("kernels") or ""
    found = find_hub_kernels(version, context.environ, Path.home())
    if not found.possible:
        return passed(
            "the package kernels is not installed: nothing is fetched from the Hub"
        )
    details = []
    if found.layers:
        details.append(
            "layers of models would be replaced (USE_HUB_KERNELS=NO stops it)"
        )
    if found.fetching:
        details.append(
            'attn_implementation="flash_attention_2" would fetch kernels-community/flash-attn2 '
            f"where flash-attn 2 is missing ({OFFLINE_VARIABLE}=1 stops it)"
        )
    if found.local:
        details.append(f"LOCAL_KERNELS={found.local} is used in place of the Hub's")
    for name in found.fetched:
        details.append(f"was fetched: {name}")
    return warned(
        f"kernels {version} is installed: compiled code that no lock has may run",
        pip_uninstall_command(context.installed.prefix, ["kernels"]),
        details,
    )
