"""Facts that the checks and the verdict on the pod know: asked here, because
installing does not import checks.
"""

from __future__ import annotations

import os
from pathlib import Path

from lockedenv.backends.base import Obstacle
from lockedenv.errors import Stop
from lockedenv.host.finding import FindingOutcome, select
from lockedenv.install.facts import Surroundings
from lockedenv.install.verification import callers_variables
from lockedenv.pod import verdict as pod
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.variables import handed_on
from lockedenv.verify.checks.surroundings import compile_problem
from lockedenv.verify.variables import misleading

NO_COMPILER = Obstacle(
    "there is no g++ for torch.compile, and CXX is not set",
    "apt-get update && apt-get install -y g++",
)


def read_surroundings(
    prefix: Path, environment: Environment, backend: BackendName
) -> Surroundings:
    """What would mislead, what is missing for torch.compile, and what is odd about the machine."""
    findings = pod.inspect_machine()
    conclusion = pod.conclude(findings)
    notes = []
    for finding in findings:
        if finding.verdict in (FindingOutcome.WARN, FindingOutcome.FAIL):
            notes.append(f"{finding.check:<12} {finding.summary}: {finding.remedy}")
    refusal = None
    if conclusion.verdict is FindingOutcome.FAIL:
        worst = select(findings, FindingOutcome.FAIL)[0]
        refusal = Obstacle(
            f"{conclusion.text}: {worst.summary}",
            "--check-pod tells more, and --any-pod continues anyway",
        )
    compiler = None
    if compile_problem(prefix, dict(os.environ)):
        compiler = NO_COMPILER
    return Surroundings(
        misleading=misleading_variables(prefix, environment, backend),
        compiler=compiler,
        pod=[finding.as_json() for finding in findings],
        notes=notes,
        pod_refusal=refusal,
    )


def misleading_variables(
    prefix: Path, environment: Environment, backend: BackendName
) -> list[Obstacle]:
    """The variables for which the verifier would fail at the end, and a
    TMPDIR that is of no use.
    """
    problems = []
    cuda = environment.cuda(backend)
    cudnn = environment.cudnn(backend)
    environ = {**callers_variables(), **handed_on(os.environ)}
    for what, remedy in misleading(prefix, environ, cuda, cudnn):
        problems.append(Obstacle(what, f"{remedy}, and run it again"))
    folder = os.environ.get("TMPDIR")
    if folder and not os.access(folder, os.W_OK):
        problems.append(
            Obstacle(
                f"TMPDIR={folder} is not a folder that you may write to",
                "make it or unset TMPDIR, and run it again",
            )
        )
    return problems


def refuse_misleading_variables(
    prefix: Path, environment: Environment, backend: BackendName
) -> None:
    """Raises Stop now for what the verifier would refuse at the end."""
    for problem in misleading_variables(prefix, environment, backend):
        raise Stop(str(problem))
