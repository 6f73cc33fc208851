"""What proves that the flash-attn in a prefix works: it imports, and on a GPU it computes rightly.

The verifier is run as any user runs it, and its verdict is read from the document that it writes:
nothing of the verifier is imported here.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from lockedenv import ROOT
from lockedenv.host.files import read_json
from lockedenv.host.process import ask
from lockedenv.spec.variables import clean

_IMPORT = """
import torch, flash_attn, flash_attn_2_cuda
from flash_attn import flash_attn_func
print(flash_attn.__version__)
"""
_IMPORT_SECONDS = 120
_CHECK_SECONDS = 600


@dataclass(frozen=True)
class Proof:
    """`problem`: what is wrong, empty if nothing.

    `wheel_at_fault`: whether another machine would find the same.

    The wheel is at fault if it does not import, has another version or gives wrong values; not if a
    GPU is full, gone or of another architecture.
    """

    problem: str = ""
    wheel_at_fault: bool = False


# (prefix, version, whether there is a GPU) -> proof
Prover = Callable[[Path, str, bool], Proof]


def prove_import(prefix: Path, version: str) -> Proof:
    """Whether the prefix's interpreter imports this version, with its compiled part."""
    command = [prefix / "bin/python", "-c", _IMPORT]
    answer = ask(command, _IMPORT_SECONDS, env=clean(dict(os.environ)))
    if answer.status != 0:
        last_line = "".join(answer.error.strip().splitlines()[-1:])
        # A time-out or a signal says nothing of the wheel.
        at_fault = answer.status is not None and answer.status > 0
        return Proof(f"it does not import: {last_line}", at_fault)
    imported = answer.output.split()[-1]
    if imported != version:
        return Proof(f"version {imported} was imported, not {version}", True)
    return Proof()


def prove(prefix: Path, version: str, gpu: bool) -> Proof:
    """The import, and with a GPU the verifier's check `flash-attn`."""
    proof = prove_import(prefix, version)
    if proof.problem or not gpu:
        return proof
    return prove_values(prefix)


def prove_values(prefix: Path) -> Proof:
    """What the verifier's check `flash-attn` says of the kernels, on the GPUs that are here."""
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder, "verdict.json")
        verifier = ROOT / "scripts/verify_environment.py"
        command = [
            prefix / "bin/python",
            verifier,
            "--only",
            "flash-attn",
            "--json",
            document,
        ]
        answer = ask(command, _CHECK_SECONDS, env=clean(dict(os.environ)))
        return read_proof(read_json(document), answer.error)


def read_proof(document: dict[str, object], error: str) -> Proof:
    """The proof in the document that the verifier writes.

    `error`: what it said where it wrote none.
    """
    results = document.get("results")
    if not isinstance(results, list):
        last_line = "".join(error.strip().splitlines()[-1:])
        return Proof(f"the verifier wrote no verdict ({last_line})")
    for result in results:
        if result["check"] == "flash-attn" and result["verdict"] == "fail":
            # With figures it ran, and gave wrong values.
            return Proof(result["summary"], bool(result["measured"]))
    return Proof()
