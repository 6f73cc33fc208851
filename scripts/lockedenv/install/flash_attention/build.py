"""flash-attn, built: one wheel of its hashed source, in a folder of its own, with a log, an estimate and a diagnosis."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, TextIO, Tuple

from lockedenv.backends.kept import discard
from lockedenv.errors import Stop
from lockedenv.host.process import clean, run
from lockedenv.install.flash_attention.plan import GET_GCC, GET_NVCC, Toolchain
from lockedenv.reporter import Reporter

_CAUSES = (
    (
        r"died due to signal 9|Killed signal|signal 9 \(Kill|\bKilled\b|failed \(signal 9\)",
        "memory",
        "a compiler was killed for memory",
        "use --jobs with fewer, or a pod with more memory",
    ),
    (
        r"No space left on device|Errno 28",
        "disk",
        "No space left on device",
        "free some disk; TMPDIR says where it builds",
    ),
    (
        r"unsupported GNU version|#error -- unsupported",
        "gcc",
        "nvcc does not take this gcc",
        GET_GCC,
    ),
    (
        r"mismatches the version that was used to compile",
        "nvcc",
        "nvcc is of another CUDA than torch",
        GET_NVCC,
    ),
    (
        r"fatal error: (\S+): No such file",
        "header",
        "a header is missing: {0}",
        "install the -dev package that has it",
    ),
    (
        r"nvcc(?: fatal|: not found)|nvcc fatal *: .*",
        "nvcc",
        "nvcc refuses its arguments",
        GET_NVCC,
    ),
    (
        r"ModuleNotFoundError: No module named '(\w+)'",
        "module",
        "the build needs the Python package {0}",
        "scripts/post_create.sh installs it from the lock",
    ),
)


def likely_cause(log: str, cuda: str) -> Tuple[str, str, str]:
    """(kind, cause, remedy) of a failed build, from its log; the first that fits, in order of how sure it is."""
    for pattern, kind, cause, remedy in _CAUSES:
        if match := re.search(pattern, log):
            return kind, cause.format(*match.groups()), remedy.format(cuda, cuda.replace(".", "-"))
    return "unknown", "the cause is not known", "read the log"


def variables(
    work: Path, prefix: Path, tools: Toolchain, archs: List[str], jobs: int
) -> Dict[str, str]:
    """What flash-attn's setup.py runs with. The user's own settings of pip do not reach it."""
    environ, path = (
        dict(os.environ),
        f"{tools.cuda_home / 'bin'}:{prefix / 'bin'}:{os.environ.get('PATH', os.defpath)}",
    )
    return clean(
        environ,
        PATH=path,
        TMPDIR=str(work),
        PIP_CONFIG_FILE=os.devnull,
        CUDA_HOME=str(tools.cuda_home),
        CC=str(tools.cc),
        CXX=str(tools.cxx),
        CPATH=str(tools.headers),
        FLASH_ATTENTION_FORCE_BUILD="TRUE",
        FLASH_ATTN_CUDA_ARCHS=";".join(archs),
        TORCH_CUDA_ARCH_LIST=";".join(f"{a[:-1]}.{a[-1]}" for a in archs),
        MAX_JOBS=str(jobs),
        NVCC_THREADS=environ.get("NVCC_THREADS", "1"),
    )


def follower(log: TextIO) -> Callable[[str], Optional[str]]:
    """Takes the build's lines into its log; gives the kernels compiled and how long the rest takes, where one says so."""
    started = time.monotonic()

    def follow(line: str) -> Optional[str]:
        print(line, file=log, flush=True)
        if not (step := re.match(r"\s*\[(\d+)/(\d+)\]", line)):
            return None
        done, total = int(step[1]), int(step[2])
        left = (time.monotonic() - started) / done * (total - done)
        return f"{done} of {total} kernels, about {left:.0f} s left"

    return follow


def unpack(archive: Path, work: Path) -> Path:
    """The source in a folder of `work`, byte for byte, beside what an earlier build has made there; all else goes."""
    folder = work / archive.name.replace(".tar.gz", "")
    for path in work.iterdir() if work.exists() else []:
        if path != folder or path.is_symlink():
            discard(path)
    shutil.unpack_archive(archive, work / "new")
    new = next((work / "new").iterdir())
    if folder.exists():
        for path in [path for path in new.rglob("*") if path.is_file()]:
            there = folder / path.relative_to(new)
            if there.is_symlink() or not there.is_file() or there.read_bytes() != path.read_bytes():
                there.parent.mkdir(parents=True, exist_ok=True)
                path.replace(there)
    else:
        new.rename(folder)
    shutil.rmtree(work / "new")
    return folder


def build(
    source: Path,
    work: Path,
    prefix: Path,
    tools: Toolchain,
    archs: List[str],
    jobs: int,
    log: Path,
    reporter: Reporter,
    again: bool = True,
) -> Path:
    """Builds a wheel of a folder of source in `work`; killed for memory, once more with half the jobs.

    Raises Stop: the cause, the log's last lines.
    """
    out = work / "wheel"
    options = [
        "--no-build-isolation",
        "--no-deps",
        "--no-cache-dir",
        "--no-index",
        "--verbose",
        "--wheel-dir",
        out,
    ]
    command = [prefix / "bin/python", "-m", "pip", "wheel", *options, source]
    reporter.note(f"the full log: {log}")
    try:
        with log.open("w", encoding="utf-8") as file:
            environ = variables(work, prefix, tools, archs, jobs)
            run(
                command,
                environ,
                "building flash-attn",
                reporter.quiet,
                on_line=follower(file),
                cwd=work,
            )
    except Stop as error:
        text = log.read_text(encoding="utf-8", errors="replace")
        kind, cause, remedy = likely_cause(f"{text}\n{error}", tools.cuda)
        if kind == "memory" and jobs > 1 and again:
            reporter.note(f"{cause}; trying once more with {jobs // 2} job{'s' * (jobs > 3)}")
            shutil.rmtree(out, ignore_errors=True)
            return build(source, work, prefix, tools, archs, jobs // 2, log, reporter, again=False)
        tail = "\n  ".join(text.strip().splitlines()[-12:])
        raise Stop(
            f"building flash-attn failed: {cause}; {remedy}.\n  {tail}\nThe full log: {log}"
        ) from None
    return next(out.glob("*.whl"))
