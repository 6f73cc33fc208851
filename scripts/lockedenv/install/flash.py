"""flash-attn: built once from its hashed source for this GPU, kept by all that matters, proven after it is installed.

The decisions (architectures, jobs, toolchain, key, cause of a failure) are pure functions over probed facts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple
from urllib.parse import urlsplit

from lockedenv import locks, machine
from lockedenv.console import Steps, Stop
from lockedenv.install import fetch, wheels
from lockedenv.install.wheels import uv_environment
from lockedenv.installed import file_sha256
from lockedenv.machine import Gpu, size_text, version_tuple
from lockedenv.process import holding, run
from lockedenv.verify.checks import load
from lockedenv.verify.child import environment, run_child
from lockedenv.verify.results import FAIL

# One compile job's peak over a whole build, measured: 7.07 GB (cicc; nvcc 12.4, sm_90, one thread).
JOB_MEMORY = 7.5e9
# CUDA 12.4's nvcc takes gcc up to 13.
# https://docs.nvidia.com/cuda/archive/12.4.1/cuda-installation-guide-linux/#host-compiler-support-policy
NEWEST_GCC = 13
# flash-attn 2.8 has kernels for Ampere and Hopper that nvcc 12.4 can compile; 100 and 120 need nvcc 12.8.
ARCHS = ("80", "90")
APT_NVCC = "install nvcc 12.4 (conda backend: it is in the lock; Ubuntu: NVIDIA's package cuda-nvcc-12-4)"


@dataclass
class Torch:
    """The torch that flash-attn is built against, as its own interpreter reports it."""

    version: str
    cuda: str
    cxx11abi: bool
    python: str
    platform: str


@dataclass
class Toolchain:
    """`cuda_home` has bin/nvcc; `headers` is the folder of cuda_runtime.h."""

    cuda_home: Path
    nvcc: str
    cc: Path
    cxx: Path
    gcc: str
    headers: Path
    warning: str = ""


# Decisions -------------------------------------------------------------------------------------------------------


def architectures(gpus: List[Gpu], asked: str = "") -> List[str]:
    """What to compile for: `asked` ("90" or "80,90"), otherwise what the GPUs are. Raises Stop for what cannot be."""
    if asked:
        found = [a.replace(".", "") for a in re.split(r"[,;]", asked)]
    else:
        found = [gpu.arch[:-1] + "0" for gpu in gpus]  # code for 8.0 runs on 8.6 and 8.9
    for arch in found:
        if arch not in ARCHS:
            raise Stop(f"flash-attn cannot be built for compute capability {arch[:-1]}.{arch[-1:]} with CUDA 12.4 "
                       f"(it can for {' and '.join(ARCHS)}); use --no-flash-attn")  # fmt: skip
    return sorted(set(found))


def job_count(cpus: float, free: int, threads: int = 1) -> Tuple[int, str]:
    """How many compile jobs to run, and why: CPUs and free memory in bytes, over what one job with its threads needs."""
    need = JOB_MEMORY * threads
    jobs = max(1, int(min(cpus / threads, free / need)))
    why = f"{cpus:g} CPUs, {size_text(free)} free at {size_text(need)} a job of {threads} thread{'s' * (threads > 1)}"
    return jobs, why


def key(pin: locks.PipPackage, torch: Torch, archs: List[str]) -> str:
    """The name of a built wheel's folder in the cache: everything that it depends on."""
    parts = [f"flash_attn-{pin.version}", pin.sha256[:12], f"torch{torch.version}", f"cu{torch.cuda}"]
    parts += [f"abi{int(torch.cxx11abi)}", torch.python, "sm" + "+".join(archs), torch.platform]
    return "-".join(parts)


def wheel_misfit(filename: str, torch: Torch) -> Optional[str]:
    """Which part of a prebuilt wheel's name does not fit the environment, or None."""
    match = re.match(r"flash_attn-([^-+]+)(?:\+([^-]+))?-(cp\d+)-(\w+)-(.+)\.whl$", filename)
    if not match:
        return f"{filename} is not the name of a flash-attn wheel"
    _, local, python, _, platform = match.groups()
    major, minor = torch.version.split(".")[:2]
    wants = [("Python", python, torch.python), ("platform", platform.split("_")[0], "linux")]
    for pattern, what, has in (
        (r"cu(\d\d)", "CUDA", torch.cuda.split(".")[0]),
        (r"torch(\d+\.\d+)", "torch", f"{major}.{minor}"),
        (r"cxx11abi(TRUE|FALSE)", "C++ ABI", str(torch.cxx11abi).upper()),
    ):
        found = re.search(pattern, local or "")
        if found:
            wants.append((what, found[1], has))
    wrong = [f"{what} {wheel}, the environment has {has}" for what, wheel, has in wants if wheel != has]
    return f"{filename} is for {'; for '.join(wrong)}" if wrong else None


def toolchain_problem(cuda: str, nvcc: str, gcc: str) -> Tuple[str, str]:
    """(refusal, warning) for torch's CUDA, nvcc's version and gcc's; empty where all is well."""
    if not nvcc:
        return f"no nvcc found: {APT_NVCC}, or use --wheel or --no-flash-attn", ""
    if version_tuple(nvcc)[0] != version_tuple(cuda)[0]:
        return f"nvcc is of CUDA {nvcc}, torch is built for {cuda}: {APT_NVCC}", ""
    if not gcc:
        return "no g++ found: apt-get install g++-12", ""
    if version_tuple(gcc)[0] > NEWEST_GCC:
        return f"g++ is {gcc}, nvcc {nvcc} takes up to {NEWEST_GCC}: apt-get install g++-12", ""
    differs = version_tuple(nvcc)[:2] != version_tuple(cuda)[:2]
    return "", f"nvcc is of CUDA {nvcc}, torch is built for {cuda}: it should work within a major version" * differs


_CAUSES = (
    (r"died due to signal 9|Killed signal|signal 9 \(Kill|\bKilled\b", "memory", "a compiler was killed for memory",
     "use --jobs with fewer, or a pod with more memory"),
    (r"No space left on device|Errno 28", "disk", "No space left on device", "free some disk; TMPDIR says where it builds"),
    (r"unsupported GNU version|#error -- unsupported", "gcc", "nvcc does not take this gcc", "apt-get install g++-12"),
    (r"mismatches the version that was used to compile", "nvcc", "nvcc is of another CUDA than torch", APT_NVCC),
    (r"fatal error: (\S+): No such file", "header", "a header is missing: {0}", "install the -dev package that has it"),
    (r"nvcc(?: fatal|: not found)|nvcc fatal *: .*", "nvcc", "nvcc refuses its arguments", APT_NVCC),
    (r"ModuleNotFoundError: No module named '(\w+)'", "module", "the build needs the Python package {0}",
     "scripts/post_create.sh installs it from the lock"),
)  # fmt: skip


def likely_cause(log: str) -> Tuple[str, str, str]:
    """(kind, cause, remedy) of a failed build, from its log; the first that fits, in order of how sure it is."""
    for pattern, kind, cause, remedy in _CAUSES:
        match = re.search(pattern, log)
        if match:
            return kind, cause.format(*match.groups()), remedy
    return "unknown", "the cause is not known", "read the log"


# Facts -----------------------------------------------------------------------------------------------------------


def probe_torch(prefix: Path) -> Torch:
    """Asks the prefix's interpreter. Raises Stop if torch cannot be imported there."""
    program = (
        "import json, sys, sysconfig, torch; print(json.dumps([torch.__version__.split('+')[0], torch.version.cuda or '',"
        "torch._C._GLIBCXX_USE_CXX11_ABI, 'cp%d%d' % sys.version_info[:2], sysconfig.get_platform().replace('-', '_')]))"
    )
    environ = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([prefix / "bin/python", "-c", program], capture_output=True, text=True, cwd="/", env=environ)
    if done.returncode:
        said = "".join(done.stderr.strip().splitlines()[-1:])
        raise Stop(f"torch cannot be imported in {prefix} ({said}); scripts/verify_environment.py says what is wrong")
    return Torch(*json.loads(done.stdout.strip().splitlines()[-1]))


def _version_of(command: List[str], pattern: str) -> str:
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(pattern, text)
    return match[1] if match else ""


def find_toolchain(prefix: Path, torch: Torch, environ: Dict[str, str]) -> Toolchain:
    """nvcc and gcc from the prefix, else the machine's that fit best. Raises Stop naming what to install."""
    homes = [prefix, Path(environ.get("CUDA_HOME") or "/usr/local/cuda-" + torch.cuda), Path("/usr/local/cuda")]
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    if on_path:
        homes.append(Path(on_path).resolve().parent.parent)
    found = [(home, _version_of([str(home / "bin/nvcc"), "--version"], r"release (\d+\.\d+)")) for home in homes]
    found = [(home, version) for home, version in found if version]
    fitting = sorted(found, key=lambda f: (f[1] != torch.cuda, f[1].split(".")[0] != torch.cuda.split(".")[0]))
    home, nvcc = fitting[0] if fitting else (prefix, "")
    compilers = [(prefix / "bin/gcc", prefix / "bin/g++")]
    for version in (NEWEST_GCC, 12, 11):
        compilers.append((Path(f"/usr/bin/gcc-{version}"), Path(f"/usr/bin/g++-{version}")))
    compilers.append((Path(environ.get("CC") or "/usr/bin/gcc"), Path(environ.get("CXX") or "/usr/bin/g++")))
    cc, cxx = next(((c, x) for c, x in compilers if c.exists() and x.exists()), compilers[-1])
    gcc = _version_of([str(cxx), "-dumpfullversion"], r"(\d+[\d.]*)")
    refusal, warning = toolchain_problem(torch.cuda, nvcc, gcc)
    if refusal:
        raise Stop(f"flash-attn cannot be built: {refusal}")
    folders = [home / "include", home / "targets/x86_64-linux/include"]
    headers = next((f for f in folders if (f / "cuda_runtime.h").exists()), None)
    if not headers:
        raise Stop(f"flash-attn cannot be built: {home} has no cuda_runtime.h: install cuda-cudart-dev of CUDA 12.4")
    return Toolchain(home, nvcc, cc, cxx, gcc, headers, warning)


# The cache -------------------------------------------------------------------------------------------------------


def cached_wheel(folder: Path, steps: Steps) -> Optional[Path]:
    """The wheel of a cache folder if it is what its JSON says; a damaged one is set aside."""
    try:
        info = json.loads((folder / "wheel.json").read_text())
        wheel: Path = folder / info["wheel"]
        if file_sha256(wheel) == info["sha256"]:
            return wheel
    except (OSError, ValueError, KeyError):
        if not folder.exists():
            return None
    aside = folder.with_name(f"{folder.name}.damaged-{time.time_ns()}")
    folder.rename(aside)
    steps.say(f"      the cached wheel is not what was built; set aside as {aside}")
    return None


def keep(wheel: Path, folder: Path, info: Dict[str, object]) -> Path:
    """Puts a built wheel and its JSON into the cache, both or neither."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}-", dir=folder.parent))
    shutil.copy2(wheel, beside / wheel.name)
    (beside / "wheel.json").write_text(
        json.dumps({"wheel": wheel.name, "sha256": file_sha256(beside / wheel.name), **info}, indent=2) + "\n"
    )
    beside.chmod(0o755)
    if folder.exists():  # another pod was first
        shutil.rmtree(beside)
    else:
        beside.rename(folder)
    return folder / wheel.name


# Building --------------------------------------------------------------------------------------------------------


def build(source: Path, work: Path, prefix: Path, tools: Toolchain, archs: List[str], jobs: int, log: Path, steps: Steps,
          again: bool = True) -> Path:  # fmt: skip
    """Builds a wheel of a source archive in `work`. Raises Stop with the cause and the log's last lines.

    Killed for memory, it tries once more with half the jobs.
    """
    environ = {
        **os.environ,
        "PATH": f"{tools.cuda_home / 'bin'}:{prefix / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "CUDA_HOME": str(tools.cuda_home),
        "CC": str(tools.cc),
        "CXX": str(tools.cxx),
        "CPATH": str(tools.headers),
        "TMPDIR": str(work),
        "FLASH_ATTENTION_FORCE_BUILD": "TRUE",
        "FLASH_ATTN_CUDA_ARCHS": ";".join(archs),
        "TORCH_CUDA_ARCH_LIST": ";".join(f"{a[:-1]}.{a[-1]}" for a in archs),
        "MAX_JOBS": str(jobs),
        "NVCC_THREADS": os.environ.get("NVCC_THREADS", "1"),
        "PYTHONPATH": "",
    }
    out = work / "wheel"
    options = ["--no-build-isolation", "--no-deps", "--no-cache-dir", "--no-index", "--verbose", "--wheel-dir", str(out)]
    command = [str(prefix / "bin/python"), "-m", "pip", "wheel", *options, str(source)]
    steps.say(f"      the full log: {log}")
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environ, cwd=work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)  # fmt: skip

        def follow() -> None:
            shown = started
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    step = re.match(r"\s*\[(\d+)/(\d+)\]", line)
                    now = time.monotonic()
                    if step and (now - shown > 15 or step[1] == step[2]):
                        shown = now
                        done, total = int(step[1]), int(step[2])
                        left = (now - started) / done * (total - done)
                        steps.say(f"      {done} of {total} kernels, {now - started:.0f} s, about {left:.0f} s left")

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        reader.join()
    wheels = list(out.glob("*.whl"))
    if status == 0 and wheels:
        return wheels[0]
    text = log.read_text(errors="replace")
    kind, cause, remedy = likely_cause(text) if status > 0 else ("memory", f"killed by signal {-status}", "use --jobs with fewer")
    if kind == "memory" and jobs > 1 and again:
        steps.say(f"      {cause}; trying once more with {jobs // 2} job{'s' * (jobs > 3)}")
        shutil.rmtree(out, ignore_errors=True)
        return build(source, work, prefix, tools, archs, jobs // 2, log, steps, again=False)
    tail = "\n  ".join(text.strip().splitlines()[-12:])
    raise Stop(f"building flash-attn failed: {cause}; {remedy}.\n  {tail}\nThe full log: {log}")


def stop_orphans(work: Path) -> None:
    """Ends the compilers that a run killed with -9 has left working in `work`; the caller holds the wheel's lock."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={work}".encode() in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def prove(prefix: Path, version: str, gpu: bool) -> Optional[str]:
    """What is wrong with the flash-attn that is installed, or None: import, version, native library, GPU checks."""
    program = "import torch, flash_attn, flash_attn_2_cuda; from flash_attn import flash_attn_func; print(flash_attn.__version__)"
    environ = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([prefix / "bin/python", "-c", program], capture_output=True, text=True, cwd="/", env=environ)
    if done.returncode:
        return f"it does not import: {''.join(done.stderr.strip().splitlines()[-1:])}"
    if done.stdout.strip().split()[-1] != version:
        return f"version {done.stdout.strip()} was imported, not {version}"
    if gpu:
        check = load()["flash-attn"]
        result = run_child(check, prefix / "bin/python", "cuda", environment(prefix, "cuda", dict(os.environ)))
        if result.verdict == FAIL:
            return result.summary
    return None


@dataclass
class Options:
    """What post_create.sh was asked for."""

    arch: str = ""
    jobs: int = 0
    wheel: str = ""
    sha256: str = ""
    offline: Optional[Path] = None


def _given_wheel(options: Options, torch: Torch, cache: Path, steps: Steps) -> Path:
    """The wheel of --wheel, checked by name and hash before anything is done with it. Raises Stop."""
    if not re.fullmatch(r"[0-9a-f]{64}", options.sha256):
        raise Stop("--wheel needs --sha256 with the wheel's 64 hex digits: nothing is installed that was not hashed")
    name = urlsplit(options.wheel).path.rsplit("/", 1)[-1].replace("%2B", "+").replace("%2b", "+")
    misfit = wheel_misfit(name, torch)
    if misfit:
        raise Stop(misfit)
    if "://" in options.wheel:
        fetch.fetch([fetch.Item(name, options.sha256, 0, [options.wheel])], cache / "wheels", steps.say, steps.quiet)
        return cache / "wheels" / name
    if not Path(options.wheel).is_file():
        raise Stop(f"{options.wheel} is not a file")
    has = file_sha256(Path(options.wheel))
    if has != options.sha256:
        raise Stop(f"{options.wheel} has sha256 {has}, not {options.sha256}: it is not installed")
    return Path(options.wheel)


def _source(pin: locks.PipPackage, cache: Path, options: Options, steps: Steps) -> Path:
    """The locked source archive, hash checked: from --offline, the cache or the index. Raises Stop or FetchError."""
    for folder in filter(None, [options.offline and options.offline / "wheels", cache / "wheels"]):
        for path in folder.glob("flash_attn-*.tar.gz"):
            if file_sha256(path) == pin.sha256:
                return path
    if options.offline:
        raise Stop(f"{options.offline}/wheels has no source of flash-attn {pin.version} with the locked hash; "
                   f"collect it anew with --download-only {options.offline}")  # fmt: skip
    wheels.fetch_files([pin], cache / "wheels", wheels.bring_uv(cache, steps), steps)
    return _source(pin, cache, options, steps)


def install(prefix: Path, cache: Path, uv: Path, gpus: List[Gpu], options: Options, steps: Steps) -> None:
    """Installs flash-attn into a prefix: given, cached, or built; then proves it. Raises Stop.

    Whatever goes wrong, the prefix is left without flash-attn and otherwise as it was.
    """
    archs = [] if options.wheel else architectures(gpus, options.arch)
    if not (archs or options.wheel):
        steps.say("      skipped: no GPU here to build for (--arch 90 builds for an H100 all the same)")
        return
    pin = locks.read_pip_lock(locks.FLASH_ATTN_LOCK)[0]
    torch = probe_torch(prefix)
    folder: Optional[Path] = None
    if options.wheel:
        wheel = _given_wheel(options, torch, cache, steps)
        version = wheel.name.split("-")[1].split("+")[0]
    else:
        folder, version = cache / "flash-attn" / key(pin, torch, archs), pin.version
        marker = prefix / "maximalcai-flash-attn"
        if marker.exists() and marker.read_text() == folder.name and not prove(prefix, version, False):
            steps.say(f"      {folder.name} is installed")
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with holding(folder.parent / f"{folder.name}.lock", f"the flash-attn wheel {folder.name}", patience=4 * 3600):
            cached = cached_wheel(folder, steps)
            wheel = cached or _build_and_keep(prefix, cache, folder, torch, archs, options, pin, steps)
            steps.say(f"      {wheel.name} {'from the cache' if cached else 'built'}")
    command = [str(uv), "pip", "install", "--python", str(prefix / "bin/python"), "--no-deps", "--no-index", "--reinstall"]
    run([*command, str(wheel)], uv_environment(cache, prefix, dict(os.environ)), "installing flash-attn", quiet=True)
    problem = prove(prefix, version, bool(gpus))
    if problem:
        uninstall = [str(uv), "pip", "uninstall", "--python", str(prefix / "bin/python"), "flash-attn"]
        run(uninstall, uv_environment(cache, prefix, dict(os.environ)), "removing flash-attn", quiet=True)
        if folder:
            shutil.rmtree(folder)
        raise Stop(f"flash-attn was installed and is not right, so it was removed again, from the cache too: {problem}")
    if folder:
        (prefix / "maximalcai-flash-attn").write_text(folder.name)


def _build_and_keep(
    prefix: Path, cache: Path, folder: Path, torch: Torch, archs: List[str], options: Options, pin: locks.PipPackage, steps: Steps
) -> Path:
    tools = find_toolchain(prefix, torch, dict(os.environ))
    if tools.warning:
        steps.say(f"      warning: {tools.warning}")
    source = _source(pin, cache, options, steps)
    jobs, why = job_count(machine.cpu_limit(), machine.memory_limit()[1], int(os.environ.get("NVCC_THREADS", "1")))
    if options.jobs:
        jobs, why = options.jobs, f"as asked; {jobs} would be the choice for {why}"
    steps.say(f"      building for {', '.join('sm_' + a for a in archs)} with nvcc {tools.nvcc} and g++ {tools.gcc}")
    steps.say(f"      {jobs} job{'s' * (jobs > 1)} at a time: {why}")
    # One folder a wheel, so that what a killed run left is found and removed; on one file system, because setup.py renames.
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    work = Path(tempfile.gettempdir()) / f"maximalcai-flash-attn-{name}"
    stop_orphans(work)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    logs = cache / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        wheel = build(source, work, prefix, tools, archs, jobs, logs / f"{folder.name}.log", steps)
        seconds = time.monotonic() - started
        info = {"built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "seconds": round(seconds, 1), "jobs": jobs,
                "nvcc": tools.nvcc, "gcc": tools.gcc, "torch": asdict(torch), "archs": archs}  # fmt: skip
        return keep(wheel, folder, info)
    finally:
        shutil.rmtree(work, ignore_errors=True)
