"""--certificate: what a fixed training task computes here."""

from __future__ import annotations

from pathlib import Path

from lockedenv.cli.subject import read_subject
from lockedenv.errors import Stop
from lockedenv.host.files import write_document
from lockedenv.provenance.certificate.document import certificate_text
from lockedenv.provenance.certificate.make import make_certificate
from lockedenv.provenance.certificate.words import summarize
from lockedenv.spec import environment


def write_certificate(prefix: Path, gpu_mode: str, target: Path) -> int:
    """Makes the certificate of this prefix and machine, writes it, gives the exit status.

    Raises Stop.
    """
    subject = read_subject(prefix, gpu_mode)
    if gpu_mode == "require" and not subject.gpus:
        raise Stop(
            "no GPU found, and --gpu require was given; rent a pod with a GPU, or leave out "
            "--gpu require"
        )
    name = environment.find_by_prefix(prefix).name
    print(
        f"environment {name}, on the {subject.device}: the task runs twice, in two processes"
    )
    certificate = make_certificate(subject.installed, subject.gpus, subject.device)
    write_document(target, certificate_text(certificate))
    print("\n".join(summarize(certificate)))
    return 0
