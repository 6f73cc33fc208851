"""Compiles FlashAttention 4's kernels into its cache. Runs in the prefix's interpreter.

`python -m lockedenv.install.flash_attention.compile_kernels WORKERS KERNELS`, started by
precompile.py with the variables of the GPU and of the cache; KERNELS is a list of kernels in JSON.
Prints one line of JSON for each kernel.
"""

from __future__ import annotations

import json
import os
import sys
import time

from lockedenv.spec.flash_attention_kernels import Kernel, compile_kernel


def compile_share(kernels: list[Kernel], share: int, shares: int) -> bool:
    """Compiles every kernel whose number modulo `shares` is `share`; whether all compiled."""
    good = True
    for number, kernel in enumerate(kernels):
        if number % shares != share:
            continue
        began = time.monotonic()
        error = ""
        try:
            compile_kernel(kernel)
        except (
            Exception
        ) as failure:  # noqa: B902 (whatever the compiler raises is the answer)
            error = f"{type(failure).__name__}: {failure}"
            good = False
        seconds = round(time.monotonic() - began, 1)
        answer = {"kernel": str(kernel), "seconds": seconds, "error": error}
        os.write(
            1, (json.dumps(answer) + "\n").encode()
        )  # one write: the lines do not mix
    return good


def main(kernels: list[Kernel], shares: int) -> int:
    """Shares the kernels out among processes, which begin when the imports are done."""
    import flash_attn.cute.interface  # noqa: F401

    children = []
    for share in range(1, shares):
        child = os.fork()
        if child == 0:
            os._exit(int(not compile_share(kernels, share, shares)))
        children.append(child)
    good = compile_share(kernels, 0, shares)
    for child in children:
        _, status = os.waitpid(child, 0)
        good = good and status == 0
    return int(not good)


if __name__ == "__main__":
    wanted = [Kernel(**fields) for fields in json.loads(sys.argv[2])]
    sys.exit(main(wanted, int(sys.argv[1])))
