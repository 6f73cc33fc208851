"""The certificate as a file: schemas/certificate.schema.json describes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any, Mapping

from lockedenv.errors import printable
from lockedenv.provenance.documents import (
    DocumentError,
    Fields,
    ShapeError,
    parse_document,
)
from lockedenv.spec.layers import BackendName

SCHEMA_VERSION = 1
MOST_STEPS = 1000
MANY_VERSIONS = 10**6


class Precision(Enum):
    """What a row computes in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FOUR_BIT = "4-bit"


@dataclass(frozen=True)
class RowName:
    """One way to train: `run` is full or qlora, `attention` as transformers names its kernels."""

    run: str
    attention: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.run} {self.attention} {self.precision.value}"


@dataclass(frozen=True)
class Row:
    """What one way to train computes.

    `loss` and `gradient_norm`: one figure a step. `tensors`: of step 0, the norm of each module's
    output and of each gradient, in the order in which they are computed. `weights`: a sha256 over
    the final weights. `spread`: the largest relative difference between two runs.
    """

    loss: tuple[float, ...]
    gradient_norm: tuple[float, ...]
    tensors: Mapping[str, float]
    weights: str
    spread: float = 0.0

    def document(self) -> dict[str, Any]:
        """Its JSON."""
        return {
            "loss": list(self.loss),
            "gradient_norm": list(self.gradient_norm),
            "tensors": dict(self.tensors),
            "weights": self.weights,
            "spread": self.spread,
        }


@dataclass(frozen=True)
class Task:
    """What was computed: certificates of unlike tasks are not compared."""

    version: int
    steps: int

    def __str__(self) -> str:
        return f"task {self.version} with {self.steps} steps"


@dataclass(frozen=True)
class Certificate:
    """What a machine computes.

    `made_with`: what the figures depend on. `left_out`: row -> reason.
    """

    task: Task
    made: str
    environment: str
    backend: BackendName
    fingerprint: str
    device: str
    made_with: Mapping[str, str]
    left_out: Mapping[str, str]
    rows: Mapping[RowName, Row]

    @property
    def weights(self) -> str:
        """The digests of all rows: equal where all that was computed is."""
        return "".join(row.weights for row in self.rows.values())


def is_certificate(fields: Fields) -> bool:
    """Whether a document is a certificate, rather than a session manifest."""
    return fields.has("task")


def certificate_from(name: str, fields: Fields) -> Certificate:
    """A certificate from the JSON of a document of this name. Raises DocumentError."""
    return parse_document(
        name,
        "certificate",
        "--certificate",
        fields,
        lambda f: _parse_certificate(name, f),
    )


def certificate_text(certificate: Certificate) -> str:
    """The file: JSON with a line for each row."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "task": {"version": certificate.task.version, "steps": certificate.task.steps},
        "made": certificate.made,
        "environment": certificate.environment,
        "backend": certificate.backend,
        "fingerprint": certificate.fingerprint,
        "device": certificate.device,
        "made_with": dict(certificate.made_with),
        "left_out": dict(certificate.left_out),
    }
    lines = []
    for name, row in certificate.rows.items():
        lines.append(f"  {json.dumps(str(name))}: {json.dumps(row.document())}")
    opened = json.dumps(head, indent=1).removesuffix("\n}")
    rows = ",\n".join(lines)
    return f'{opened},\n "rows": {{\n{rows}\n }}\n}}\n'


def parse_row_name(text: str) -> RowName:
    """A row's name such as "full sdpa bf16". Raises ShapeError."""
    words = text.split(" ")
    if len(words) == 3:
        for precision in Precision:
            if precision.value == words[2]:
                return RowName(words[0], words[1], precision)
    raise ShapeError(f"`{printable(text)}` is not the name of a row")


def _parse_certificate(name: str, fields: Fields) -> Certificate:
    version = fields.whole("schema_version", 0, MANY_VERSIONS)
    if version != SCHEMA_VERSION:
        raise DocumentError(
            f"{name}: is of schema version {version}, this reads {SCHEMA_VERSION}; compare it with "
            "the clone that made it"
        )
    task = fields.object("task")
    steps = task.whole("steps", 1, MOST_STEPS)
    rows = {}
    found = fields.object("rows")
    for text in found.values:
        rows[parse_row_name(text)] = _parse_row(found.object(text), steps)
    if not rows:
        raise ShapeError("it has no row")
    return Certificate(
        task=Task(version=task.whole("version", 0, MANY_VERSIONS), steps=steps),
        made=fields.text("made"),
        environment=fields.text("environment"),
        backend=BackendName(fields.choice("backend", tuple(BackendName))),
        fingerprint=fields.text("fingerprint"),
        device=fields.choice("device", ("cpu", "cuda")),
        made_with=fields.texts("made_with"),
        left_out=fields.texts("left_out"),
        rows=rows,
    )


def _parse_row(fields: Fields, steps: int) -> Row:
    found = fields.object("tensors")
    tensors = {}
    for name in found.values:
        tensors[name] = found.number(name)
    row = Row(
        loss=fields.numbers("loss"),
        gradient_norm=fields.numbers("gradient_norm"),
        tensors=tensors,
        weights=fields.text("weights"),
        spread=fields.number("spread"),
    )
    if len(row.loss) != steps or len(row.gradient_norm) != steps:
        raise ShapeError(
            f"`{fields.place}` does not have a loss and a gradient norm for each step"
        )
    if not row.tensors or not row.weights:
        raise ShapeError(f"`{fields.place}` has no tensors or no weights")
    if row.spread < 0:
        raise ShapeError(f"`{fields.place}.spread` is negative")
    return row
