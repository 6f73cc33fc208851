"""The messages about certificates."""

from __future__ import annotations

from lockedenv.errors import printable
from lockedenv.provenance.certificate.document import Certificate, Precision
from lockedenv.provenance.certificate.judge import (
    SLACK,
    TOLERANCE,
    CertificateOutcome,
    Deviation,
    Judgement,
    Quantity,
    RowJudgement,
    RowVerdict,
)

WIDTH = 28  # of the column of names
SHOWN_TENSORS = 3
HEADLINES = {
    CertificateOutcome.DIFFERENT: "they do NOT compute the same",
    CertificateOutcome.WITHIN: "they compute the same within the tolerance",
    CertificateOutcome.EQUAL: "they compute the same, bit for bit",
}


def describe_judgement(judgement: Judgement) -> list[str]:
    """Lines: the headline, what the figures depend on where it differs, then each row."""
    lines = [f"{judgement.names[0]} and {judgement.names[1]}: {headline(judgement)}"]
    for fact in judgement.facts:
        lines.append(
            _column(fact.name, f"{printable(fact.first)}  ->  {printable(fact.second)}")
        )
    for row in judgement.rows:
        lines.append(_column(str(row.name), describe_row(row)))
    if judgement.verdicts - {RowVerdict.EQUAL}:
        lines.append(describe_allowed(judgement.alike))
    attentions = describe_attentions(judgement)
    if attentions:
        lines.append(attentions)
    return lines


def headline(judgement: Judgement) -> str:
    """The outcome, and how much was not compared."""
    if judgement.outcome is not CertificateOutcome.INCOMPLETE:
        text = HEADLINES[judgement.outcome]
        missing = describe_not_compared(judgement)
        if missing:
            text += f" ({missing} not compared)"
        return text
    how = "bit for bit"
    if RowVerdict.WITHIN in judgement.verdicts:
        how = "within the tolerance"
    missing = describe_not_compared(judgement)
    return f"NOT all was compared: {missing} only one of them has; what both have is the same {how}"


def describe_not_compared(judgement: Judgement) -> str:
    """How many rows and tensors only one of the two has; empty if none."""
    parts = []
    rows = len(judgement.not_compared)
    if rows:
        parts.append(count(rows, "row"))
    if judgement.missing_tensors:
        parts.append(count(judgement.missing_tensors, "tensor"))
    return " and ".join(parts)


def count(number: int, noun: str) -> str:
    """A number and its noun: 1 row, 2 rows."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}s"


def describe_row(row: RowJudgement) -> str:
    """What is found of one row."""
    if row.verdict is RowVerdict.NOT_COMPARED:
        return f"not compared: {printable(row.reason)} ({row.absent_from})"
    text = _describe_verdict(row)
    if row.missing:
        names = ", ".join(printable(name) for name in row.missing[:SHOWN_TENSORS])
        if len(row.missing) > SHOWN_TENSORS:
            names += f" and {len(row.missing) - SHOWN_TENSORS} more"
        text += f"; {count(len(row.missing), 'tensor')} not compared: {names}"
    return text


def describe_place(deviation: Deviation) -> str:
    """Where two rows begin to differ."""
    if deviation.quantity is Quantity.WEIGHTS:
        return "the final weights"
    if deviation.quantity is Quantity.TENSOR:
        return f"step {deviation.step}, {printable(deviation.name)}"
    return f"step {deviation.step}, {deviation.quantity.value}"


def describe_allowed(alike: bool) -> str:
    """By what rule two figures may differ."""
    if alike:
        return (
            f"allowed: {SLACK:.0f} times the spread of two runs, measured "
            "(the same kind of machine and versions), "
            f"and at most {_tolerances()}"
        )
    return "allowed: what another order of summing does (another machine or other versions)"


def describe_attentions(judgement: Judgement) -> str:
    """Which kernels of attention compute otherwise, where others do not;
    empty if that says nothing."""
    wrong = set()
    right = set()
    for row in judgement.rows:
        if row.verdict in (RowVerdict.DIFFERENT, RowVerdict.UNSTEADY):
            wrong.add(row.name.attention)
        elif row.verdict is not RowVerdict.NOT_COMPARED:
            right.add(row.name.attention)
    only_wrong = sorted(wrong - right)
    if not only_wrong or not right:
        return ""
    return f"what differs is {', '.join(only_wrong)}; {', '.join(sorted(right))} computes the same"


def summarize(certificate: Certificate) -> list[str]:
    """Lines: what was left out, and how many rows were computed how exactly."""
    lines = []
    for name, reason in certificate.left_out.items():
        lines.append(f"left out: {name} ({reason})")
    worst = max(certificate.rows, key=lambda name: certificate.rows[name].spread)
    spread = certificate.rows[worst].spread
    apart = "bit for bit equal"
    if spread:
        apart = f"apart by {spread:.1e} at most ({worst})"
    rows = count(len(certificate.rows), "row")
    lines.append(f"{rows} of {certificate.task.steps} steps; two runs: {apart}")
    return lines


def _describe_verdict(row: RowJudgement) -> str:
    if row.verdict is RowVerdict.EQUAL:
        return "bit for bit equal"
    if row.verdict is RowVerdict.UNSTEADY:
        return f"DIFFERENT from itself: two runs of one machine are apart by {row.largest:.1e}"
    assert row.first is not None
    place = describe_place(row.first)
    if row.verdict is RowVerdict.DIFFERENT:
        sizes = f"by {row.largest:.1e}, where {row.allowed:.1e} is allowed"
        return f"DIFFERENT from {place} on: {sizes}"
    return f"equal within {row.allowed:.1e}: apart by {row.largest:.1e} at most, from {place} on"


def _tolerances() -> str:
    parts = []
    for precision in Precision:
        parts.append(f"{TOLERANCE[precision]:.1e} in {precision.value}")
    return ", ".join(parts)


def _column(name: str, text: str) -> str:
    return f"  {printable(name):<{WIDTH}} {text}"
