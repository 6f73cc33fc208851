"""A check in a fork of the process that has imported the stack is as good as one in a fresh one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from lockedenv.host.launchers import child_environment
from lockedenv.spec import environment
from lockedenv.verify import forks
from lockedenv.verify.checklist import find_check
from lockedenv.verify.runner import Children

IMPORTING = Path(__file__).parent / "programs/import_as_with_a_gpu.py"
# Where the compiler is told to use vector instructions, it fails.
REFUSING_COMPILER = """#!/bin/sh
case "$*" in
  *-mavx*) echo "refused: $*" >>{log}; exit 1 ;;
esac
exec {compiler} "$@"
"""


def test_importing_the_stack_before_a_fork_asks_nothing_of_a_gpu_and_starts_nothing() -> (
    None
):
    """As if there were a GPU: whatever asks for it ends the program."""
    environ = child_environment(Path(sys.prefix), "cuda", dict(os.environ))
    environ["TORCH_WARM_POOL"] = "0"
    command = [sys.executable, str(IMPORTING), *forks.STACK]
    done = subprocess.run(
        command,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    before, _, after = done.stdout.partition("\n")
    assert before == "[] False False", done.stdout
    assert "CUDA was touched" in after, done.stdout


def test_a_forked_check_computes_with_all_threads_and_trains(tmp_path: Path) -> None:
    """With a compiler that has not the CPU's vector instructions: inductor goes without them."""
    log = tmp_path / "refused"
    compiler = tmp_path / "g++"
    compiler.write_text(REFUSING_COMPILER.format(log=log, compiler=shutil.which("g++")))
    compiler.chmod(0o755)
    python = Path(sys.executable)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environ = child_environment(Path(sys.prefix), "cpu", {**os.environ, "PATH": path})
    verdicts = {}
    with forks.fork_server(python, "cpu", "", environ) as server:
        children = Children(python, "cpu", environ, "", server)
        for name in (
            "torch-compile",
            "torch",
            "sdpa",
            "trainer-resume",
            "imports",
            "statistics",
        ):
            verdicts[name] = str(children.run(find_check(name)).verdict)
        assert server.usable, "each was a fork"
    resume = "warn"
    if environment.find_by_prefix(Path(sys.prefix)).name == "current":
        resume = "pass"
    assert verdicts.pop("trainer-resume") == resume
    assert set(verdicts.values()) == {"pass"}, verdicts
    assert log.exists()
