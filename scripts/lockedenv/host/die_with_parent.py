"""Becomes a program that the kernel kills when its parent ends, even if that is killed with -9.

    python -I -S die_with_parent.py PARENT PIPE LOCALE PROGRAM ARGUMENT...

PARENT is the parent's process id. PIPE is the number of a file descriptor that gets the errno if
the program cannot be started, and is closed if it can. LOCALE is the program's LC_CTYPE, empty if
it has none: Python changes that variable for itself where there is no locale (PEP 538).

This is a program of its own because what has to be done between fork and exec is not safe in Python
code where the parent has threads (preexec_fn of subprocess).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, pipe: int, locale: str, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It ended before the kernel was told.
        os._exit(1)
    # Python ignores these two, and what is ignored stays so in the program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.environ.pop("LC_CTYPE", None)
    if locale:
        os.environ["LC_CTYPE"] = locale
    os.set_inheritable(pipe, False)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(pipe, str(error.errno).encode())
        os._exit(127)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
