"""--certificate: what a fixed training task computes here."""

from __future__ import annotations

from pathlib import Path

from lockedenv.cli.subject import read_subject
from lockedenv.errors import Stop
from lockedenv.host.machine import write_atomically
from lockedenv.provenance import certificate
from lockedenv.spec import environment


def write_certificate(prefix: Path, gpu_mode: str, target: Path) -> int:
    """Makes the certificate of this prefix and machine, and writes it; gives the exit status. Raises Stop."""
    subject = read_subject(prefix, gpu_mode)
    if gpu_mode == "require" and not subject.gpus:
        raise Stop(
            "no GPU found, and --gpu require was given; rent a pod with a GPU, or leave out --gpu require"
        )
    name = environment.of(prefix).name
    print(f"environment {name}, on the {subject.device}: the task runs twice, in two processes")
    document = certificate.make(subject.installed, list(subject.gpus), subject.device)
    write_atomically(target, certificate.text(document))
    print(certificate.summary(document))
    return 0
