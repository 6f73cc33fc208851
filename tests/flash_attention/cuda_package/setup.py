"""A package of flash-attn's shape with one kernel."""

import os

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CUDAExtension

arch = os.environ["FLASH_ATTN_CUDA_ARCHS"]
flags = ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
extension = CUDAExtension(
    "flash_attn_2_cuda",
    ["api.cpp", "kernel.cu"],
    extra_compile_args={"cxx": ["-O1"], "nvcc": flags},
)
setup(
    name="flash_attn",
    version="2.8.3",
    packages=["flash_attn"],
    cmdclass={"build_ext": BuildExtension},
    ext_modules=[extension],
)
