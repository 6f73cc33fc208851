"""The files that a command writes: what is not its own, or is read by it, stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.host.files import write_document
from lockedenv.verify.report import is_report

VERIFIER = ROOT / "scripts/verify_environment.py"
CERTIFICATE = ROOT / "certificates/default-cpu.json"
REMEDY = "choose another name, or remove it"


def verifier(*words: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, VERIFIER, *words]
    return sh(*command, check=False, cwd=cwd, env=clean_environ())


@pytest.mark.parametrize("spelling", ["same", "other words", "link", "hard link"])
def test_what_is_compared_is_not_written(spelling: str, tmp_path: Path) -> None:
    """It was destroyed, and the exit status was 0."""
    document = tmp_path / "C.json"
    shutil.copy(CERTIFICATE, document)
    target = document
    if spelling == "other words":
        target = Path("..", tmp_path.name, "C.json")
    elif spelling == "link":
        target = tmp_path / "link.json"
        target.symlink_to("C.json")
    elif spelling == "hard link":
        target = tmp_path / "hard.json"
        target.hardlink_to(document)
    done = verifier("--compare", "C.json", "C.json", "--json", target, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    [line] = done.stdout.splitlines()
    assert f"{target}: the same command reads it" in line
    assert document.read_bytes() == CERTIFICATE.read_bytes()


def test_standard_input_from_a_file_is_not_written(tmp_path: Path) -> None:
    document = tmp_path / "C.json"
    shutil.copy(CERTIFICATE, document)
    command = [sys.executable, VERIFIER, "--compare", "-", CERTIFICATE]
    with document.open("rb") as file:
        done = sh(*command, "--json", document, check=False, stdin=file)
    assert done.returncode == 2, done.stdout
    assert document.read_bytes() == CERTIFICATE.read_bytes()


TEXTS = {
    "program": "import torch\n",
    "list": "[1]\n",
    "another program's": '{"name": "model", "layers": 3}\n',
    "another program's version": '{"schema_version": 1, "name": "model"}\n',
    "nested": "[" * 100_000,
    "no text": "\xff\x00",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(
    "words",
    [
        ["--list", "--json"],
        ["--only", "files", "--json"],
        ["--manifest"],
        ["--certificate"],
        ["--report"],
        ["--compare", CERTIFICATE, CERTIFICATE, "--json"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_that_is_not_ours_stays(
    words: list[object], text: str, tmp_path: Path
) -> None:
    """A Python file was replaced by the JSON."""
    file = tmp_path / "train.py"
    file.write_text(text, encoding="latin-1")
    before = file.read_bytes()
    done = verifier(*words, "train.py", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    [line] = done.stdout.splitlines()
    assert "train.py" in line
    assert line.endswith(REMEDY)
    assert file.read_bytes() == before


def test_a_document_of_ours_is_replaced_and_keeps_its_permission_bits(
    tmp_path: Path,
) -> None:
    file = tmp_path / "checks.json"
    for mode in (0o640, 0o600):
        shutil.copy(CERTIFICATE, file)
        file.chmod(mode)
        done = verifier("--list", "--json", "checks.json", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert "checks" in json.loads(file.read_text())
        assert stat.S_IMODE(file.stat().st_mode) == mode
    # What it wrote itself, and what is empty.
    assert verifier("--list", "--json", file, cwd=tmp_path).returncode == 0
    file.write_text("")
    assert verifier("--list", "--json", file, cwd=tmp_path).returncode == 0


def test_a_report_is_replaced_by_a_report(tmp_path: Path) -> None:
    """The Python of the tests is no environment: there is a report without results."""
    for _ in range(2):
        done = verifier("--report", "report.txt", cwd=tmp_path)
        assert "report.txt is written" in done.stdout, done.stdout
        assert is_report((tmp_path / "report.txt").read_text())
    assert is_report("PASS  driver           580.65\n")
    assert not is_report("PASSED tests/test_a.py\n")


def test_two_spellings_of_one_file_are_one_file(tmp_path: Path) -> None:
    done = verifier("--json", "a", "--manifest", "./a", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "two documents cannot be written to one file" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "redirection",
    [
        "--json /dev/stdout | cat",
        "--json >(cat) | cat",
        "--json /dev/stdout >file; cat file",
        "--json /dev/fd/1 >>file; cat file",
        "--json /dev/stderr 2>&1 >/dev/null | cat",
    ],
)
def test_a_pipe_or_an_output_is_written_in_place(
    redirection: str, tmp_path: Path
) -> None:
    """It said that there is no file with a name such as /proc/7991/fd/pipe:[368525]."""
    (tmp_path / "file").write_text("")
    command = f'"$0" "$1" --list {redirection}'
    done = sh("bash", "-c", command, sys.executable, VERIFIER, cwd=tmp_path)
    assert "checks" in json.loads(done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_printed_around_a_document_stays(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from lockedenv.host.files import write_document; "
        "print('before'); write_document(Path('/dev/stdout'), 'text\\n'); print('after')"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run(
            [sys.executable, "-c", program],
            stdout=out,
            check=True,
            env=clean_environ(PYTHONPATH=str(ROOT / "scripts")),
        )
    assert (tmp_path / "out").read_text() == "before\ntext\nafter\n"


def test_a_named_pipe_is_written_in_place(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_document(pipe, "text\n")
        assert os.read(reader, 100) == b"text\n"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.fixture
def immutable(tmp_path: Path) -> Iterator[Path]:
    """An immutable document of ours; skips where this machine makes none."""
    file = tmp_path / "results.json"
    shutil.copy(CERTIFICATE, file)
    if (
        shutil.which("chattr") is None
        or sh("chattr", "+i", file, check=False).returncode
    ):
        pytest.skip("this machine makes no file immutable")
    yield file
    sh("chattr", "-i", file)


def test_an_immutable_file_is_refused_before_the_checks(
    immutable: Path, tmp_path: Path
) -> None:
    done = verifier("--only", "files", "--json", immutable, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    [line] = done.stdout.splitlines()
    assert f"{immutable} cannot be written (Operation not permitted)" in line


def test_a_folder_is_refused(tmp_path: Path) -> None:
    done = verifier("--list", "--json", tmp_path, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert f"{tmp_path} cannot be written (it is a folder)" in done.stdout
