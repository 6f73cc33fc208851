"""The documents are true: versions are the locks', files exist, options exist, nothing is left out of the registry."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest
from conftest import ROOT
from lockedenv.environment import ours
from lockedenv.install import post_create, setup
from lockedenv.lock import relock
from lockedenv.verify import command
from lockedenv.verify.checks import load

DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/RESULTS.md"]
TEXTS = {path.name: path.read_text() for path in DOCS}
WORKFLOWS = [path.read_text() for path in sorted((ROOT / ".github/workflows").glob("*.yml"))]


def tracked() -> Set[str]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_readmes_versions_are_the_locks() -> None:
    rows = re.findall(r"^\| ([a-z-]+) \| ([\d.a-z]+) \| ([\d.a-z]+) \|$", TEXTS["README.md"], re.M)
    assert len(rows) == 13
    for column, environment in enumerate(ours(), 1):
        versions = {pin.name: pin.version for pin in [*environment.wheels("pip"), *filter(None, [environment.flash_attn()])]}
        versions["python"] = environment.python
        assert [row for row in rows if versions.get(row[0], "none") != row[column]] == [], environment.name
        counts = (len(environment.conda()), len(environment.wheels("conda")), len(environment.wheels("pip")))
        assert "{} conda archives and {} wheels, or {} wheels".format(*counts) in TEXTS["README.md"]


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_that_a_document_names_exists(name: str) -> None:
    text = TEXTS[name]
    paths = r"(?<![\w/~-])((?:scripts|tests|locks|docs|benchmarks|examples)/[\w./-]+\.(?:sh|py|txt|yml|md|json|svg|sbatch|yaml))"
    for path in re.findall(paths, text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!https:|\.\./\.\./actions/)([^)#]+)[^)]*\)", text):  # a workflow's page is no file
        assert (DOCS[list(TEXTS).index(name)].parent / target).exists(), target
    for target, anchor in re.findall(r"\]\((?!https:)([^)#]*)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.+)", TEXTS[Path(target).name or name], re.M)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor
    for names in re.findall(r"--(?:only|skip) ([\w,-]+)", text):
        assert set(names.split(",")) <= set(load()), names


PARSERS = {
    "setup_runpod_environment.sh": setup.parser,
    "verify_environment.py": command.parser,
    "post_create.sh": post_create.parser,
    "lock.sh": relock.parser,
}


def commands(text: str) -> Iterator[List[str]]:
    """The words of every command of ours: in code spans, in fenced blocks, in a workflow."""
    joined = re.sub(r"\\\n\s*|>-\n\s*", " ", text)
    fences = re.findall(r"```(?:bash|yaml)\n(.*?)```", joined, re.S)
    spans = re.findall(
        r"`((?:python |micromamba )?[^` ]*(?:scripts|tests)/[^`\n]+|micromamba [^`\n]+)`",
        re.sub(r"```.*?```", "", joined, flags=re.S),
    )
    for line in "\n".join(fences + spans if "```" in text or spans else [joined]).splitlines():
        for match in re.finditer(r"(?:scripts/|tests/(?=run))(\w+\.sh|verify_environment\.py)(?=$|[ '])([^'|&;)#]*)", line):
            words = shlex.split(match[2].replace("...", ""), comments=True)
            yield [match[1], *("conda" if w == "$BACKEND" else w for w in words)]


def test_every_command_of_the_documents_and_workflows_is_one_that_the_scripts_take() -> None:
    found = [words for text in [*TEXTS.values(), *WORKFLOWS] for words in commands(text)]
    assert {words[0] for words in found} >= {*PARSERS, "run.sh"} and len(found) > 60
    for script, *words in found:
        if script in PARSERS:
            PARSERS[script]().parse_args(words)  # exits, and prints why, if it does not take them
        else:
            others = [word for word in words if word not in ("--long", "--lint", "--no-skips")]
            assert script == "run.sh" and all((ROOT / word).exists() for word in others), words


@pytest.mark.parametrize("name", TEXTS)
def test_every_block_of_bash_is_bash(name: str) -> None:
    for block in re.findall(r"```bash\n(.*?)```", TEXTS[name], re.S):
        block = re.sub(r"<[\w ]+>", "PLACEHOLDER", block)
        done = subprocess.run(["bash", "-n"], input=block, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr + block


def test_every_variable_that_the_scripts_read_is_in_the_table() -> None:
    read: Set[str] = set()
    for path in (ROOT / "scripts").rglob("*.py"):
        read.update(re.findall(r'environ(?:\.get\(|\[)"([A-Z_0-9]+)"', path.read_text()))
        read.update(re.findall(r'"((?:UV|PIP)_[A-Z_]*INDEX[A-Z_]*)"', path.read_text()))
    table = TEXTS["TECHNICAL_SETUP.md"].split("## Environment variables")[1]
    assert len(read) > 20 and sorted(name for name in read if f"`{name}`" not in table) == []


def test_every_pin_has_its_reason_and_link_in_the_technical_setup() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", TEXTS["TECHNICAL_SETUP.md"].split("## Backends")[0], re.M)
    named = {name for pins, _ in rows for name in re.findall(r"`([a-z-]+)", pins)}
    asked = relock.read_spec(ROOT / "environment.yml")
    pinned = {name for name, spec in {**asked.conda, **asked.pip}.items() if re.search(r"(?<!>)=|<", spec)}
    assert sorted(pinned - named) == []
    assert [pins for pins, reason in rows if "](https://" not in reason] == []


def test_the_registry_names_every_file_and_no_other() -> None:
    text = TEXTS["IMPLEMENTATION_REGISTRY.md"]
    named = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    assert len(named) == len(set(named)) and set(named) == tracked()
    for tests in re.findall(r"`(tests/[^`]+)`", text):
        assert (ROOT / tests).exists(), tests


def test_every_check_has_a_name_a_proof_and_a_remedy() -> None:
    for check in load().values():
        assert check.proves and check.remedy and re.fullmatch("[a-z0-9-]+", check.name)


# What ends a script or is a check's verdict, and the names that such words are put together under.
SPOKEN = {"Stop", "FetchError", "LockError", "MachineError", "ManifestError", "failed", "warned", "error"}
GATHERED = {"said", "problem", "broken", "wrong", "problems", "reasons", "bad", "FULL_DISK"}


def template(node: ast.AST) -> str:
    """A string expression with a null character for all that varies."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return "\0"


def spoken(tree: ast.AST) -> Iterator[ast.AST]:
    """The expressions of a module that people get to read when something is wrong."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in SPOKEN or (name == "print" and any("stderr" in ast.dump(k.value) for k in node.keywords)):
                yield node.args[0]
            elif name == "Finding" or (name == "append" and getattr(node.func.value, "id", "") in GATHERED):  # type: ignore
                yield node.args[-1 if name == "append" else 1]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in GATHERED:
            yield node.value
        elif isinstance(node, ast.FunctionDef) and node.name.endswith(("problem", "misfit", "explain", "prove")):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield from inner.value.elts if isinstance(inner.value, ast.Tuple) else [inner.value]


def texts_of_the_scripts() -> Tuple[Dict[str, str], List[str]]:
    """({place: message}, every string in the scripts)."""
    messages: Dict[str, str] = {}
    everything: List[str] = []
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        tree = ast.parse(path.read_text())
        everything += [template(n) for n in ast.walk(tree) if isinstance(n, (ast.JoinedStr, ast.Constant))]
        for node in spoken(tree):
            for branch in [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]:
                text = template(branch)
                if sum(letter.isalpha() for letter in text) >= 8:
                    messages[f"{path.name}:{branch.lineno}"] = text  # type: ignore[attr-defined]
    for path in sorted((ROOT / "scripts").glob("*.sh")):
        for text in re.findall(r'echo "([^"]+)" >&2', path.read_text()):
            messages[f"{path.name}: {text[:20]}"] = text
            everything.append(text)
    return messages, everything


def says(text: str, words: str) -> bool:
    """Whether a message holds the documented words, in order; `...` stands for anything."""
    return re.search(".*".join(map(re.escape, re.split(r" ?\.\.\. ?", words))), text, re.S) is not None


def test_every_message_is_in_troubleshooting_and_every_row_is_a_message() -> None:
    others, ours = TEXTS["TROUBLESHOOTING.md"].split("## Messages of the scripts")
    spans = [s for row in re.findall(r"^\| (`[^|]*) \|", ours, re.M) for s in re.findall(r"`([^`]+)`", row)]
    assert len(spans) == len(set(spans)) > 100
    messages, everything = texts_of_the_scripts()
    assert len(messages) > 120
    assert {place: text for place, text in messages.items() if not any(says(text, s) for s in spans)} == {}
    assert [span for span in spans if not any(says(text, span) for text in everything)] == []


def test_no_path_of_a_machine_is_committed() -> None:
    for name in tracked():
        path = Path(ROOT, name)
        if path.suffix in (".py", ".sh", ".md", ".yml", ".txt", ".json", ".toml", ".svg"):
            assert not re.search(r"(^|[^\w.])/(work|farm)/", path.read_text()), name
