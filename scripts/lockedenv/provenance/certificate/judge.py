"""Do two certificates say that their machines compute the same?

What one of the two does not have was not compared: then they are not said to compute the same. How
far apart two figures may be is decided by the tables here; a file can only ask for less.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Sequence

from lockedenv.provenance.certificate.document import (
    Certificate,
    Precision,
    Row,
    RowName,
)
from lockedenv.provenance.documents import DocumentError

# What machines or libraries that sum in another order may differ by: 64 roundings in fp32 (2**-24
# each), 4 in bf16 (2**-9), in which 4-bit weights are multiplied too. Measured between the kernels
# of torch, oneDNN and MKL for SSE, AVX2 and AVX-512, and between both released environments: at
# most 1.8e-7, 1.0e-3 and 5.7e-4. An error of a kernel under 1 % is found in fp32 only.
TOLERANCE = {
    Precision.FP32: 2.0**-18,
    Precision.BF16: 2.0**-7,
    Precision.FOUR_BIT: 2.0**-7,
}
# Allowed on one kind of machine: so many times the spread of two runs, which is measured, and never
# more than TOLERANCE. Another two runs are further apart in 6 of 100 cases (2/pi * atan(1/10), for
# normal differences). Where the two runs were equal, as on a CPU, nothing is allowed.
SLACK = 10.0
# A machine whose own two runs are further apart than so many tolerances is no measure of anything.
STEADY = 4.0
# The rounding of fp32: the deviation of weights that differ where nothing else does.
ROUNDING = 2.0**-24

# What the figures of a GPU do not depend on.
OF_THE_HOST = ("CPU", "CPU features", "torch's CPU kernels", "BLAS", "driver")
# What two certificates may differ in without being of unlike machines or versions: their versions
# are in made_with, one by one.
OF_THE_WHOLE = ("environment", "fingerprint")


class Quantity(Enum):
    """What a figure is of."""

    TENSOR = "tensor"
    LOSS = "the loss"
    GRADIENT_NORM = "the gradient norm"
    WEIGHTS = "the final weights"


@dataclass(frozen=True)
class Deviation:
    """A figure that differs between two rows. `size` is relative; `name` is a tensor's."""

    quantity: Quantity
    size: float
    step: int = 0
    name: str = ""

    @property
    def is_kept_by_other_machines(self) -> bool:
        """Whether another machine's order of summing leaves it within the tolerance.

        After the first step the gradient's norm, and then the weights, soon tell more of the path
        that rounding takes than of a kernel.
        """
        if self.quantity is Quantity.WEIGHTS:
            return False
        return self.quantity is not Quantity.GRADIENT_NORM or self.step == 0


class RowVerdict(Enum):
    """What is found of a row."""

    EQUAL = "equal"
    WITHIN = "within"
    DIFFERENT = "different"
    UNSTEADY = "unsteady"  # one machine does not agree with itself
    NOT_COMPARED = "not compared"


@dataclass(frozen=True)
class RowJudgement:
    """What is found of a row.

    `first`: the first figure that differs, or of a DIFFERENT row, the first beyond what is allowed.
    `largest`: the largest difference that was judged, or of an UNSTEADY row, the spread. `missing`:
    the tensors that one of the two does not have. `absent_from` and `reason`, of a row that was not
    compared: the certificate without it, by name, and why it has none.
    """

    name: RowName
    verdict: RowVerdict
    allowed: float = 0.0
    largest: float = 0.0
    first: Deviation | None = None
    missing: tuple[str, ...] = ()
    absent_from: str = ""
    reason: str = ""


class CertificateOutcome(Enum):
    """What is found of two certificates; the first that fits."""

    DIFFERENT = "different"
    INCOMPLETE = "incomplete"
    WITHIN = "within"
    EQUAL = "equal"


@dataclass(frozen=True)
class FactDifference:
    """What the figures depend on, where it differs; "-" where a certificate does not say."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class Judgement:
    """What is found of two certificates. `alike`: one kind of machine, and the same versions."""

    names: tuple[str, str]
    alike: bool
    facts: tuple[FactDifference, ...]
    rows: tuple[RowJudgement, ...]

    @property
    def not_compared(self) -> tuple[RowJudgement, ...]:
        """The rows that only one of the two has."""
        return tuple(row for row in self.rows if row.verdict is RowVerdict.NOT_COMPARED)

    @property
    def missing_tensors(self) -> int:
        """How many tensors of the other rows only one of the two has."""
        return sum(len(row.missing) for row in self.rows)

    @property
    def verdicts(self) -> set[RowVerdict]:
        """What is found of the rows that both have."""
        return {row.verdict for row in self.rows} - {RowVerdict.NOT_COMPARED}

    @property
    def outcome(self) -> CertificateOutcome:
        """What is found of both."""
        if self.verdicts & {RowVerdict.DIFFERENT, RowVerdict.UNSTEADY}:
            return CertificateOutcome.DIFFERENT
        if self.not_compared or self.missing_tensors:
            return CertificateOutcome.INCOMPLETE
        if RowVerdict.WITHIN in self.verdicts:
            return CertificateOutcome.WITHIN
        return CertificateOutcome.EQUAL

    @property
    def computes_the_same(self) -> bool:
        """Whether all was compared, and nothing is further apart than allowed."""
        return self.outcome in (CertificateOutcome.WITHIN, CertificateOutcome.EQUAL)


def compare_certificates(
    first: Certificate, second: Certificate, names: tuple[str, str]
) -> Judgement:
    """What is found of two certificates. Raises DocumentError if they are not of one task."""
    common = [name for name in first.rows if name in second.rows]
    if first.task != second.task:
        raise _not_comparable(names, str(first.task), str(second.task))
    if not common:
        raise _not_comparable(names, _list_rows(first), _list_rows(second))
    facts = find_fact_differences(first, second)
    alike = True
    for fact in facts:
        if _tells_machines_apart(fact, first, second):
            alike = False
    rows = []
    for name in common:
        rows.append(judge_row(name, first.rows[name], second.rows[name], alike))
    for name in first.rows:
        if name not in second.rows:
            rows.append(_judge_absent(name, second, names[1]))
    for name in second.rows:
        if name not in first.rows:
            rows.append(_judge_absent(name, first, names[0]))
    return Judgement(names, alike, tuple(facts), tuple(rows))


def find_fact_differences(
    first: Certificate, second: Certificate
) -> list[FactDifference]:
    """What the figures depend on, where it differs."""
    first_facts = facts_of(first)
    second_facts = facts_of(second)
    found = []
    for name in {**first_facts, **second_facts}:
        one = first_facts.get(name, "-")
        other = second_facts.get(name, "-")
        if one != other:
            found.append(FactDifference(name, one, other))
    return found


def facts_of(certificate: Certificate) -> dict[str, str]:
    """All that the figures of a certificate depend on, by name."""
    return {
        "environment": certificate.environment,
        "fingerprint": certificate.fingerprint[:12],
        "backend": certificate.backend,
        "device": certificate.device,
        **certificate.made_with,
    }


def judge_row(name: RowName, first: Row, second: Row, alike: bool) -> RowJudgement:
    """What is found of a row that both certificates have."""
    missing = find_missing(first, second)
    spread = max(first.spread, second.spread)
    if not is_steady(name.precision, spread):
        return RowJudgement(name, RowVerdict.UNSTEADY, largest=spread, missing=missing)
    deviations = find_deviations(first, second)
    if not deviations:
        return RowJudgement(name, RowVerdict.EQUAL, missing=missing)
    allowed = allowed_difference(name.precision, spread, alike)
    largest = 0.0
    for deviation in deviations:
        if not alike and not deviation.is_kept_by_other_machines:
            continue
        if not deviation.size <= allowed:  # NaN is above any bound
            return RowJudgement(
                name, RowVerdict.DIFFERENT, allowed, deviation.size, deviation, missing
            )
        largest = max(largest, deviation.size)
    return RowJudgement(
        name, RowVerdict.WITHIN, allowed, largest, deviations[0], missing
    )


def allowed_difference(precision: Precision, spread: float, alike: bool) -> float:
    """How far apart two figures of a row may be.

    `spread` is what the certificates say of themselves.
    """
    if not alike:
        return TOLERANCE[precision]
    return min(SLACK * spread, TOLERANCE[precision])


def is_steady(precision: Precision, spread: float) -> bool:
    """Whether two runs of one machine are near enough to each other to be a measure."""
    return spread <= STEADY * TOLERANCE[precision]


def find_missing(first: Row, second: Row) -> tuple[str, ...]:
    """The tensors that one of two rows does not have, in the order in which they are computed."""
    names = []
    for name in {**first.tensors, **second.tensors}:
        if name not in first.tensors or name not in second.tensors:
            names.append(name)
    return tuple(names)


def find_deviations(first: Row, second: Row) -> list[Deviation]:
    """The figures that differ between two rows, in the order in which they are computed."""
    found = []
    for name, value in first.tensors.items():
        other = second.tensors.get(name, value)
        if value != other:
            size = relative_difference(value, other)
            found.append(Deviation(Quantity.TENSOR, size, 0, name))
    for step in range(min(len(first.loss), len(second.loss))):
        for quantity, value, other in (
            (Quantity.LOSS, first.loss[step], second.loss[step]),
            (
                Quantity.GRADIENT_NORM,
                first.gradient_norm[step],
                second.gradient_norm[step],
            ),
        ):
            if value != other:
                found.append(
                    Deviation(quantity, relative_difference(value, other), step)
                )
    if first.weights != second.weights:
        size = find_largest(found, ROUNDING)
        found.append(Deviation(Quantity.WEIGHTS, size, len(first.loss)))
    return found


def find_largest(deviations: Sequence[Deviation], default: float) -> float:
    """The size of the largest deviation; `default` where there is none."""
    return max((deviation.size for deviation in deviations), default=default)


def relative_difference(first: float, second: float) -> float:
    """The difference of two unlike figures over the larger one."""
    return abs(first - second) / max(abs(first), abs(second))


def _tells_machines_apart(
    fact: FactDifference, first: Certificate, second: Certificate
) -> bool:
    if fact.name in OF_THE_WHOLE:
        return False
    both_on_gpu = first.device == "cuda" and second.device == "cuda"
    return not (both_on_gpu and fact.name in OF_THE_HOST)


def _judge_absent(name: RowName, without: Certificate, where: str) -> RowJudgement:
    reason = without.left_out.get(str(name), "it has none")
    return RowJudgement(name, RowVerdict.NOT_COMPARED, absent_from=where, reason=reason)


def _list_rows(certificate: Certificate) -> str:
    return ", ".join(str(name) for name in certificate.rows)


def _not_comparable(names: tuple[str, str], first: str, second: str) -> DocumentError:
    return DocumentError(
        f"{names[0]} is of {first}, {names[1]} of {second}: make both again with one clone's "
        "--certificate FILE"
    )
