"""Compiled kernels from the Hugging Face Hub: whether this environment would fetch or use any.

transformers (integrations/hub_kernels.py, modeling_flash_attention_utils.py) and bitsandbytes
(backends/cpu/ops.py) fetch machine code from the Hub at run time where the package `kernels` is
installed. No lock has its hash. The lock leaves `kernels` out, so it is there only where somebody
installed it. Read in transformers 5.24, bitsandbytes 0.50.2 and kernels 0.17.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# transformers: replacing the layers of a model, off with NO. kernels: the same, off with 1. Neither
# stops attn_implementation="flash_attention_2", which takes kernels-community/flash-attn2 where
# flash-attn 2 is missing, nor bitsandbytes on a CPU; without the network nothing new is fetched.
LAYERS_VARIABLE = "USE_HUB_KERNELS"
MAPPING_VARIABLE = "DISABLE_KERNEL_MAPPING"
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
LOCAL_VARIABLE = "LOCAL_KERNELS"
# What `activate` sets: no layer of a model is replaced unless its user asks for it.
SWITCHED_OFF = {LAYERS_VARIABLE: "NO", MAPPING_VARIABLE: "1"}
TRUE = ("1", "ON", "YES", "TRUE")  # transformers.utils.ENV_VARS_TRUE_VALUES
FOLDERS = ("kernels--*", "models--kernels-community--*")  # in the Hub's cache


@dataclass(frozen=True)
class HubKernels:
    """`version`: of the package `kernels`, empty if it is not installed.

    `layers`: transformers would replace layers of a model. `fetching`: anything may be fetched.
    `fetched`: names of what lies in the Hub's cache. `local`: what LOCAL_KERNELS names.
    """

    version: str
    layers: bool
    fetching: bool
    fetched: tuple[str, ...] = ()
    local: str = ""

    @property
    def possible(self) -> bool:
        """Whether code from outside the lock can be in use."""
        return bool(self.version)


def find_hub_kernels(
    version: str, environ: Mapping[str, str], home: Path
) -> HubKernels:
    """What this environment would do, from the installed version of `kernels` and the variables."""
    if not version:
        return HubKernels("", layers=False, fetching=False)
    enabled = environ.get(LAYERS_VARIABLE, "YES").upper() in TRUE
    disabled = environ.get(MAPPING_VARIABLE, "0") not in ("", "0")
    offline = environ.get(OFFLINE_VARIABLE, "").upper() in TRUE
    names = set()
    for pattern in FOLDERS:
        for folder in find_hub_cache(environ, home).glob(pattern):
            names.add(folder.name)
    return HubKernels(
        version,
        layers=enabled and not disabled,
        fetching=not offline,
        fetched=tuple(sorted(names)),
        local=environ.get(LOCAL_VARIABLE, ""),
    )


def find_hub_cache(environ: Mapping[str, str], home: Path) -> Path:
    """Where kernels from the Hub are kept: kernels/_versions.py, huggingface_hub/constants.py."""
    for name in ("KERNELS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(name):
            return Path(environ[name])
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"], "hub")
    cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    return cache / "huggingface/hub"
