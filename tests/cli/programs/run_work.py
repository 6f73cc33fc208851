"""A script whose work is the function that its first argument names."""

import errno
import os
import signal
import sys

from lockedenv.cli.script import run_script
from lockedenv.errors import Stop, UsageError
from lockedenv.host.process import ask


class Late:
    """Interrupts this program when it is thrown away: what that raises is dropped by Python."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def stop() -> int:
    raise Stop("there is no disk; add one")


def misuse() -> int:
    raise UsageError("unknown name `tset`; did you mean `test`?")


def crash() -> int:
    raise KeyError("https://me:s3cret@index.example/simple")


def fill() -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/some/file")


def speak() -> int:
    print("a line")
    return 0


def speak_much() -> int:
    for _ in range(100_000):
        print("a line")
    return 0


def fail_to_ask() -> int:
    """The exit status of a command that fails, as this program sees it."""
    print(ask(["false"]).status)
    return 0


def drop_an_interrupt() -> int:
    Late()
    print(ask(["sleep", "600"]))
    return 0


if __name__ == "__main__":
    sys.exit(run_script("program", globals()[sys.argv[1]]))
