"""How the verifier speaks: colour and width on a terminal alone, the remedy under a failure, honest counts."""

from __future__ import annotations

import io
import re
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level
from lockedenv.verify import progress as console
from lockedenv.verify import report as reporting
from lockedenv.verify.checklist import CHECKS
from lockedenv.verify.checks import (
    CheckGroup,
    Result,
    compiled,
    exit_status,
    failed,
    passed,
    skipped,
    warned,
)
from lockedenv.verify.progress import Progress
from lockedenv.verify.report import CheckReport, Scope, to_attach


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def said(out: Any, *results: Result) -> str:
    report = CheckReport(out)
    report.progress.show(lambda: "working", begins=True)
    for result in results:
        result.check = "torch"
        report.result(result)
    report.summary(list(results), 1.0)
    return str(out.getvalue())


def test_what_a_check_says_moves_no_cursor() -> None:
    """Names of files, values of variables and messages of libraries come from outside."""
    text = said(
        io.StringIO(),
        failed("one\x1b[2J", "two\x1b[2J", ["three\x1b[2J", "four\nfive"]),
    )
    assert "\x1b" not in text, text
    assert text.count("\\x1b[2J") == 4, text
    assert "four five" in text.replace("\n        ", " ")


def test_plain_when_piped_and_coloured_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    plain = said(io.StringIO(), failed("wrong", "mend it", ["detail"]))
    assert plain.splitlines()[:3] == [
        "FAIL  torch            wrong",
        "      - detail",
        "      > mend it",
    ]
    assert "\033[31mFAIL\033[0m" in said(Terminal(), failed("wrong", "mend it"))
    assert "working" in said(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[31m" not in said(Terminal(), failed("wrong", "mend it"))


def test_progress_is_one_line_on_a_terminal_and_one_every_15_s_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    shown = {}
    for out in (Terminal(), io.StringIO()):
        progress = Progress(out)
        for second in range(32):
            now[0] += 1
            progress.show(lambda: f"step {second}")
        progress.clear()
        shown[out.isatty()] = out.getvalue()
    assert shown[False] == "  step 14\n  step 29\n"
    assert shown[True].count("\n") == 0
    assert shown[True].count("\r\033[K  step") == 32
    assert shown[True].endswith("\r\033[K")


# The groups


def grouped(*results: Result, level: Level = Level.QUICK) -> list[str]:
    """The lines of a run of these checks, without the first and the last two."""
    out = io.StringIO()
    report = CheckReport(out, grouped=True)
    scope = Scope(level, tuple(result.check for result in results), True)
    installed = types.SimpleNamespace(prefix=Path("/env"), backend=BackendName.PIP)
    context: Any = types.SimpleNamespace(
        installed=installed,
        environment=types.SimpleNamespace(name="default"),
        device="cpu",
    )
    report.begin(context, scope)
    for result in results:
        report.result(result)
    report.summary(results, 1.0, scope=scope)
    return out.getvalue().splitlines()[1:]


def named(check: str, result: Result, **fields: Any) -> Result:
    return replace(result, check=check, **fields)


def test_a_group_is_one_line_in_the_order_of_the_groups() -> None:
    lines = grouped(
        named("pip-layer", passed("75 wheels as locked")),
        named("conda-layer", skipped("not a conda prefix")),
        named("cuda-libraries", passed("12 libraries of CUDA 12.4, as locked")),
        named(
            "present", passed("9 paths, compared by type, size and modification time")
        ),
        named("driver", skipped("no NVIDIA GPU on this machine")),
    )
    assert lines == [
        "PASS  packages   75 wheels as locked (skipped: conda-layer)",
        "PASS  files      9 paths, compared by type, size and modification time",
        "PASS  CUDA       12 libraries of CUDA 12.4, as locked",
        "SKIP  machine    no NVIDIA GPU on this machine (skipped: driver)",
        "3 passed, 0 failed, 2 skipped in 1.0 s; --verbose shows each check",
        "verified: no check failed (quick level; 9 paths, compared by type, size "
        "and modification time)",
    ]


def test_at_the_full_level_the_thorough_check_speaks_and_the_others_are_named() -> None:
    lines = grouped(
        named("present", passed("9 paths")),
        named("files", passed("7 files, all as installed")),
        named("torch-origin", passed("torch 2.5.1 from pip")),
        named("torch-build", passed("torch 2.5.1, CUDA 12.4")),
        named("torch", passed("exact")),
        named("sdpa", passed("right")),
        named("flash-attn", compiled("sm_90")),
        level=Level.FULL,
    )
    assert lines[:3] == [
        "PASS  files      7 files, all as installed",
        "PASS  torch      torch 2.5.1, CUDA 12.4; passed: torch",
        "PASS  attention  passed: sdpa (compiled, not run: flash-attn)",
    ]


def test_damage_comes_with_what_follows_from_it_and_one_remedy_at_the_end() -> None:
    lines = grouped(
        named("pip-layer", passed("75 wheels as locked")),
        named(
            "present",
            failed("x.py: missing", "repair", ["y.py: missing"]),
            action="repair",
        ),
        named("strays", failed("z.so: is taken", "rm -r /env/z.so"), action="remove"),
        named(
            "files",
            failed("x.py: missing", "repair"),
            action="repair",
            follows_from="present",
        ),
        named("torch", failed("no torch", "report it"), follows_from="present"),
        level=Level.FULL,
    )
    repair = f"{ROOT}/scripts/post_create.sh --prefix /env"
    assert lines[1:] == [
        "FAIL  files      failed: present, strays, files",
        "      FAIL  present: x.py: missing",
        "            - y.py: missing",
        "      FAIL  strays: z.so: is taken",
        "      FAIL  files: x.py: missing (probably follows from `present`)",
        "FAIL  torch      failed: torch",
        "      FAIL  torch: no torch (probably follows from `present`)",
        "1 passed, 4 failed in 1.0 s; --verbose shows each check",
        f"to mend it: rm -r /env/z.so && {repair}",
        "FAILED: present (x.py: missing), strays (z.so: is taken), and 2 that follow from these",
    ]


def test_a_failure_that_the_set_up_cannot_mend_has_its_own_remedy() -> None:
    lines = grouped(named("driver", failed("no GPU found", "take another pod")))
    assert lines[0] == "FAIL  machine    failed: driver"
    assert lines[1:3] == [
        "      FAIL  driver: no GPU found",
        "            > take another pod",
    ]
    assert lines[-1] == "FAILED: driver (no GPU found)"


def test_known_vulnerabilities_are_one_line() -> None:
    text = "9 known CVEs, mostly of torch 2.5.1: load safetensors only"
    lines = grouped(
        named("vulnerabilities", warned(text, "keep to it", ["CVE-1", "CVE-2"]))
    )
    expected = f"      WARN  vulnerabilities: {text}; --only vulnerabilities lists them"
    assert lines[1] == expected
    assert len(lines) == 4


def test_every_check_has_a_group_with_one_that_speaks_or_names() -> None:
    assert {check.group for check in CHECKS} == set(CheckGroup)
    names = {check.name for check in CHECKS}
    for check in CHECKS:
        assert not check.yields_to or check.yields_to in names


def test_skipped_is_never_counted_as_passed() -> None:
    text = said(io.StringIO(), skipped("no GPU"))
    assert "0 passed, 0 failed, 1 skipped" in text
    assert "nothing was checked" in text
    assert "verified" not in text
    assert "1 passed, 1 warned, 0 failed, 1 skipped" in said(
        io.StringIO(), passed("x"), warned("w", "r"), skipped("s")
    )


def test_compiled_is_never_counted_as_passed() -> None:
    out = io.StringIO()
    report = CheckReport(out)
    result = compiled("sm_90: 3 kernels compiled, not run")
    result.check = "triton"
    report.result(result)
    report.summary([result], 1.0)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("COMPILED  triton")
    assert lines[1] == "0 passed, 1 compiled but not run, 0 failed in 1.0 s"
    assert "verified" not in lines[2]
    assert "nothing was run" in lines[2]
    assert exit_status([result], strict=True) == 0


def test_long_lists_are_cut_and_long_lines_wrapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = said(
        io.StringIO(), failed("wrong", "mend it", [f"file {n}" for n in range(50)])
    )
    assert "file 19" in text
    assert "file 20" not in text
    assert "and 30 more; --json FILE has them all" in text
    wrapped = said(Terminal(), failed("wrong", "word " * 40))
    assert (
        max(
            len(line)
            for line in wrapped.replace("\r\033[K", "").split("\n")
            if "word" in line
        )
        <= 60
    )


def test_exit_status() -> None:
    assert exit_status([passed("x"), skipped("s")]) == 0
    assert exit_status([failed("x", "r")]) == 1
    assert exit_status([warned("x", "r")]) == 0
    assert exit_status([warned("x", "r")], strict=True) == 1
    out = io.StringIO()
    for results, strict in (
        ([passed("x"), warned("y", "r")], True),
        ([warned("y", "r")], False),
    ):
        CheckReport(out).summary(results, 1.0, strict)
    assert "not verified, since with --strict a warning fails" in out.getvalue()
    assert "verified:" not in out.getvalue()
    assert "no check failed, and none passed" in out.getvalue()


def test_what_is_attached_to_a_report_has_all_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(reporting, "default_cache", lambda: tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/flash.log").write_text("\n".join(f"line {n}" for n in range(90)))
    (tmp_path / "maximalcai-x.log").write_text(
        f"Traceback: {ROOT}/x https://me:s3cret@index.example/simple\n"
    )
    (tmp_path / "maximalcai-y.log").write_text(f"Traceback: {ROOT}-of another clone\n")
    row = {
        "name": "torch",
        "version": "1",
        "build": "",
        "manager": "pip",
        "hash": "h",
        "channel": "pypi",
    }
    manifest = {
        "fingerprint": "f",
        "packages": [row],
        "results": [],
        "variables": {"HF_HOME": "/x"},
    }
    text = to_attach(
        manifest, [failed("wrong hf_transfer", "mend it", ["detail"])], 1.0
    )
    for said in (
        "FAIL  ",
        "wrong",
        "> mend it",
        "torch 1  pip",
        '"HF_HOME": "/x"',
        "line 89",
        f"Traceback: {ROOT}/x https://***@index",
        "wrong hf_transfer",
    ):
        assert said in text, said
    assert "another clone" not in text
    (tmp_path / "netrc").write_text("password HUNTER2\n")
    (tmp_path / "maximalcai-a.log").symlink_to(tmp_path / "netrc")
    (tmp_path / "maximalcai-b.log").symlink_to(tmp_path / "gone")
    (tmp_path / "maximalcai-c.log").mkdir()
    (tmp_path / "maximalcai-d.log").write_text(
        f'{ROOT}/x hf_oauth_abcdefgh ghp_abcdefghij --token abcdefg "Authorization": "Basic abcdefg" HF_TOKEN=hf_abcdefghijk Authorization: Bearer hf_abcdefghijk password = p4ss\n'
    )
    text += to_attach(manifest, [], 1.0)
    assert not re.search(
        "HUNTER2|hf_abc|p4ss|abcdefg", text
    ), "another's file behind a link; what looks like a secret"
    assert "s3cret" not in text
    assert "line 49\n" not in text


def test_a_report_is_written_outside_an_environment_too(tmp_path: Path) -> None:
    """That is when people need it. None was written."""
    target = tmp_path / "report.txt"
    command = [
        "/usr/bin/python3",
        ROOT / "scripts/verify_environment.py",
        "--report",
        target,
    ]
    done = sh(*command, check=False, env=clean_environ())
    assert done.returncode == 1, done.stdout
    assert f"{target} is written" in done.stdout, done.stdout
    text = target.read_text()
    assert "where no lock was installed" in text
    assert '"machine": {' in text
