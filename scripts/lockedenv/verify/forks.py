"""Checks as forks of one process that has imported the stack:
importing takes longer than most checks run.

Why this is not multiprocessing's forkserver, which does nearly the same: its server starts with the
variables and the standard streams of this process, imports its preload without a time limit (a
library that hangs would hang the verifier), and cannot fork before all of the preload is imported.
torch.compile, the longest check, begins after torch alone is imported here, while the rest is.

    verifier --(name, folder, socket)--> server: imports, forks a supervisor for each check
                                           supervisor: forks the check, waits for it, and tells
    verifier <--"PID", then its status--   the verifier through the check's own socket

Nothing outlives the verifier: the kernel kills the server with the process that started it, and a
supervisor kills its check's process group when the check's socket closes, whatever closed it. A
check that runs goes on where the server ends, so that an import which crashes costs no other check.

`python -m lockedenv.verify.forks DEVICE ENVIRONMENT` is the server; its socket is its
standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockedenv import ROOT
from lockedenv.host.process import kill, started
from lockedenv.verify.child import LOG, ChildTask, Ended, run_and_write

# What is imported before a fork. The first two come before the fork of torch.compile. Not
# bitsandbytes and what imports it (peft, Trainer): it asks each GPU what it can do, and CUDA does
# not work in the forks of a process that has used it.
FIRST = ("torch", "torch._inductor.compile_fx")
STACK = (
    *FIRST,
    "transformers.models.llama.modeling_llama",
    "accelerate",
    "hf_transfer",
    "hf_xet",
    "datasets",
    "numpy",
    "scipy.stats",
    "statsmodels.api",
    "tqdm",
    "pytest",
    "einops",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
)
COMPILE = "torch-compile"
HEAD_START = (
    0.1  # seconds that the other checks wait, so that torch.compile is asked for first
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL = 0.02  # seconds between two looks of a supervisor at its check
LONGEST_MESSAGE = 1 << 16
# NVML's word on the GPUs is no use of CUDA. No pool of compile workers: they would not be a fork's.
IMPORTING = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TORCH_WARM_POOL": "0"}


class CannotFork(Exception):
    """The server has ended, hangs, or has touched CUDA: a fresh interpreter takes the check."""


@dataclass
class ForkServer:
    """The verifier's end.

    Its methods may be called from several threads. `open`: of the checks that run.
    """

    control: socket.socket
    process: "subprocess.Popen[Any]"
    lock: threading.Lock
    first_asked: threading.Event
    open: set[socket.socket] = field(default_factory=set)
    usable: bool = True

    def run(self, name: str, folder: str, limit: float) -> Ended:
        """Runs a check in a folder of its own; gives how it ended. Raises CannotFork.

        `limit`: the seconds that it may take, and in which the server must begin.
        """
        if name != COMPILE:
            self.first_asked.wait(HEAD_START)
        # Packets: a process id and a status that follows at once must not become one.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                self._ask(name, folder, theirs)
            with self.lock:
                self.open.add(ours)
            ours.settimeout(limit)
            try:
                int(ours.recv(64))  # its process id: it has begun
                return _wait(ours)
            except (OSError, ValueError):
                self._give_up()
                raise CannotFork from None
            finally:
                with self.lock:
                    self.open.discard(ours)

    def stop(self) -> None:
        """Ends all checks that run: an interrupt does not wait for them."""
        with self.lock:
            self.usable = False
            for ours in self.open:
                with contextlib.suppress(OSError):
                    ours.shutdown(socket.SHUT_RDWR)

    def _ask(self, name: str, folder: str, theirs: socket.socket) -> None:
        with self.lock:
            self.first_asked.set()
            if not self.usable:
                raise CannotFork
            message = json.dumps([name, folder]).encode()
            try:
                socket.send_fds(self.control, [message], [theirs.fileno()])
            except OSError:
                self.usable = False
                raise CannotFork from None

    def _give_up(self) -> None:
        with self.lock:
            self.usable = False
        kill(self.process)


def _wait(ours: socket.socket) -> Ended:
    """How a check ended. The socket's time limit is the check's; closing it ends the check."""
    try:
        answer = ours.recv(64)
    except socket.timeout:
        return Ended(None)
    except OSError:
        answer = b""
    if not answer:  # the supervisor was killed, and the check with it
        return Ended(-signal.SIGKILL)
    return Ended(int(answer))


@contextlib.contextmanager
def fork_server(
    python: Path, device: str, environment: str, environ: dict[str, str]
) -> Iterator[ForkServer]:
    """A server that ends with the block.

    `environ` is for the server and the checks; `environment` names the locks as --environment does,
    empty for the prefix's own.
    """
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [python, "-X", "faulthandler", "-m", "lockedenv.verify.forks"]
    command += [device, environment]
    with contextlib.ExitStack() as stack:
        stack.enter_context(control)
        # The server is killed in the end, and leaves what its libraries put into TMPDIR.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-"))
        with theirs:
            process = stack.enter_context(
                started(
                    command,
                    stdin=theirs,
                    stdout=subprocess.DEVNULL,  # what fails to import, the check `imports` tells
                    stderr=subprocess.DEVNULL,
                    cwd=ROOT / "scripts",
                    env={**environ, "TMPDIR": folder},
                )
            )
        yield ForkServer(control, process, threading.Lock(), threading.Event())


# In the server


def serve(device: str, environment: str, environ: dict[str, str]) -> None:
    """Forks a supervisor for each check that it is asked for.

    Ends when CUDA was touched, or at the socket's end.

    An import that fails or crashes ends it, and fresh interpreters tell of what.
    """
    control = socket.socket(fileno=0)
    os.environ.update(IMPORTING)
    while True:
        _reap_supervisors()
        message, descriptors, _, _ = socket.recv_fds(control, LONGEST_MESSAGE, 1)
        if not message:
            return
        name, folder = json.loads(message)
        import_stack(FIRST if name == COMPILE else STACK)
        if touches_cuda():
            return
        answers = socket.socket(fileno=descriptors[0])
        if os.fork() == 0:
            control.close()
            subject = ChildTask(name, device, environment, Path(folder))
            supervise(subject, answers, environ)
        answers.close()


def _reap_supervisors() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def import_stack(names: tuple[str, ...]) -> None:
    """Imports those of the modules that this environment has."""
    for name in names:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)


def touches_cuda() -> bool:
    """Whether the driver's library is loaded.
    torch.cuda._is_in_bad_fork knows of torch's own calls alone."""
    return "/libcuda.so" in Path("/proc/self/maps").read_text()


def supervise(
    subject: ChildTask, answers: socket.socket, environ: dict[str, str]
) -> None:
    """Runs a check in a process of its own, and tells its status; never returns."""
    os.setsid()  # the server is killed with its process group
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        answers.close()
        run_forked(subject, supervisor, environ)
    try:
        with contextlib.suppress(OSError):  # the wait sees that the verifier is gone
            answers.send(str(pid).encode())
        status = _wait_or_kill(pid, answers)
        if status is not None:
            answers.send(str(status).encode())
    finally:
        os._exit(0)


def _wait_or_kill(pid: int, answers: socket.socket) -> int | None:
    """The status of a check, negative for a signal; None if the verifier is gone, or gave it up."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _kill_group(pid)
            return os.waitstatus_to_exitcode(status)
        if _is_closed(answers):
            os.kill(pid, signal.SIGKILL)  # it may not lead a group yet
            _kill_group(pid)
            os.waitpid(pid, 0)
            return None


def _is_closed(answers: socket.socket) -> bool:
    """Whether the verifier has closed its end, after a short wait."""
    readable, _, _ = select.select([answers], [], [], POLL)
    if not readable:
        return False
    try:
        return not answers.recv(1)
    except ConnectionError:  # it had not read all that it was sent
        return True


def die_with(parent: int) -> None:
    """This process is killed when its parent ends, also where that one is killed with -9."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before
        os._exit(1)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def run_forked(subject: ChildTask, supervisor: int, environ: dict[str, str]) -> None:
    """The check itself, as in a process of its own: its group, its folder, its variables;
    never returns."""
    die_with(supervisor)
    os.setsid()
    os.chdir(subject.folder)
    # The server's standard input was its socket, which is closed here: 0 is free, and is taken
    # first.
    for number, path in enumerate((os.devnull, LOG, LOG)):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environ, TMPDIR=str(subject.folder))
    tempfile.tempdir = None
    code = 1
    try:
        run_and_write(subject)
        code = 0
    except SystemExit as error:
        if isinstance(error.code, int):
            code = error.code
        elif error.code is not None:
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], dict(os.environ))
