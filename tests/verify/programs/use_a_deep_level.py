"""What the code does with a level that includes the full one; prints it as JSON.

It runs with a copy of the code whose Level has DEEP after FULL. Its argument is an empty folder.
"""

import io
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

from lockedenv.cli import verify_options
from lockedenv.install import facts
from lockedenv.prefix.mark import (
    MadeBy,
    Mark,
    RecordedVerdict,
    State,
    read_mark,
    write_mark,
)
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level
from lockedenv.verify import checklist
from lockedenv.verify.checks import check, check_each_gpu, child_check, passed
from lockedenv.verify.report import CheckReport, Scope

GOOD = RecordedVerdict(True)
BAD = RecordedVerdict(False)
CHILD = child_check("deep-child", "", level=Level.DEEP)(lambda device: passed("right"))
EACH = check_each_gpu("deep-each", "", level=Level.DEEP)(lambda device: passed("right"))
HERE = check("deep-here", "", level=Level.DEEP)(lambda context: passed("right"))


def describe_selection() -> dict[str, list[str]]:
    """The names of the checks of each level."""
    rows = {}
    for level in Level:
        rows[level.value] = [row.name for row in checklist.select_checks(level, [], [])]
    return rows


def describe_report(level: Level) -> list[str]:
    """The lines of a report in which the checks of the files' group passed."""
    out = io.StringIO()
    report = CheckReport(out, grouped=True)
    names = ("present", "files", "deep-child")
    scope = Scope(level, names, True)
    context = types.SimpleNamespace(
        installed=types.SimpleNamespace(prefix=Path("/env"), backend=BackendName.PIP),
        environment=types.SimpleNamespace(name="default"),
        device="cpu",
    )
    report.begin(context, scope)
    results = [replace(passed(f"{name} is right"), check=name) for name in names]
    for result in results:
        report.result(result)
    report.summary(results, 1.0, scope=scope)
    return out.getvalue().splitlines()


def is_fully_verified(folder: Path, *verdicts: tuple[Level, RecordedVerdict]) -> bool:
    """What the set-up finds of an environment with these verdicts, in the order of time."""
    folder.mkdir()
    mark = Mark(MadeBy.SETUP, State.INSTALLED, str(folder))
    for level, verdict in verdicts:
        mark = mark.with_verdict(level, verdict)
    write_mark(folder, mark)
    assert read_mark(folder) == mark
    request = types.SimpleNamespace(
        prefix=folder, environment=types.SimpleNamespace(digest=lambda backend: "")
    )
    return facts.read_prefix_facts(request, Path("/clone")).fully_verified


folder = Path(sys.argv[1])
group = checklist.find_check("files").group
for new in (CHILD, EACH, HERE):
    checklist.CHECKS.append(replace(new, group=group))
answer = {
    "asked for": verify_options.parser().parse_args(["--level", "deep"]).level,
    "usual": verify_options.parser().parse_args([]).level,
    "selected": describe_selection(),
    "full report": describe_report(Level.FULL),
    "deep report": describe_report(Level.DEEP),
    "deep passed": is_fully_verified(
        folder / "a", (Level.FULL, GOOD), (Level.DEEP, GOOD)
    ),
    "deep alone passed": is_fully_verified(folder / "b", (Level.DEEP, GOOD)),
    "deep failed": is_fully_verified(folder / "c", (Level.DEEP, BAD)),
    "full failed after deep": is_fully_verified(
        folder / "d", (Level.DEEP, GOOD), (Level.FULL, BAD)
    ),
    "quick passed": is_fully_verified(folder / "e", (Level.QUICK, GOOD)),
}
print(json.dumps(answer))
