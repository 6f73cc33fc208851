"""Every process that the scripts start, and their own end: nothing is left running, and no end is a traceback."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from lockedenv import ROOT, VERSION
from lockedenv.errors import FULL_DISK, Stop, disk_text
from lockedenv.output import Progress
from lockedenv.redaction import redact
from lockedenv.spec.variables import reaches_tools

_running: "Dict[subprocess.Popen[Any], bool]" = {}
_stopped_by: List[int] = []
libc = ctypes.CDLL(None)
FULL = 4_000_000  # bytes free under which a disk counts as full: a file that did not fit may already be gone again
A_HOOKS = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
)  # they name another repository


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the argument is the signal's number."""


def kill(process: "subprocess.Popen[Any]") -> None:
    """Ends a process of `started` and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class Adopted(subprocess.Popen):  # type: ignore
    """A process, by its id, whose parent has left it to this one, its subreaper."""

    def _execute_child(self, pid: int, *options: object) -> None:
        self.pid, self._child_created = pid, True


@contextlib.contextmanager
def started(
    command: Any, gentle: bool = False, **options: Any
) -> "Iterator[subprocess.Popen[Any]]":
    """A process in a group that ends with the block, an interrupt (if `gentle`, by SIGTERM and 1.5 s first) and this program.

    `command` may be the id of an adopted process, a leader of its group that ends with this program by itself.
    """
    if _stopped_by:
        raise Interrupted(_stopped_by[0])
    # PR_SET_PDEATHSIG: a parent that is killed with -9 cannot end it.
    options = {
        "stdin": subprocess.DEVNULL,
        "preexec_fn": lambda: libc.prctl(1, signal.SIGKILL),
        **options,
    }
    if isinstance(command, int):
        process: Any = Adopted(command)  # type: ignore
    else:
        process = subprocess.Popen(
            [str(word) for word in command], start_new_session=True, **options
        )
    _running[process] = gentle
    try:
        if (
            _stopped_by
        ):  # the interrupt came while this thread was starting it, and has ended what was in the list by then
            raise Interrupted(_stopped_by[0])
        yield process
    finally:
        kill(process)
        process.wait()
        del _running[process]


def end_orphans(entry: str, folders: Sequence[Path] = ()) -> None:
    """Ends what a run that was killed with -9 has left working.

    That is what has `entry` (NAME=value) in its environment; and, since micromamba starts programs with an empty
    one, what runs a program of one of the `folders`, or works in one with an empty environment. Not what this
    program was started by, and not what has other mounts: in another container the same path is another place.
    What cannot be read is another user's, and not ours.
    """
    deadline = time.monotonic() + 5
    ancestors = _ancestors()
    while time.monotonic() < deadline:
        found = [pid for pid in _process_ids() if pid not in ancestors]
        orphans = [pid for pid in found if _is_orphan(Path("/proc", str(pid)), entry, folders)]
        if not orphans:
            return
        for pid in orphans:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _process_ids() -> List[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _ancestors() -> List[int]:
    """This process and those that it was started by, as far as /proc shows them (hidepid hides those of others)."""
    found = [os.getpid(), os.getppid()]
    while found[-1] > 1:
        try:
            text = Path(f"/proc/{found[-1]}/status").read_text()
        except OSError:
            break
        parent = re.search(r"^PPid:\s+(\d+)", text, re.M)
        if not parent:
            break
        found.append(int(parent[1]))
    return found


def _is_orphan(process: Path, entry: str, folders: Sequence[Path]) -> bool:
    try:
        if os.readlink(process / "ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            return False
        environ = (process / "environ").read_bytes()
        if entry.encode() in environ.split(b"\0"):
            return True
        program = os.readlink(process / "exe")
        working_folder = os.readlink(process / "cwd")
    except OSError:
        return False
    for folder in folders:
        if f"{program}/".startswith(f"{folder}/"):
            return True
        if not environ and f"{working_folder}/".startswith(f"{folder}/"):
            return True
    return False


def ask(
    command: Sequence[Any], timeout: float = 30, input: str = "", **options: Any
) -> Tuple[Optional[int], str, str]:
    """(exit status, stdout, stderr) of a command; (None, "", why) if it cannot start or does not answer in `timeout` seconds."""
    options.setdefault("cwd", "/")  # python -m would import from the current folder
    try:
        with started(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        ) as process:
            try:
                out, err = process.communicate(input.encode(), timeout)
            except subprocess.TimeoutExpired:
                kill(process)
                process.communicate()
                return None, "", f"no answer within {timeout:.0f} s"
    except OSError as error:
        return None, "", error.strerror or str(error)
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def run(
    command: Sequence[Any],
    environ: Dict[str, str],
    what: str,
    quiet: bool = False,
    hide: str = "$^",
    cwd: Any = "/",
    disk: Optional[Path] = None,
    on_line: Optional[Callable[[str], Optional[str]]] = None,
) -> str:
    """Runs a command; what it says is returned, and goes to `on_line` or to the terminal, without lines that match `hide`.

    Meanwhile the progress shows `what`, or what `on_line` gave last, and the seconds.

    Raises Stop if it fails, with its last lines where they were not shown, or says that the disk is full. `disk`: where it
    writes, watched while it runs.
    """
    said: List[str] = []
    least, doing, progress, began = FULL + 1, what, Progress(quiet), time.monotonic()
    with started(
        command, env=environ, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:

        def forward() -> None:
            nonlocal doing
            assert process.stdout is not None
            with process.stdout:
                for raw in process.stdout:
                    line = redact(raw.decode(errors="replace").rstrip())
                    said.append(line)
                    if on_line:
                        doing = on_line(line) or doing
                    elif not quiet and not re.match(hide, line):
                        progress.clear()
                        print(f"      {line}", flush=True)

        reader = threading.Thread(target=forward, daemon=True)
        reader.start()
        while process.poll() is None:
            if disk:  # micromamba 2.5.0 only says "Write failed"
                least = min(least, shutil.disk_usage(disk).free)
            progress.show(lambda: f"{doing}, {time.monotonic() - began:.0f} s")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        status = process.wait()
        reader.join(5)
        progress.clear()
    if status:
        if least <= FULL or re.search(
            r"No space left on device|os error 28|Errno 28", "\n".join(said)
        ):
            raise Stop(f"{what}: {FULL_DISK}")
        ended = f"exit {status}" if status > 0 else f"signal {-status}"
        tail = "\n  ".join(said[-8:]) if quiet else ""
        raise Stop(
            f"{what} failed ({ended}){': ' + tail if tail else '; its last lines are above'}"
        )
    return "\n".join(said)


def clean(environ: Dict[str, str], **more: str) -> Dict[str, str]:
    """The environment for a tool, without what would steer it (spec/variables.py says what, and why)."""
    kept = {name: value for name, value in environ.items() if reaches_tools(name)}
    return {**kept, **more}


@contextlib.contextmanager
def holding(path: Path, what: str, patience: float = 3600.0) -> Iterator[None]:
    """Holds a file's lock; another holder is named and waited for, `patience` seconds at most (then: Stop). The file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(
        "a+"
    ) as file:  # the kernel lets go of the lock when the process ends, however it ends: none is ever stale
        deadline, told = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = " ".join(file.read().split()) or "another process"
                if time.monotonic() > deadline:
                    raise Stop(
                        f"{what} is held by {holder}; wait for it, or stop it, and run again"
                    ) from None
                if not told:
                    print(
                        f"{what} is held by {holder}; waiting for it", file=sys.stderr, flush=True
                    )
                told = True
                time.sleep(min(0.2, patience))
            except (
                OSError
            ) as error:  # some network file systems have no locks: two runs are then only atomic, not serial
                print(
                    f"{what}: {path.parent} has no file locks ({error.strerror}); going on",
                    file=sys.stderr,
                )
                break
        file.truncate(0)
        print(
            f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}",
            file=file,
            flush=True,
        )
        yield


def _interrupt(number: int, frame: object) -> None:
    _stopped_by.append(number)
    sys.unraisablehook = (
        lambda _: None
    )  # Python drops what is raised in a fork's hooks, and shows it; `started` raises it again
    for process, gentle in list(
        _running.items()
    ):  # whoever waits for one, in whatever thread, goes on at once
        deadline = time.monotonic() + 1.5 * gentle
        if gentle:  # it is to end what it has started in groups of their own
            process.terminate()
        while time.monotonic() < deadline and not os.waitid(
            os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.02)
        kill(process)
    raise Interrupted(number)


def run_script(name: str, work: Callable[[], int]) -> int:
    """Runs a script's work; gives its exit status. What stops it is told in one message; the unforeseen, in a log file."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed by whoever started this
        stream.reconfigure(errors="replace")  # a Latin-1 terminal
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    # Some supervisors ignore SIGCHLD, and their programs inherit that: the kernel then reaps every
    # child itself, and Popen.wait gives 0 for whatever status it ended with.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return work()
    except Stop as error:
        said, status = str(error), error.exit_status
    except Interrupted as error:
        said, status = "interrupted; run it again to go on", 128 + int(
            error.args[0]
        )  # 130: Ctrl-C; 143: SIGTERM
    except BrokenPipeError:  # nobody reads the output any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        said, status = disk_text(error), 1
    except Exception as error:
        said, status = (
            f"{_report(name)} has what happened ({type(error).__name__}): please open an issue with it",
            1,
        )
    print(f"{name}: {redact(said)}", file=sys.stderr)
    return status


def git(*arguments: str) -> Optional[str]:
    """What git says of this repository, or None."""
    environ = {name: value for name, value in os.environ.items() if name not in A_HOOKS}
    status, said, _ = ask(["git", "-C", ROOT, *arguments], env=environ)
    return said.strip() if status == 0 else None


def version() -> str:
    """This version, and the commit where git can tell."""
    return f"maximalcai {VERSION}, commit {git('describe', '--always', '--dirty') or 'unknown'}"


class ShowVersion(argparse.Action):
    """The option --version, which asks git only when it is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version())
        parser.exit()


def _report(name: str) -> str:
    """Writes the running exception and what a report needs into a file; gives its path."""
    lines = [
        f"{' '.join([name, *sys.argv[1:]])}",
        f"{version()}, {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
        f"Python {platform.python_version()} at {sys.executable}, {platform.platform()}, {os.getcwd()}",
        traceback.format_exc(),
    ]
    with tempfile.NamedTemporaryFile(
        "w", prefix="maximalcai-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
    ) as file:
        file.write(redact("\n".join(lines)))
    return file.name
