"""torch: the build, and its arithmetic against higher precision."""

from __future__ import annotations

from lockedenv.verify.checks import FULL, check
from lockedenv.verify.results import Result, failed, passed, skipped

CUDA = "12.4"
MODULES = (
    "torch transformers accelerate bitsandbytes peft hf_transfer datasets numpy scipy statsmodels.api tqdm pytest "
    "einops tokenizers safetensors huggingface_hub"
)


@check("imports", "every package that the specification names can be imported, all in one process", FULL, child=True)
def imports(device: str) -> Result:
    import importlib

    names = MODULES.split()
    wrong = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: B902 (any failure to import is the finding)
            wrong.append(f"import {name}: {type(error).__name__}: {error}")
    if wrong:
        return failed(wrong[0], "reinstall the packages named: scripts/setup_runpod_environment.sh --force", wrong[1:])
    return passed(f"{len(names)} modules: {', '.join(n.split('.')[0] for n in names)}")


@check("torch-build", "torch is a CUDA 12.4 build that has code for this GPU, and finds the GPU", FULL, child=True)
def torch_build(device: str) -> Result:
    import torch

    built = torch.version.cuda
    if built != CUDA:
        remedy = "a CPU or other build of torch was installed over the locked one; make the environment anew"
        return failed(f"torch {torch.__version__} is built for CUDA {built}, not {CUDA}", remedy)
    if device == "cpu":
        return passed(f"torch {torch.__version__}, CUDA {built}; no GPU to match its kernels with")
    if not torch.cuda.is_available():
        remedy = "nvidia-smi sees the GPU and torch does not: restart the pod, or take another"
        return failed("torch finds no usable GPU (torch.cuda.is_available() is False)", remedy)
    archs = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if not runs_on(archs, major, minor):
            name = torch.cuda.get_device_name(index)
            return failed(f"torch has no code for {name} (sm_{major}{minor}); it has {' '.join(archs)}", "take an H100")
    return passed(f"torch {torch.__version__}, CUDA {built}, kernels for {' '.join(archs)}")


def runs_on(archs: "list[str]", major: int, minor: int) -> bool:
    """Whether code for one of `archs` (sm_80, sm_90, compute_90) runs on a GPU of that compute capability.

    Machine code runs within its major version; compute_ code is compiled for any later one.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capability
    """
    for arch in archs:
        kind, _, number = arch.partition("_")
        digits = "".join(c for c in number if c.isdigit())
        has = (int(digits[:-1]), int(digits[-1]))
        if has <= (major, minor) and (kind == "compute" or has[0] == major):
            return True
    return False


@check("torch", "matrix products (bf16, fp32) and a sum agree with float64 on each GPU; memory is given back", FULL, child=True)
def torch_arithmetic(device: str) -> Result:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else ["cpu"]
    if not devices:
        return failed("torch finds no GPU", "see the checks `driver` and `torch-build`")
    figures, measured = [], {}
    for where in devices:
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(512, 1024, generator=generator, dtype=torch.float64) for _ in range(2))
        # bf16 keeps 8 bits (unit roundoff 2^-9), fp32 24; products are summed in fp32. The bounds are twice the
        # roundoff for bf16 and 2^-24 * 1024 summands for fp32.
        for dtype, bound in ((torch.bfloat16, 2.0**-8), (torch.float32, 2.0**-14)):
            low_a, low_b = a.to(dtype), b.to(dtype)
            exact = low_a.double() @ low_b.double().T
            got = (low_a.to(where) @ low_b.to(where).T).double().cpu()
            error = ((got - exact).norm() / exact.norm()).item()
            name = str(dtype)[6:]
            figures.append(f"{name} product {error:.1e} (bound {bound:.1e})")
            measured[f"{where} {name} relative error"] = error
            if not error <= bound:
                return failed(f"{where}: {figures[-1]}", "the GPU computes wrongly: take another pod", **measured)
        values = torch.rand(10_000_000, generator=generator)
        error = abs(values.to(where).sum().double().item() / values.double().sum().item() - 1)
        figures.append(f"sum {error:.1e} (bound 1.0e-05)")
        if not error <= 1e-5:
            return failed(f"{where}: {figures[-1]}", "the GPU computes wrongly: take another pod", **measured)
        if device == "cuda":
            del got
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved(where)  # this process's: other checks run beside it
            block = torch.ones(2**30, dtype=torch.uint8, device=where)
            taken = (torch.cuda.memory_reserved(where) - before) * int(block[-1])
            del block
            torch.cuda.empty_cache()
            kept = torch.cuda.memory_reserved(where) - before
            if taken < 2**30 or kept > 2**26:
                return failed(f"{where}: of 1 GiB taken, {kept} bytes were not given back", "see nvidia-smi for who holds it")
            figures.append("1 GiB taken and given back")
    return Result("pass", f"{', '.join(devices)}: {'; '.join(figures[-4 if device == 'cuda' else -3:])}", measured=measured)


@check("async-error", "an error inside a GPU kernel is raised in Python, not lost", FULL, child=True, gpu=True)
def async_error(device: str) -> Result:
    import torch

    try:
        torch.zeros(4, device=device)[torch.tensor([10], device=device)].sum().item()
    except RuntimeError as error:
        return passed(f"raised as {type(error).__name__}: {str(error).splitlines()[0][:80]}")
    return failed("an out-of-range index in a kernel raised nothing", "the driver loses errors: take another pod")


@check(
    "torch-compile",
    "torch.compile of a small model gives eager's values, forward and backward",
    FULL,
    remedy="torch.compile needs a C++ compiler, the Python headers and setuptools; the conda backend has all three",
    child=True,
    timeout=240,
)
def torch_compile(device: str) -> Result:
    import os
    import shutil
    import sysconfig

    import torch

    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    lacking = [] if shutil.which("g++") or os.environ.get("CXX") else ["g++"]
    lacking += [] if os.path.exists(header) else [f"Python.h ({header})"]
    if lacking:
        return skipped(f"no {' and no '.join(lacking)}: torch.compile will not work here")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 8)).to(device)
    x = torch.randn(32, 64, device=device)
    outputs = []
    for run in (model, torch.compile(model)):
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        outputs.append(torch.cat([y.detach().flatten(), model[0].weight.grad.flatten()]).double())
    error = ((outputs[1] - outputs[0]).norm() / outputs[0].norm()).item()
    if not error <= 1e-3:  # TF32 may be used by one of them; a wrong kernel is off by its whole value
        return failed(f"differs from eager by {error:.1e} (bound 1.0e-03)", "clear TORCHINDUCTOR_CACHE_DIR; try again")
    return passed(f"{device}: differs from eager by {error:.1e} (bound 1.0e-03)", relative_error=error)
