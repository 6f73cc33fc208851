"""scripts/lock.sh: environment.yml to the locks, whether they are current, and what changed.

Runs in conda-lock's interpreter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from lockedenv.cli.parser import Parser
from lockedenv.cli.script import ShowVersion, run_script
from lockedenv.errors import UsageError
from lockedenv.lock import audit, version_table
from lockedenv.lock.check import find_stale
from lockedenv.lock.diff import changes_text, find_changes
from lockedenv.lock.locking import Locked, lock_environment
from lockedenv.lock.specification import Specification, read_specification
from lockedenv.lock.tools import require_tools
from lockedenv.spec import environment
from lockedenv.spec.commands import LOCK, lock_command
from lockedenv.spec.environment import Environment
from lockedenv.spec.specification import SPEC
from lockedenv.spec.suggest import did_you_mean


@dataclass(frozen=True)
class LockRequest:
    """What the command line asks for. `environment` is empty for all of the repository's."""

    environment: str
    update: list[str]
    check: bool
    diff: str
    audit: list[Path]


def parser() -> Parser:
    p = Parser(prog="scripts/lock.sh", allow_abbrev=False)
    p.add_argument("--environment", metavar="NAME|DIR", default="")
    p.add_argument("--version", action=ShowVersion, nargs=0)
    group = p.add_mutually_exclusive_group()
    group.add_argument("--update", metavar="NAME", action="append", default=[])
    group.add_argument("--check", action="store_true")
    group.add_argument(
        "--diff", metavar="REVISION", nargs="?", const="HEAD", default=""
    )
    group.add_argument("--audit", metavar="FILE", nargs="+", type=Path, default=[])
    return p


def read_request(words: list[str]) -> LockRequest:
    """The request that a command line makes. Exits with status 2 for wrong usage."""
    args = parser().parse_args(words)
    return LockRequest(args.environment, args.update, args.check, args.diff, args.audit)


def find_environments(request: LockRequest) -> list[Environment]:
    if request.environment:
        return [environment.find(request.environment)]
    return environment.list_environments()


def check(environments: list[Environment]) -> int:
    """Prints why the locks are not current; the exit status is 1 then."""
    reasons = []
    for env in environments:
        reasons += find_stale(env)
    if set(environment.list_environments()) <= set(environments) and not reasons:
        for document in version_table.find_stale_tables(
            environment.list_environments()
        ):
            reasons.append(
                f"{document}: its table of versions is not that of the locks"
            )
    if not reasons:
        print("the locks are current")
        return 0
    if len(environments) == 1:
        print("\n".join([*reasons, f"run {lock_command(environments[0].argument)}"]))
    else:
        print("\n".join([*reasons, f"run {LOCK}"]))
    return 1


def lock(environments: list[Environment], update: list[str]) -> int:
    """Locks the environments and prints what was locked. Raises Stop."""
    require_tools()
    asked = {env: read_specification(env.folder / SPEC) for env in environments}
    refuse_unknown(update, [*asked.values()])
    for env in environments:
        names = []
        for name in update:
            if name in asked[env].names:
                names.append(name)
        if names or not update:
            print(locked_text(lock_environment(env, names)))
    if set(environments) & set(environment.list_environments()):
        version_table.write_tables(environment.list_environments())
    return 0


def audit_locks(reports: list[Path]) -> int:
    """Writes spec/vulnerabilities.json and the tables that count it from pip-audit's reports.

    The exit status is 1 if the file lacked any of them.
    """
    environments = environment.list_environments()
    read = [audit.read_report(path) for path in reports]
    audit.require_complete(read, environments)
    result = audit.audit(reports)
    audit.write_entries(result.entries)
    version_table.write_tables(environments)  # they count the vulnerabilities
    print(audit.audit_text(result))
    return 1 if result.new else 0


def refuse_unknown(update: list[str], asked: list[Specification]) -> None:
    """Raises UsageError for a name of --update that no environment.yml asks for."""
    known: set[str] = set()
    for specification in asked:
        known |= specification.names
    for name in update:
        if name not in known:
            raise UsageError(
                f"--update {name}: no {SPEC} asks for it; asked for are: {', '.join(sorted(known))}"
                f"{did_you_mean(name, known)}"
            )


def locked_text(locked: Locked) -> str:
    return (
        f"{locked.environment}: locked {locked.conda} conda and {locked.pip} pip packages, "
        f"{locked.both} wheels in all"
    )


def work() -> int:
    request = read_request(sys.argv[1:])
    environments = find_environments(request)
    if request.check:
        return check(environments)
    if request.diff:
        print(changes_text(find_changes(environments, request.diff)))
        return 0
    if request.audit:
        return audit_locks(request.audit)
    return lock(environments, request.update)


if __name__ == "__main__":
    sys.exit(run_script("lock.sh", work))
