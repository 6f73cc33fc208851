"""The documents are true: versions are the locks', files exist, options exist, nothing is left out of the registry."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Iterator, List, Set

import pytest
from fixtures.commands import ROOT
from lockedenv.cli import lock, post_create, setup, variables_page
from lockedenv.cli import verify_options as command
from lockedenv.host.launchers import FAMILIES, NAMES
from lockedenv.lock import version_table
from lockedenv.lock.specification import read_specification
from lockedenv.spec.environment import list_environments
from lockedenv.spec.variables import rule_of
from lockedenv.verify.checklist import CHECKS

DOCS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/RESULTS.md",
]
TEXTS = {path.name: path.read_text() for path in DOCS}
WORKFLOWS = [
    path.read_text() for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
]


def tracked() -> Set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_documents_have_the_tables_that_lock_sh_writes() -> None:
    """If it fails, run scripts/lock.sh: it writes the tables between the marks in README.md and docs/TECHNICAL_SETUP.md."""
    assert version_table.find_stale_tables(list_environments()) == []


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_that_a_document_names_exists(name: str) -> None:
    text = TEXTS[name]
    paths = r"(?<![\w/~-])((?:scripts|tests|locks|docs|benchmarks|examples)/[\w./-]+\.(?:sh|py|txt|yml|md|json|svg|sbatch|yaml))"
    for path in re.findall(paths, text):
        assert (ROOT / path).exists(), path
    for target in re.findall(
        r"\]\((?!https:|\.\./\.\./actions/)([^)#]+)[^)]*\)", text
    ):  # a workflow's page is no file
        assert (DOCS[list(TEXTS).index(name)].parent / target).exists(), target
    for target, anchor in re.findall(r"\]\((?!https:)([^)#]*)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.+)", TEXTS[Path(target).name or name], re.M)
        assert anchor in {
            re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
            for heading in headings
        }, anchor
    for names in re.findall(r"--(?:only|skip) ([\w,-]+)", text):
        assert set(names.split(",")) <= {check.name for check in CHECKS}, names


PARSERS = {
    "setup_runpod_environment.sh": setup.parser,
    "verify_environment.py": command.parser,
    "post_create.sh": post_create.parser,
    "lock.sh": lock.parser,
}


def commands(text: str) -> Iterator[List[str]]:
    """The words of every command of ours: in code spans, in fenced blocks, in a workflow."""
    joined = re.sub(r"\\\n\s*|>-\n\s*", " ", text)
    fences = re.findall(r"```(?:bash|yaml)\n(.*?)```", joined, re.S)
    spans = re.findall(
        r"`((?:python |micromamba )?[^` ]*(?:scripts|tests)/[^`\n]+|micromamba [^`\n]+)`",
        re.sub(r"```.*?```", "", joined, flags=re.S),
    )
    for line in "\n".join(
        fences + spans if "```" in text or spans else [joined]
    ).splitlines():
        for match in re.finditer(
            r"(?:scripts/|tests/(?=run))(\w+\.sh|verify_environment\.py)(?=$|[ '])([^'|&;)#]*)",
            line,
        ):
            words = shlex.split(match[2].replace("...", ""), comments=True)
            yield [match[1], *("conda" if w == "$BACKEND" else w for w in words)]


def test_every_command_of_the_documents_and_workflows_is_one_that_the_scripts_take() -> (
    None
):
    found = [
        words for text in [*TEXTS.values(), *WORKFLOWS] for words in commands(text)
    ]
    assert {words[0] for words in found} >= {*PARSERS, "run.sh"}
    assert len(found) > 60
    for script, *words in found:
        if script in PARSERS:
            PARSERS[script]().parse_args(
                words
            )  # exits, and prints why, if it does not take them
        else:
            others = [
                word
                for word in words
                if word not in ("--long", "--lint", "--fast", "--no-skips")
            ]
            assert script == "run.sh", words
            assert all((ROOT / word).exists() for word in others), words


@pytest.mark.parametrize("name", TEXTS)
def test_every_block_of_bash_is_bash(name: str) -> None:
    for block in re.findall(r"```bash\n(.*?)```", TEXTS[name], re.S):
        block = re.sub(r"<[\w ]+>", "PLACEHOLDER", block)
        done = subprocess.run(
            ["bash", "-n"], input=block, stderr=subprocess.PIPE, text=True
        )
        assert done.returncode == 0, done.stderr + block


def test_every_variable_that_the_scripts_read_is_in_the_table() -> None:
    read: Set[str] = set()
    for path in (ROOT / "scripts").rglob("*.py"):
        read.update(
            re.findall(r'environ(?:\.get\(|\[)"([A-Z_0-9]+)"', path.read_text())
        )
        read.update(re.findall(r'"((?:UV|PIP)_[A-Z_]*INDEX[A-Z_]*)"', path.read_text()))
    table = TEXTS["TECHNICAL_SETUP.md"].split("## Environment variables")[1]
    missing = []
    for name in sorted(read):
        if (
            f"`{name}`" not in table
            and rule_of(name) is None
            and not is_of_a_launcher(name)
        ):
            missing.append(name)
    assert len(read) > 20
    assert missing == []


def is_of_a_launcher(name: str) -> bool:
    return name.startswith(FAMILIES) or name in NAMES


def test_every_pin_has_its_reason_and_link_in_the_technical_setup() -> None:
    rows = re.findall(
        r"^\| (`.*?) \| (.*) \|$",
        TEXTS["TECHNICAL_SETUP.md"].split("## Backends")[0],
        re.M,
    )
    named = {name for pins, _ in rows for name in re.findall(r"`([a-z-]+)", pins)}
    asked = read_specification(ROOT / "environment.yml")
    pinned = {
        name
        for name, spec in {**asked.conda, **asked.pip}.items()
        if re.search(r"(?<!>)=|<", spec)
    }
    assert sorted(pinned - named) == []
    assert [pins for pins, reason in rows if "](https://" not in reason] == []


def test_every_check_has_a_name_a_proof_and_a_remedy() -> None:
    for check in CHECKS:
        assert check.proves
        assert check.remedy
        assert re.fullmatch("[a-z0-9-]+", check.name)


def test_the_page_of_variables_is_the_table_of_the_code() -> None:
    """If it fails: PYTHONPATH=scripts python3 -m lockedenv.cli.variables_page > docs/VARIABLES.md."""
    assert TEXTS["VARIABLES.md"] == variables_page.make_page()


LOCKEDENV = ROOT / "scripts/lockedenv"


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "IMPLEMENTATION_REGISTRY.md"])
def test_every_module_and_function_that_a_page_names_exists(name: str) -> None:
    """If it fails, a module or function was renamed: change its name in that page too."""
    spans = re.findall(r"`([a-z_]+(?:/[\w.]*)*(?::\w+)?)`", TEXTS[name])
    modules = [span for span in spans if "/" in span or ".py" in span]
    assert len(modules) > 20
    for span in modules:
        path, _, function = span.partition(":")
        place = LOCKEDENV / path
        if not place.exists():
            place = ROOT / path
        assert place.exists(), span
        if function:
            assert re.search(
                rf"^(def|class) {function}\b", place.read_text(), re.M
            ), span


def test_every_room_is_on_the_page_of_the_architecture() -> None:
    for folder in LOCKEDENV.iterdir():
        if (folder / "__init__.py").exists():
            assert f"`{folder.name}/`" in TEXTS["ARCHITECTURE.md"], folder.name


def test_no_path_of_a_machine_is_committed() -> None:
    for name in tracked():
        path = Path(ROOT, name)
        if path.suffix in (
            ".py",
            ".sh",
            ".md",
            ".yml",
            ".txt",
            ".json",
            ".toml",
            ".svg",
        ):
            assert not re.search(r"(^|[^\w.])/(work|farm)/", path.read_text()), name
