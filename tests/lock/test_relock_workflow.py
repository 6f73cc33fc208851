"""The steps of .github/workflows/relock.yml, run in the shell that GitHub gives them, over stand-ins for what needs a network."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.audit_reports import write_reports
from fixtures.commands import ROOT, clean_environ, sh

WORKFLOW: dict[str, Any] = yaml.safe_load(
    (ROOT / ".github/workflows/relock.yml").read_text()
)
REPORTS = Path(__file__).with_name("pip_audit")
# https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#jobsjob_idstepsshell
SHELLS = {"": "bash -e {0}", "bash": "bash --noprofile --norc -eo pipefail {0}"}

SET_UP = """\
#!/bin/sh
echo "$@" >asked.txt
echo "27 passed, 1 failed in 3.0 s"
exit $(cat status.txt)
"""
CONDA = """\
#!/bin/sh
# conda run --no-capture-output -n ENVIRONMENT COMMAND...
[ "$1 $2 $3 $4" = "run --no-capture-output -n maximalcai-dev" ] || exit 9
shift 4
exec "$@"
"""
UV = """\
#!/bin/bash
# uv tool run pip-audit==VERSION ... --output FILE --requirement LOCK
[[ "$1 $2" == "tool run" && $3 == pip-audit==* ]] || exit 9
while (($#)); do
  case $1 in --output) output=$2 ;; --requirement) lock=$2 ;; esac
  shift
done
case $lock in environments/*) name=current ;; *) name=default ;; esac
if [[ -f $REPORTS/audit-$name.json ]]; then cp "$REPORTS/audit-$name.json" "$output"; fi
exit 1
"""


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = WORKFLOW["jobs"][job]["steps"]
    return found


def find_step(job: str, title: str) -> dict[str, Any]:
    [found] = [
        step for step in steps(job) if step.get("name", step.get("run")) == title
    ]
    return found


def shell_of(job: str, step: dict[str, Any]) -> str:
    """The command of GitHub's runner for the script of a step."""
    for place in (step, WORKFLOW["jobs"][job], WORKFLOW):
        shell = place.get("shell") or place.get("defaults", {}).get("run", {}).get(
            "shell"
        )
        if shell:
            return SHELLS.get(shell, shell)
    return SHELLS[""]


def run_step(
    job: str, title: str, folder: Path, **environ: str
) -> "subprocess.CompletedProcess[str]":
    """Runs the script of a step in a folder."""
    step = find_step(job, title)
    script = folder / "step.sh"
    script.write_text(step["run"])
    command = shlex.split(shell_of(job, step).format(script))
    return sh(*command, check=False, cwd=folder, env=clean_environ(**environ))


def put_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize("status", [0, 1])
def test_a_set_up_that_fails_is_red_and_a_row_of_the_text(
    status: int, tmp_path: Path
) -> None:
    """`set-up | tee` has the status of tee where the shell has no pipefail."""
    put_program(tmp_path / "scripts/setup_runpod_environment.sh", SET_UP)
    (tmp_path / "status.txt").write_text(str(status))
    where = {"ENVIRONMENT": "current", "BACKEND": "pip", "HOME": str(tmp_path)}
    title = "The one command, with every check that runs without a GPU"
    done = run_step("verify", title, tmp_path, **where)
    assert done.returncode == status, done.stdout
    asked = (tmp_path / "asked.txt").read_text()
    assert (
        asked
        == f"--environment current --backend pip --prefix {tmp_path}/environment\n"
    )
    row = (tmp_path / "verdict/current-pip.md").read_text()
    result = "27 passed, 1 failed in 3.0 s"
    if status:
        result = f"**failed** (exit status 1) {result}"
    assert row == f"| current | pip | {result} |\n"


@pytest.mark.parametrize(
    "by_hand, without, red",
    [
        (["default"], "", False),
        (["default", "new"], "", True),
        (["default"], "current", True),
    ],
)
def test_a_vulnerability_that_the_list_lacks_is_in_the_patch_and_red(
    by_hand: list[str], without: str, red: bool, tmp_path: Path
) -> None:
    """And where pip-audit broke off for an environment, it is red, and the list stays."""
    clone = tmp_path / "clone"
    sh("git", "clone", "--quiet", ROOT, clone)
    for name in sh("git", "ls-files", "--modified", cwd=ROOT).stdout.split():
        shutil.copy2(ROOT / name, clone / name)
    programs = tmp_path / "programs"
    put_program(programs / "conda", CONDA)
    put_program(programs / "uv", UV)
    temp = tmp_path / "temp"
    temp.mkdir()
    write_reports(tmp_path, *(REPORTS / f"by-hand-{name}.json" for name in by_hand))
    (tmp_path / f"audit-{without}.json").unlink(missing_ok=True)
    path = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
    (tmp_path / ".bash_profile").write_text(
        f"export PATH={path}\n"
    )  # it is a login shell
    environ = {
        "HOME": str(tmp_path),
        "RUNNER_TEMP": str(temp),
        "REPORTS": str(tmp_path),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    done = run_step(
        "lock", "Known vulnerabilities of what is locked now", clone, **environ
    )
    assert done.returncode == 0, done.stdout
    assert (temp / "relock/audit-status").read_text() == f"{int(red)}\n"
    table = "| id | package | severity | fixed in | what to do |"
    assert (table in (temp / "relock/audit.md").read_text()) == (not without)
    assert (temp / "relock/changes.md").exists()
    last = find_step_that_runs("nothing-unknown", "audit-status")
    results = {"LOCKED": "success", "VERIFIED": "success"}
    assert run_script(last, temp, **results).returncode == int(red)
    assert run_script(last, temp, **{**results, "VERIFIED": "failure"}).returncode == 1
    assert run_script(last, temp, **{**results, "LOCKED": "failure"}).returncode == 1
    listed = json.loads(
        (clone / "scripts/lockedenv/spec/vulnerabilities.json").read_text()
    )
    ids = [entry["id"] for entry in listed]
    assert "CVE-2025-32434" in ids
    assert ("CVE-2027-1000" in ids) == ("new" in by_hand)


def find_step_that_runs(job: str, words: str) -> str:
    [script] = [step["run"] for step in steps(job) if words in step.get("run", "")]
    return str(script)


def run_script(
    script: str, folder: Path, **environ: str
) -> "subprocess.CompletedProcess[str]":
    path = folder / "last.sh"
    path.write_text(script)
    command = SHELLS["bash"].format(path).split()
    return sh(*command, check=False, cwd=folder, env=clean_environ(**environ))


def test_the_pull_request_has_the_patch_the_certificates_and_the_text(
    tmp_path: Path,
) -> None:
    clone = tmp_path / "clone"
    sh("git", "clone", "--quiet", ROOT, clone)
    artifacts = tmp_path / "artifacts"
    (artifacts / "relock").mkdir(parents=True)
    (artifacts / "verdict-current-pip").mkdir()
    for name, text in (("changes.md", "x" * 70_000), ("audit.md", "None.\n")):
        (artifacts / "relock" / name).write_text(text)
    (artifacts / "verdict-current-pip/current-cpu.json").write_text("{}")
    lock = clone / "requirements.txt"
    lock.write_text(lock.read_text() + "# more\n")
    (artifacts / "relock/change.patch").write_text(
        sh("git", "diff", "--binary", cwd=clone).stdout
    )
    sh("git", "checkout", "--quiet", ".", cwd=clone)
    programs = tmp_path / "programs"
    put_program(programs / "gh", '#!/bin/sh\necho "gh $*"\n')
    put_program(
        programs / "git",
        '#!/bin/sh\ncase $1 in push) echo "git $*" ;; *) exec /usr/bin/git "$@" ;; esac\n',
    )
    environ = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "RUNNER_TEMP": str(tmp_path),
        "NEWEST": "2026-11-24",
        "GH_TOKEN": "x",
        "GITHUB_REPOSITORY": "me/mine",
    }
    done = run_step("pull-request", "Open the pull request", clone, **environ)
    assert done.returncode == 0, done.stdout
    changed = sh(
        "git", "show", "--name-only", "--format=%s", "relock", cwd=clone
    ).stdout.split("\n")
    assert changed[0] == "Lock anew"
    assert {"certificates/current-cpu.json", "requirements.txt"} == {*changed[1:]} - {
        ""
    }
    written = tmp_path / "text.md"
    assert len(written.read_bytes()) == 65_000, "GitHub takes 65,536"
    assert "gh pr create --head relock --title Lock anew" in done.stdout
    for workflow in ("tests.yml", "channels.yml"):
        assert f"gh workflow run {workflow} --ref relock" in done.stdout
        started = yaml.safe_load((ROOT / ".github/workflows" / workflow).read_text())
        assert "workflow_dispatch" in started[True], "YAML reads the key `on` as yes"


def test_what_the_steps_run_exists_with_its_options() -> None:
    scripts = [
        step["run"] for job in WORKFLOW["jobs"] for step in steps(job) if "run" in step
    ]
    commands = re.findall(
        r"(?<![\w/])((?:scripts|\.github)/[\w./]+\.(?:sh|py))([^\n|>]*)",
        "\n".join(scripts),
    )
    assert len(commands) >= 6
    for program, arguments in commands:
        path = ROOT / program
        assert path.is_file(), program
        options = re.findall(r"(?<=\s)--[a-z-]+", arguments)
        shown = sh(
            path, "--help-all" if "setup" in program else "--help", env=clean_environ()
        ).stdout
        for option in options:
            assert option in shown, (program, option)
