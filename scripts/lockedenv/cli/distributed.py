"""--distributed: under torchrun, the same environment on every rank?"""

from __future__ import annotations

from pathlib import Path

from lockedenv.cli.subject import read_subject
from lockedenv.provenance import ranks


def check_ranks(prefix: Path, gpu_mode: str, timeout: float, certificate: str | None) -> int:
    """The check on this rank; gives the exit status, which is the same on every living rank.

    `timeout`: seconds for each stage. `certificate`: where the certificate that most ranks compute is written.
    """
    subject = read_subject(prefix, gpu_mode)
    problem = subject.gpu_error
    if gpu_mode == "require" and not subject.gpus and not problem:
        problem = "no GPU found, and --gpu require was given"
    return ranks.main(subject.installed, list(subject.gpus), timeout, certificate, problem)
