"""Reads locks/flash-attn.in: the source of flash-attn 2, and a wheel that its project has built."""

from __future__ import annotations

from lockedenv.errors import Stop
from lockedenv.spec.environment import Environment
from lockedenv.spec.locks import WHEEL
from lockedenv.spec.specification import FLASH_ASKED


def asks_for_flash_attn(env: Environment) -> bool:
    return (env.folder / FLASH_ASKED).exists()


def read_flash_requirements(env: Environment) -> list[str]:
    """The lines of flash-attn.in that name the source. Raises Stop where there is none."""
    path = env.folder / FLASH_ASKED
    requirements = []
    for line in path.read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement and not WHEEL.fullmatch(line):
            requirements.append(requirement)
    if not requirements or " @ " in "\n".join(requirements):
        raise Stop(
            f"{path}: has to name flash-attn as a requirement, and may name one wheel as: "
            "flash-attn @ URL --hash=sha256:HEX  # glibc N.N, sm 80 90"
        )
    return requirements


def read_prebuilt_lines(env: Environment) -> list[str]:
    """The lines of flash-attn.in that name a prebuilt wheel, which the lock has as they are."""
    text = (env.folder / FLASH_ASKED).read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if WHEEL.fullmatch(line):
            lines.append(f"{line}\n")
    return lines
