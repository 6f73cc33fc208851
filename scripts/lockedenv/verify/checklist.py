"""All checks, in the order in which they are reported, each with its group.

A new check is one line here.
"""

from __future__ import annotations

from dataclasses import replace

from lockedenv.errors import UsageError
from lockedenv.spec.level import Level
from lockedenv.spec.suggest import did_you_mean
from lockedenv.verify.checks import (
    AnyCheck,
    Group,
    attention,
    compilers,
    compute,
    data,
    files,
    flash_attention,
    gpu,
    hub_kernels,
    interpreter,
    layers,
    libraries,
    quantization,
    surroundings,
    training,
)

ROWS: list[tuple[Group, AnyCheck]] = [
    (Group.PACKAGES, layers.locks),
    (Group.PACKAGES, layers.place),
    (Group.PACKAGES, layers.conda_layer),
    (Group.PACKAGES, layers.pip_layer),
    (Group.PACKAGES, layers.requirements),
    (Group.FILES, files.present),
    (Group.FILES, files.startup),
    (Group.FILES, files.strays),
    (Group.FILES, interpreter.interpreter),
    (Group.FILES, files.files),
    (Group.TORCH, libraries.torch_origin),
    (Group.CUDA, libraries.cuda_libraries),
    (Group.CUDA, libraries.blas),
    (Group.CUDA, libraries.openmp),
    (Group.PACKAGES, libraries.companions),
    (Group.MACHINE, surroundings.variables),
    (Group.DATA, surroundings.hf_transfer),
    (Group.PACKAGES, surroundings.known_vulnerabilities),
    (Group.FILES, surroundings.user_site),
    (Group.MACHINE, gpu.driver),
    (Group.MACHINE, gpu.gpu_speed),
    (Group.MACHINE, gpu.gpu_state),
    (Group.TORCH, compute.imports),
    (Group.TORCH, compute.torch_build),
    (Group.TORCH, compute.torch_arithmetic),
    (Group.TORCH, compute.async_error),
    (Group.TORCH, compilers.triton_kernel),
    (Group.TORCH, compilers.torch_compile),
    (Group.ATTENTION, attention.sdpa),
    (Group.ATTENTION, flash_attention.flash_attn),
    (Group.TRAINING, quantization.bitsandbytes),
    (Group.TRAINING, training.transformers_model),
    (Group.TRAINING, training.qlora),
    (Group.TRAINING, training.accelerate_resume),
    (Group.TRAINING, training.trainer_resume),
    (Group.DATA, data.datasets_roundtrip),
    (Group.DATA, data.tokenizers_roundtrip),
    (Group.DATA, data.hub),
    (Group.DATA, hub_kernels.hub_kernels),
    (Group.DATA, data.statistics),
]


def _make_checks() -> list[AnyCheck]:
    checks = []
    for group, check in ROWS:
        checks.append(replace(check, group=group))
    return checks


CHECKS = _make_checks()


def find_check(name: str) -> AnyCheck:
    """The check of a name. Raises UsageError with the nearest name if there is none."""
    for check in CHECKS:
        if check.name == name:
            return check
    names = [check.name for check in CHECKS]
    raise UsageError(
        f"no check is named {name!r}{did_you_mean(name, names)} (there are: {', '.join(names)})"
    )


def select_checks(level: Level, only: list[str], skip: list[str]) -> list[AnyCheck]:
    """The checks to run, in order: those of `only`, or of the level, without those of `skip`.

    Raises UsageError for an unknown name.
    """
    wanted = {find_check(name).name for name in only}
    unwanted = {find_check(name).name for name in skip}
    selected = []
    for check in CHECKS:
        if wanted:
            asked = check.name in wanted
        else:
            asked = level.includes(check.level)
        if asked and check.name not in unwanted:
            selected.append(check)
    return selected
