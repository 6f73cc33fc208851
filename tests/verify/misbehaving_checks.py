"""Checks that crash, hang, leave or look around. The tests put this file into a folder as sitecustomize.py."""

import ctypes
import os
import subprocess
import sys
import tempfile
import time

from lockedenv.verify.checklist import CHECKS
from lockedenv.verify.checks import Check, passed

libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p


def how(device):
    return passed("forked" if "torch" in sys.modules else "fresh", pid=os.getpid())


def crash(device):
    print("last words", file=sys.stderr)
    ctypes.string_at(0)


def hang(device):
    sleep = subprocess.Popen(["sleep", "600"])
    with open(f"{os.environ['MARKS']}/{os.getpid()}", "w") as file:
        file.write(str(sleep.pid))
    time.sleep(600)


def leave(device):
    sys.exit("left")


def claim(device):
    """Ends well, and has found nothing."""
    os._exit(0)


def see(device):
    seen = {
        **os.environ,
        "cwd": os.getcwd(),
        "temp": tempfile.gettempdir(),
        "group": os.getpgrp() == os.getpid(),
    }
    os.environ["CUDA_VISIBLE_DEVICES"] = "5"
    seen["now"] = libc.getenv(b"CUDA_VISIBLE_DEVICES").decode()
    return passed("seen", **seen)


def compiling(device):
    open(f"{os.environ['MARKS']}/0", "w").close()
    time.sleep(2)
    return how(device)


for number in range(4):
    for function in (how, crash, hang, leave, claim, see, compiling):
        name = function.__name__ + str(number or "")
        CHECKS.append(Check(name, name, function, child=True))
if os.environ.get("COMPILES"):
    CHECKS.insert(0, Check("torch-compile", "", compiling, child=True))
