"""All checks, in the order in which they are reported. A new check is one line here."""

from __future__ import annotations

from lockedenv.errors import UsageError
from lockedenv.spec.suggest import did_you_mean
from lockedenv.verify.checks import (
    FULL,
    Check,
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

CHECKS: list[Check] = [
    layers.locks,
    layers.place,
    layers.conda_layer,
    layers.pip_layer,
    layers.requirements,
    files.present,
    files.startup,
    files.strays,
    interpreter.interpreter,
    files.files,
    libraries.torch_origin,
    libraries.cuda_libraries,
    libraries.blas,
    libraries.openmp,
    libraries.companions,
    surroundings.variables,
    surroundings.hf_transfer,
    surroundings.known_vulnerabilities,
    surroundings.user_site,
    gpu.driver,
    gpu.gpu_speed,
    gpu.gpu_state,
    compute.imports,
    compute.torch_build,
    compute.torch_arithmetic,
    compute.async_error,
    compilers.triton_kernel,
    compilers.torch_compile,
    attention.sdpa,
    flash_attention.flash_attn,
    quantization.bitsandbytes,
    training.transformers_model,
    training.qlora,
    training.accelerate_resume,
    training.trainer_resume,
    data.datasets_roundtrip,
    data.tokenizers_roundtrip,
    data.hub,
    hub_kernels.hub_kernels,
    data.statistics,
]


def find_check(name: str) -> Check:
    """The check of a name. Raises UsageError with the nearest name if there is none."""
    for check in CHECKS:
        if check.name == name:
            return check
    names = [check.name for check in CHECKS]
    raise UsageError(
        f"no check is named {name!r}{did_you_mean(name, names)} (there are: {', '.join(names)})"
    )


def select_checks(level: str, only: list[str], skip: list[str]) -> list[Check]:
    """The checks to run, in order: those of `only`, or of the level, without those of `skip`.

    Raises UsageError for an unknown name.
    """
    wanted = {find_check(name).name for name in only}
    unwanted = {find_check(name).name for name in skip}
    selected = []
    for check in CHECKS:
        asked = check.name in wanted if wanted else level in (FULL, check.level)
        if asked and check.name not in unwanted:
            selected.append(check)
    return selected
