"""flash-attn, built: one wheel of its hashed source, in a folder of its own, with a log, an
estimate and a diagnosis.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, TextIO

from lockedenv.backends.cache import remove
from lockedenv.errors import Stop
from lockedenv.host.process import run
from lockedenv.install.flash_attention.toolchain import (
    GET_GCC,
    Toolchain,
    how_to_get_nvcc,
)
from lockedenv.reporter import Reporter
from lockedenv.spec.variables import clean

# flash-attn 2.8.3's source has 7,533 files with 93 MB.
UNPACKED_FILES = 100_000
UNPACKED_BYTES = 1_000_000_000
_LAST_LINES = 12


@dataclass(frozen=True)
class Cause:
    """Why a build failed, as its log shows.

    `pattern` finds it there; {0} is what its group matched.
    """

    kind: str
    pattern: str
    text: str
    remedy: str


_CAUSES = (
    Cause(
        "memory",
        r"died due to signal 9|Killed signal|signal 9 \(Kill|\bKilled\b|failed \(signal 9\)",
        "a compiler was killed for memory",
        "use --jobs with fewer, or a pod with more memory",
    ),
    Cause(
        "disk",
        r"No space left on device|Errno 28",
        "No space left on device",
        "free some disk; TMPDIR says where it builds",
    ),
    Cause(
        "gcc",
        r"unsupported GNU version|#error -- unsupported",
        "nvcc does not take this gcc",
        GET_GCC,
    ),
    Cause(
        "nvcc",
        r"mismatches the version that was used to compile",
        "nvcc is of another CUDA than torch",
        "",
    ),
    Cause(
        "header",
        r"fatal error: (\S+): No such file",
        "a header is missing: {0}",
        "install the -dev package that has it",
    ),
    Cause(
        "nvcc",
        r"nvcc(?: fatal|: not found)|nvcc fatal *: .*",
        "nvcc refuses its arguments",
        "",
    ),
    Cause(
        "module",
        r"ModuleNotFoundError: No module named '(\w+)'",
        "the build needs the Python package {0}",
        "scripts/post_create.sh installs it from the lock",
    ),
)


def find_cause(log: str, cuda: str) -> Cause:
    """The likely cause of a failed build, from its log: the first that fits, in
    order of how sure it is.
    """
    for cause in _CAUSES:
        match = re.search(cause.pattern, log)
        if match:
            remedy = cause.remedy or how_to_get_nvcc(cuda)
            return replace(
                cause, text=cause.text.format(*match.groups()), remedy=remedy
            )
    return Cause("unknown", "", "the cause is not known", "read the log")


@dataclass(frozen=True)
class BuildJob:
    """One build: `source`, a folder, becomes a wheel in `work`, with the pip of `prefix`;
    `log` gets the output.
    """

    source: Path
    work: Path
    prefix: Path
    tools: Toolchain
    archs: tuple[str, ...]
    job_count: int
    log: Path

    @property
    def wheel_folder(self) -> Path:
        return self.work / "wheel"

    def variables(self) -> dict[str, str]:
        """What flash-attn's setup.py runs with. The user's own settings of pip do not reach it."""
        environ = dict(os.environ)
        path = [self.tools.cuda_home / "bin", self.prefix / "bin"]
        capabilities = [f"{arch[:-1]}.{arch[-1]}" for arch in self.archs]
        return clean(
            environ,
            PATH=":".join([*map(str, path), environ.get("PATH", os.defpath)]),
            TMPDIR=str(self.work),
            PIP_CONFIG_FILE=os.devnull,
            CUDA_HOME=str(self.tools.cuda_home),
            CC=str(self.tools.cc),
            CXX=str(self.tools.cxx),
            CPATH=str(self.tools.headers),
            FLASH_ATTENTION_FORCE_BUILD="TRUE",
            FLASH_ATTN_CUDA_ARCHS=";".join(self.archs),
            TORCH_CUDA_ARCH_LIST=";".join(capabilities),
            MAX_JOBS=str(self.job_count),
            NVCC_THREADS=environ.get("NVCC_THREADS", "1"),
        )

    def command(self) -> list[object]:
        options = (
            "--no-build-isolation --no-deps --no-cache-dir --no-index --verbose".split()
        )
        python = self.prefix / "bin/python"
        command = [python, "-m", "pip", "wheel", *options]
        return [*command, "--wheel-dir", self.wheel_folder, self.source]


def follow_build(log: TextIO) -> Callable[[str], str | None]:
    """Takes the build's lines into its log; gives the kernels compiled and how long the rest
    takes, where one says so.
    """
    started = time.monotonic()

    def follow(line: str) -> str | None:
        print(line, file=log, flush=True)
        step = re.match(r"\s*\[(\d+)/(\d+)\]", line)
        if not step:
            return None
        done = int(step[1])
        total = int(step[2])
        seconds_left = (time.monotonic() - started) / done * (total - done)
        return f"{done} of {total} kernels, about {seconds_left:.0f} s left"

    return follow


def unpack_source(archive: Path, work: Path, without: str = "") -> Path:
    """The source in a folder of `work`, byte for byte, beside what an earlier build has
    made there; all else goes.

    `without`: a folder of the source that is left out. Raises Stop for an archive
    that would write elsewhere.
    """
    folder = work / archive.name.replace(".tar.gz", "")
    if work.exists():
        for path in work.iterdir():
            if path != folder or path.is_symlink():
                remove(path)
    new = _extract(archive, work / "new")
    if without and (new / without).exists():
        shutil.rmtree(new / without)
    if folder.exists():
        if without and (folder / without).exists():
            shutil.rmtree(folder / without)
        _replace_changed(new, folder)
    else:
        new.rename(folder)
    shutil.rmtree(work / "new")
    return folder


def _replace_changed(new: Path, folder: Path) -> None:
    """Puts those files of a folder back that are not as in the new one; what is
    the same keeps its time.
    """
    for path in list(new.rglob("*")):
        if not path.is_file():
            continue
        there = folder / path.relative_to(new)
        is_same = there.is_file() and not there.is_symlink()
        if not is_same or there.read_bytes() != path.read_bytes():
            there.parent.mkdir(parents=True, exist_ok=True)
            path.replace(there)


def _extract(archive: Path, target: Path) -> Path:
    """Unpacks the one folder of an sdist: plain files and folders alone, inside
    `target`, within the limits.
    """
    size = 0
    with tarfile.open(archive) as tar:
        for count, member in enumerate(tar, 1):
            size += max(0, member.size)
            if count > UNPACKED_FILES or size > UNPACKED_BYTES:
                raise Stop(
                    f"{archive} holds more than {UNPACKED_BYTES} bytes; it is not unpacked"
                )
            parts = Path(member.name).parts
            if member.name.startswith("/") or ".." in parts:
                raise Stop(
                    f"{archive} would write to {member.name[:80]!r}; it is not unpacked"
                )
            path = target / member.name
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            content = None
            if member.isreg():
                content = tar.extractfile(member)
            if not content:
                raise Stop(f"{archive} holds a link or a device, {member.name[:80]!r}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, path.open("xb") as file:
                shutil.copyfileobj(content, file)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
            os.utime(path, (member.mtime, member.mtime))
    folders = list(target.iterdir()) if target.exists() else []
    if len(folders) != 1 or not folders[0].is_dir():
        raise Stop(f"{archive} does not hold one folder, as an sdist does")
    return folders[0]


def build_wheel(job: BuildJob, reporter: Reporter, again: bool = True) -> Path:
    """Builds the wheel; killed for memory, once more with half the jobs.

    Raises Stop with the cause and the log's last lines.
    """
    reporter.say(f"the full log: {job.log}")
    try:
        with job.log.open("w", encoding="utf-8") as file:
            run(
                job.command(),
                job.variables(),
                "building flash-attn",
                reporter,
                on_line=follow_build(file),
                cwd=job.work,
            )
    except Stop as error:
        text = job.log.read_text(encoding="utf-8", errors="replace")
        cause = find_cause(f"{text}\n{error}", job.tools.cuda)
        if cause.kind == "memory" and job.job_count > 1 and again:
            fewer = job.job_count // 2
            plural = "s" if fewer > 1 else ""
            reporter.say(f"{cause.text}; trying once more with {fewer} job{plural}")
            shutil.rmtree(job.wheel_folder, ignore_errors=True)
            return build_wheel(replace(job, job_count=fewer), reporter, again=False)
        tail = "\n  ".join(text.strip().splitlines()[-_LAST_LINES:])
        raise Stop(
            f"building flash-attn failed: {cause.text}; {cause.remedy}.\n  {tail}\n"
            f"The full log: {job.log}"
        ) from None
    return next(job.wheel_folder.glob("*.whl"))
