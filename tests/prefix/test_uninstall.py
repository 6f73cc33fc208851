"""setup_runpod_environment.sh --uninstall: lists first, removes what the set-up made, leaves what is people's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.host.locking import holding
from lockedenv.prefix.place import Prefix, find_prefix
from small_environment import SITE, contents, fill, install


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    """An environment with a predecessor, its lock, a log, a cache, and a list of extras."""
    install(find_prefix(tmp_path / "env"))
    new = install(find_prefix(tmp_path / "env"))
    (tmp_path / "env").unlink()
    (tmp_path / "env").symlink_to(f"env.d/{new.path.name}")
    (tmp_path / "env.maximalcai-lock").touch()
    (tmp_path / "tmp").mkdir()
    log = f"setup_runpod_environment.sh --prefix {new.public_path}\nTraceback"
    (tmp_path / "tmp/maximalcai-1.log").write_text(log)
    other = f"setup_runpod_environment.sh --prefix {new.public_path}2\nTraceback"
    (tmp_path / "tmp/maximalcai-2.log").write_text(other)
    (tmp_path / "cache/wheels").mkdir(parents=True)
    (tmp_path / "cache/mine.txt").write_text("mine")
    (tmp_path / "env.maximalcai-extras-1.txt").write_text("six\n")
    (new.path / "results").mkdir()
    (new.path / "results/loss.csv").write_text("years of work")
    (new.path / SITE / "idna/core.py").write_text("edited\n")
    return new


def uninstall(prefix: Prefix, *options: str) -> "subprocess.CompletedProcess[str]":
    folder = prefix.public_path.parent
    command = [
        ROOT / "scripts/setup_runpod_environment.sh",
        "--uninstall",
        "--prefix",
        prefix.public_path,
    ]
    environ = clean_environ(TMPDIR=str(folder / "tmp"))
    return sh(*command, "--cache", folder / "cache", *options, check=False, env=environ)


def test_a_dry_run_lists_all_of_it_and_changes_nothing(prefix: Prefix) -> None:
    folder = prefix.public_path.parent
    before = contents(folder)
    done = uninstall(prefix, "--dry-run")
    assert done.returncode == 0, done.stdout
    assert contents(folder) == before, done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == f"removed  {prefix.public_path}, the link"
    assert sum(line.endswith(", an environment") for line in lines) == 2
    assert f"moved    results, yours, to {prefix.public_path}.kept-*" in lines
    assert (
        f"moved    {SITE}/idna/core.py, yours, to {prefix.public_path}.kept-*" in lines
    )
    assert f"removed  {folder}/env.maximalcai-lock" in lines
    assert f"removed  {folder}/tmp/maximalcai-1.log" in lines
    assert f"left     {folder}/env.maximalcai-extras-1.txt" in lines
    assert lines[-3] == f"left     {folder}/cache"
    assert lines[-2].endswith("--cache-too removes it")
    assert "maximalcai-2.log" not in done.stdout, "another prefix's"
    assert lines[-1] == "this was a dry run: nothing was changed"


def test_it_removes_what_it_lists_and_leaves_what_is_peoples(prefix: Prefix) -> None:
    folder = prefix.public_path.parent
    done = uninstall(prefix)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "uninstalled", done.stdout
    [kept] = folder.glob("env.kept-*")
    assert contents(kept) == {
        "results/loss.csv": "years of work",
        f"{SITE}/idna/core.py": "edited\n",
    }
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["cache", kept.name, "env.maximalcai-extras-1.txt", "tmp"]
    assert [path.name for path in (folder / "tmp").iterdir()] == ["maximalcai-2.log"]
    done = uninstall(prefix)
    assert done.returncode == 0
    assert "there is nothing of this set-up at" in done.stdout


def test_the_cache_goes_only_when_it_is_named_and_without_what_is_peoples(
    prefix: Prefix,
) -> None:
    folder = prefix.public_path.parent
    kernels = folder / "cache/flash-attention-kernels" / ("ab" * 32)
    kernels.mkdir(parents=True)
    (kernels / f"{'cd' * 32}.o").write_text("a compiled kernel")
    (kernels.parent / f"compiled-sm_90-{'ef' * 8}").touch()
    assert uninstall(prefix, "--cache-too").returncode == 0
    assert [path.name for path in (folder / "cache").iterdir()] == ["mine.txt"]


def test_an_environment_that_people_made_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "env")
    (tmp_path / "tmp").mkdir()
    before = contents(tmp_path)
    done = uninstall(Prefix(tmp_path / "env"))
    assert done.returncode == 1
    assert "was not made by this set-up" in done.stdout
    assert contents(tmp_path) == before


def test_a_copy_beside_it_stays(prefix: Prefix) -> None:
    copy = prefix.path.with_name("backup")
    shutil.copytree(prefix.path, copy, symlinks=True)
    assert uninstall(prefix).returncode == 0
    assert (copy / "results/loss.csv").exists()


@pytest.mark.parametrize("options", [["--force"], ["--check-pod"]])
def test_other_options_are_wrong_usage(options: list[str], prefix: Prefix) -> None:
    done = uninstall(prefix, *options)
    assert done.returncode == 2
    assert prefix.public_path.is_symlink()


def test_a_link_of_peoples_to_a_folder_of_theirs_stays(tmp_path: Path) -> None:
    """Any link from PREFIX into PREFIX.d was removed."""
    theirs = tmp_path / "env.d/mine"
    theirs.mkdir(parents=True)
    (tmp_path / "env").symlink_to("env.d/mine")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "env.maximalcai-lock").touch()
    assert uninstall(Prefix(tmp_path / "env")).returncode == 0
    assert (tmp_path / "env").is_symlink()
    assert theirs.is_dir()


def test_a_backup_that_is_a_link_is_named_before_anything_is_removed(
    prefix: Prefix,
) -> None:
    """`cp -a PREFIX PREFIX.bak` copies the link alone."""
    backup = prefix.public_path.with_name("env.bak")
    sh("cp", "-a", prefix.public_path, backup)
    before = contents(prefix.container)
    for options in ([], ["--dry-run"]):
        done = uninstall(prefix, *options)
        assert done.returncode == 1, done.stdout
        assert f"rm {backup}" in done.stdout, done.stdout
    assert contents(prefix.container) == before
    assert prefix.public_path.is_symlink()
    backup.unlink()
    assert uninstall(prefix).returncode == 0


def test_what_people_keep_in_a_cache_that_they_share_with_it_stays(
    prefix: Prefix,
) -> None:
    """--cache /workspace: its `bin`, `wheels`, `uv` and `pkgs` went as they were."""
    cache = prefix.public_path.parent / "cache"
    theirs = [
        "bin/backup.sh",
        "wheels/mine-1.0-py3-none-any.whl",
        "uv/README.md",
        "pkgs/notes/a",
    ]
    ours = [
        "bin/uv-0123456789ab",
        "wheels/torch-2.5.1-cp311-cp311-linux_x86_64.whl",
        "uv/archive-v0/x/a",
        "pkgs/idna-3.10-0/info/index.json",
        "pkgs/idna-3.10-0.conda",
        "uv.lock",
    ]
    for name in [*theirs, *ours]:
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(name)
    assert uninstall(prefix, "--cache-too").returncode == 0
    assert sorted(contents(cache)) == sorted([*theirs, "mine.txt"])


def test_a_dry_run_lists_exactly_what_is_gone_afterwards(prefix: Prefix) -> None:
    folder = prefix.public_path.parent
    lines = uninstall(prefix, "--dry-run").stdout.splitlines()
    listed = {
        line.split()[1].rstrip(",") for line in lines if line.startswith("removed ")
    }
    before = set(folder.rglob("*"))
    assert uninstall(prefix).returncode == 0
    gone = {path for path in before if not os.path.lexists(path)}
    # What lies in an environment is not listed, but what is people's.
    outermost = {
        path for path in gone if path.parent not in {*gone} - {prefix.container}
    }
    assert listed == {str(path) for path in outermost}


def test_a_run_that_waited_for_an_uninstall_has_a_lock_of_its_own(
    tmp_path: Path,
) -> None:
    """It held the file that was removed, and a third run held the new one at the same time."""
    lock = tmp_path / "lock"
    with holding(lock, "the environment", print):
        lock.unlink()
        with holding(lock, "the environment", print):
            assert lock.exists()
    program = (
        "import sys; from pathlib import Path; from lockedenv.host.locking import holding\n"
        "def say(text): print(text, flush=True)\n"
        "with holding(Path(sys.argv[1]), 'it', say): say('holds'); sys.stdin.read()"
    )
    environ = clean_environ(PYTHONPATH=f"{ROOT}/scripts")
    started = []
    with holding(lock, "the environment", print):
        started.append(start(program, lock, environ))
        assert "waiting for it" in read_line(started[0])
        lock.unlink()
    assert read_line(started[0]) == "holds\n"
    started.append(start(program, lock, environ))
    assert "waiting for it" in read_line(started[1])
    for process in started:
        process.communicate()


def start(program: str, lock: Path, environ: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, str(lock)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        env=environ,
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_program_that_runs_in_it_goes_on_and_its_results_are_kept(
    prefix: Prefix,
) -> None:
    program = (
        "import sys, time; file = open('results/late.csv', 'w'); print('runs', flush=True);"
        "sys.stdin.read(); print('years of work', file=file)"
    )
    pipe = subprocess.PIPE
    command = [prefix.public_path / "bin/python", "-c", program]
    with subprocess.Popen(
        command, cwd=prefix.path, stdin=pipe, stdout=pipe, text=True
    ) as running:
        assert read_line(running) == "runs\n"
        done = uninstall(prefix)
        assert done.returncode == 0, done.stdout
        assert not prefix.path.exists(), done.stdout
        running.communicate()
    assert running.returncode == 0
    [kept] = prefix.public_path.parent.glob("env.kept-*")
    assert (kept / "results/late.csv").read_text() == "years of work\n"


def test_of_two_at_once_one_waits_and_finds_nothing(prefix: Prefix) -> None:
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: uninstall(prefix), range(2))
    assert first.returncode == second.returncode == 0, (first.stdout, second.stdout)
    removed = f"removed  {prefix.path}, an environment"
    assert (first.stdout + second.stdout).count(removed) == 1
    assert len(list(prefix.public_path.parent.glob("env.kept-*"))) == 1


def leave_unpacked(prefix: Prefix) -> list[Path]:
    """What a run leaves that was killed, or met a full disk; its environment is gone."""
    left = [
        prefix.container / "0123abcd.maximalcai-uv",
        prefix.beside("maximalcai-pkgs"),
    ]
    for folder in left:
        (folder / "archive-v0").mkdir(parents=True)
    return left


def test_what_was_unpacked_for_an_environment_that_is_gone_goes_too(
    prefix: Prefix,
) -> None:
    """It was looked for beside environments that are still there."""
    left = leave_unpacked(prefix)
    assert f"removed  {left[0]}" in uninstall(prefix, "--dry-run").stdout.splitlines()
    assert uninstall(prefix).returncode == 0
    assert not any(folder.exists() for folder in left)
    assert not prefix.container.exists()


def test_it_is_all_that_a_failed_first_run_left(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    place = Prefix(tmp_path / "env")
    left = leave_unpacked(place)
    assert uninstall(place).returncode == 0
    assert not any(folder.exists() for folder in left)
    assert not place.container.exists()


def test_an_uninstall_that_stops_half_way_names_the_command_that_goes_on(
    prefix: Prefix,
) -> None:
    """`run again` was said when the command maximalcai was gone."""
    file = prefix.path / SITE / "idna/core.py"
    if (
        shutil.which("chattr") is None
        or sh("chattr", "+i", file, check=False).returncode
    ):
        pytest.skip("this machine makes no file immutable")
    try:
        done = uninstall(prefix)
    finally:
        sh("chattr", "-i", file)
    assert done.returncode == 1, done.stdout
    assert "Operation not permitted" in done.stdout
    folder = prefix.public_path.parent
    script = ROOT / "scripts/setup_runpod_environment.sh"
    assert done.stdout.splitlines()[-1] == (
        f"run it again with: {script} --prefix {prefix.public_path} --uninstall "
        f"--cache {folder}/cache"
    )
    assert "uninstalled" in uninstall(prefix).stdout
