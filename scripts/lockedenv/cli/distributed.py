"""--distributed: under torchrun, the same environment on every rank?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lockedenv.cli.subject import Subject, read_subject
from lockedenv.host.finding import FindingOutcome
from lockedenv.pod import verdict as pod
from lockedenv.provenance.certificate import make
from lockedenv.provenance.certificate.document import (
    Certificate,
    certificate_from,
    certificate_text,
)
from lockedenv.provenance.certificate.judge import compare_certificates
from lockedenv.provenance.certificate.words import describe_judgement, summarize
from lockedenv.provenance.documents import DocumentError, Fields
from lockedenv.provenance.gather import make_manifest
from lockedenv.provenance.ranks import run


class RankCertifier:
    """Makes and compares the certificates of ranks; a certificate is the text of its file."""

    seconds = float(make.SECONDS)

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def make(self, gpu: str) -> str:
        """The certificate of one GPU, as CUDA_VISIBLE_DEVICES names it, or of the CPU.

        Raises Stop.
        """
        device = "cpu"
        if self.subject.gpus:
            device = "cuda"
        certificate = make.make_certificate(
            self.subject.installed, self.subject.gpus, device, visible_gpu=gpu
        )
        return certificate_text(certificate)

    def digest(self, certificate: str) -> str:
        """Equal for two that computed the same bits."""
        return _parse(certificate).weights

    def compare(self, usual: str, own: str, own_name: str) -> list[str]:
        """Lines that say what differs beyond what is allowed; empty if nothing does."""
        names = ("most ranks", own_name)
        try:
            judgement = compare_certificates(_parse(usual), _parse(own), names)
        except DocumentError as error:  # they have no row in common
            return [str(error)]
        if judgement.computes_the_same:
            return []
        return describe_judgement(judgement)

    def summarize(self, certificate: str) -> list[str]:
        """Lines that say what was computed."""
        return summarize(_parse(certificate))


def check_ranks(
    prefix: Path, gpu_mode: str, timeout: float, certificate: str | None
) -> int:
    """The check on this rank; gives the exit status, the same on every living rank. Raises Stop.

    `timeout`: seconds for each stage. `certificate`: where most ranks' certificate is written.
    """
    subject = read_subject(prefix, gpu_mode)
    problem = subject.gpu_error
    if gpu_mode == "require" and not subject.gpus and not problem:
        problem = "no GPU found, and --gpu require was given"
    target = None
    if certificate:
        target = Path(certificate)
    request = run.RankRequest(
        timeout=timeout,
        on_gpu=bool(subject.gpus),
        problem=problem,
        make_manifest=lambda: make_manifest(subject.installed, subject.gpus),
        look_at_pod=find_pod_trouble,
        certifier=RankCertifier(subject),
        certificate=target,
    )
    return run.check_ranks(request, say, complain)


def find_pod_trouble() -> str:
    """What is odd about this machine; empty if nothing is."""
    conclusion = pod.conclude(pod.inspect_machine())
    if conclusion.verdict in (FindingOutcome.WARN, FindingOutcome.FAIL):
        return conclusion.text
    return ""


def say(line: str) -> None:
    """A line of the result."""
    print(line, flush=True)


def complain(line: str) -> None:
    """A line about what ended this rank."""
    print(line, file=sys.stderr, flush=True)


def _parse(text: str) -> Certificate:
    return certificate_from("a rank's certificate", Fields(json.loads(text)))
