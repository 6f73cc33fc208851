"""The former place of spec/cuda.py and spec/platform_tags.py, for modules that still import it."""

from lockedenv.spec.cuda import COMMON_GCC, Cuda
from lockedenv.spec.cuda import find_cuda as of
from lockedenv.spec.platform_tags import GLIBC, PLATFORM

__all__ = ["COMMON_GCC", "GLIBC", "PLATFORM", "Cuda", "of"]
