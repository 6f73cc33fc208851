"""The environment of a child in the prefix's interpreter: what launchers and
clusters set is cleared.

accelerate, transformers and DeepSpeed read these variables. In a child of one process they wait for
ranks that never come, or choose a back end that is not installed
(https://github.com/huggingface/accelerate/issues/1590, LLaMA-Factory#3836).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping

from lockedenv import ROOT

# Every variable that begins with one of these is cleared. Read from the sources of accelerate 1.15,
# transformers 4.57 and torch 2.5 (os.environ, get_int_from_env), with the launchers that set them.
FAMILIES = (
    "ACCELERATE_",  # accelerate launch, accelerate config
    "FSDP_",
    "MEGATRON_LM_",
    "PARALLELISM_CONFIG_",
    "DS_",  # DeepSpeed
    "DEEPSPEED_",
    "TORCHELASTIC_",  # torchrun
    "PET_",  # torchrun's options as variables
    "SLURM_",
    "PMI_",  # MPI's process managers
    "PMIX_",
    "PMI2_",
    "OMPI_",  # Open MPI
    "MV2_",  # MVAPICH2
    "I_MPI_",  # Intel MPI
    "HYDRA_",  # MPICH
    "MPI_",
    "CCL_",  # oneCCL
    "PALS_",  # Cray
    "FLUX_",
    "HOROVOD_",
    "SM_",  # SageMaker
    "SMDATAPARALLEL_",
)
# RunPod's clusters set these on every pod, whether a job runs or not.
NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "NODE_RANK",
    "CROSS_RANK",
    "CROSS_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NUM_NODES",
    "NUM_TRAINERS",
)
SETTINGS = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


def is_launcher_variable(name: str) -> bool:
    """Whether a launcher or a cluster sets this variable to tell a
    process its place among others.
    """
    return name in NAMES or name.startswith(FAMILIES)


def cleared_variables(environ: Mapping[str, str]) -> list[str]:
    """The names, in order, of the variables that a child does not get."""
    return sorted(name for name in environ if is_launcher_variable(name))


def child_environment(
    prefix: Path, device: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """The variables of a child: the caller's without the launchers', the
    prefix's programs first on PATH.

    Nothing is fetched from a hub. `device` is "cuda" or "cpu"; on "cpu" no GPU is visible.
    """
    child = {}
    for name, value in environ.items():
        if not is_launcher_variable(name):
            child[name] = value
    child.update(SETTINGS)
    child["PATH"] = f"{prefix / 'bin'}:{environ.get('PATH', os.defpath)}"
    child["PYTHONPATH"] = str(ROOT / "scripts")
    if device == "cpu":
        child["CUDA_VISIBLE_DEVICES"] = ""
    return child
