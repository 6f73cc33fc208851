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
    CheckGroup,
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

ROWS: list[tuple[CheckGroup, AnyCheck]] = [
    (CheckGroup.PACKAGES, layers.locks),
    (CheckGroup.PACKAGES, layers.place),
    (CheckGroup.PACKAGES, layers.conda_layer),
    (CheckGroup.PACKAGES, layers.pip_layer),
    (CheckGroup.PACKAGES, layers.requirements),
    (CheckGroup.FILES, files.present),
    (CheckGroup.FILES, files.startup),
    (CheckGroup.FILES, files.strays),
    (CheckGroup.FILES, interpreter.interpreter),
    (CheckGroup.FILES, files.files),
    (CheckGroup.TORCH, libraries.torch_origin),
    (CheckGroup.CUDA, libraries.cuda_libraries),
    (CheckGroup.CUDA, libraries.blas),
    (CheckGroup.CUDA, libraries.openmp),
    (CheckGroup.PACKAGES, libraries.companions),
    (CheckGroup.MACHINE, surroundings.variables),
    (CheckGroup.DATA, surroundings.hf_transfer),
    (CheckGroup.PACKAGES, surroundings.known_vulnerabilities),
    (CheckGroup.FILES, surroundings.user_site),
    (CheckGroup.MACHINE, gpu.driver),
    (CheckGroup.MACHINE, gpu.gpu_speed),
    (CheckGroup.MACHINE, gpu.gpu_state),
    (CheckGroup.TORCH, compute.imports),
    (CheckGroup.TORCH, compute.torch_build),
    (CheckGroup.TORCH, compute.torch_arithmetic),
    (CheckGroup.TORCH, compute.async_error),
    (CheckGroup.TORCH, compilers.triton_kernel),
    (CheckGroup.TORCH, compilers.torch_compile),
    (CheckGroup.ATTENTION, attention.sdpa),
    (CheckGroup.ATTENTION, flash_attention.flash_attn),
    (CheckGroup.TRAINING, quantization.bitsandbytes),
    (CheckGroup.TRAINING, training.transformers_model),
    (CheckGroup.TRAINING, training.qlora),
    (CheckGroup.TRAINING, training.accelerate_resume),
    (CheckGroup.TRAINING, training.trainer_resume),
    (CheckGroup.DATA, data.datasets_roundtrip),
    (CheckGroup.DATA, data.tokenizers_roundtrip),
    (CheckGroup.DATA, data.hub),
    (CheckGroup.DATA, hub_kernels.hub_kernels),
    (CheckGroup.DATA, data.statistics),
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
