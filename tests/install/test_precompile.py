"""FlashAttention 4's kernels are compiled for the GPUs asked for; a failure stops nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.listener import Listener
from lockedenv.errors import Stop
from lockedenv.install.flash_attention import precompile
from lockedenv.install.flash_attention.precompile import precompile_kernels
from lockedenv.prefix.mark import MadeBy, Mark, State, write_mark
from lockedenv.prefix.place import Prefix
from lockedenv.spec.flash_attention_kernels import COMMON, Kernel
from lockedenv.spec.gpu_target import H100, GpuTarget
from lockedenv.spec.locks import PipPackage

A100 = GpuTarget(80)
ANSWERS = """#!/bin/sh
echo "$FLASH_ATTENTION_ARCH $CUTE_DSL_ARCH $FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED" >>"$0.log"
echo "$FLASH_ATTENTION_CUTE_DSL_CACHE_DIR [$CUDA_VISIBLE_DEVICES] $3" >>"$0.log"
echo 'a line of a library'
echo '{"kernel": "first", "seconds": 1.5, "error": ""}'
echo '{"kernel": "second", "seconds": 0.5, "error": "RuntimeError: no"}'
exit 1
"""


def make_python(folder: Path, text: str) -> Path:
    python = folder / "python"
    python.write_text(text)
    python.chmod(0o755)
    return python


def test_each_target_has_its_kernels_and_their_errors(tmp_path: Path) -> None:
    python = make_python(tmp_path, ANSWERS)
    folder = tmp_path / "cache/kernels"
    one, two = precompile_kernels(python, folder, [H100, GpuTarget(120)], 8, os.environ)
    assert one.target == H100
    assert two.target.name == "sm_120"
    assert [kernel.name for kernel in one.compiled] == ["first"]
    assert one.errors == ["second: RuntimeError: no"]
    log = (tmp_path / "python.log").read_text().splitlines()
    assert log[0] == "sm_90 sm_90a 1"
    assert log[2] == "sm_120 sm_120a 1"
    assert (
        log[1] == f"{folder} [] {len(COMMON)}"
    ), "no more processes than kernels, and no GPU held"
    assert folder.is_dir()


def test_the_compiler_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a json.py there, nothing was compiled."""
    python = make_python(tmp_path, '#!/bin/sh\npwd > "$0.log"\n')
    monkeypatch.chdir(tmp_path)
    precompile_kernels(python, tmp_path / "kernels", [H100], 1, os.environ)
    assert (tmp_path / "python.log").read_text() == "/\n"


def test_an_a100_has_no_kernels_of_version_4(tmp_path: Path) -> None:
    python = make_python(tmp_path, ANSWERS)
    (done,) = precompile_kernels(python, tmp_path, [A100], 2, os.environ)
    assert done.errors == ["FlashAttention 4 has no backward for sm_80; use sdpa there"]
    assert not (tmp_path / "python.log").exists()


@pytest.mark.parametrize(
    "program, problem",
    [
        (
            "echo 'No module named cutlass' >&2; exit 1",
            "exit 1): No module named cutlass",
        ),
        ("kill -9 $$", "nothing was compiled (exit -9): "),
    ],
)
def test_a_compiler_that_ends_without_an_answer(
    program: str, problem: str, tmp_path: Path
) -> None:
    python = make_python(tmp_path, f"#!/bin/sh\n{program}\n")
    (done,) = precompile_kernels(python, tmp_path / "cache", [H100], 2, os.environ)
    assert len(done.errors) == 1
    assert done.errors[0].endswith(problem)


def test_a_compiler_that_hangs_is_stopped_with_its_processes(tmp_path: Path) -> None:
    python = make_python(tmp_path, "#!/bin/sh\nsleep 60 &\necho $! >$0.pid\nwait\n")
    (done,) = precompile_kernels(
        python,
        tmp_path / "cache",
        [H100],
        1,
        os.environ,
        limit=1.0,
        kernels=[Kernel(64)],
    )
    assert done.errors == ["not done within 1 s; stopped"]
    wait_until_it_ends(int((tmp_path / "python.pid").read_text()))


def wait_until_it_ends(pid: int) -> None:
    """A process that was killed is still there for a moment. This one would sleep for a minute."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split()[2]
        except OSError:
            return
        if state in "ZX":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} still runs")


def run_step(tmp_path: Path, gpus: list[str], arch: str, program: str) -> list[str]:
    """What the set-up's step says, in an environment that was made with a cache in tmp_path."""
    cache = str(tmp_path / "cache")
    write_mark(tmp_path, Mark(MadeBy.SETUP, State.INSTALLED, cache=cache))
    (tmp_path / "bin").mkdir(exist_ok=True)
    make_python(tmp_path / "bin", program)
    wheels = [
        PipPackage("flash-attn-4", "4.0.0b36", ""),
        PipPackage("torch", "2.15.0", ""),
    ]
    environment = SimpleNamespace(python="3.12", wheels=lambda backend: wheels)
    job: Any = SimpleNamespace(
        environment=environment,
        prefix=Prefix(tmp_path),
        flash=SimpleNamespace(arch=arch),
    )
    notes = Listener()
    found: Any = [SimpleNamespace(arch=name) for name in gpus]
    targets = precompile.choose_targets(found, arch)
    precompile.compile_common_kernels(job, targets, 2, notes)
    return notes.lines


def test_the_step_compiles_once_for_each_kind_of_gpu(tmp_path: Path) -> None:
    good = ANSWERS.replace("RuntimeError: no", "").replace("exit 1", "exit 0")
    first, second = run_step(tmp_path, ["90", "90", "120"], "", good)
    assert first.startswith("2 kernels compiled for sm_120 in ")
    assert "not run" in first
    assert second.startswith("2 kernels compiled for sm_90 in ")
    again = run_step(tmp_path, ["90"], "", good)
    folder = tmp_path / "cache/flash-attention-kernels"
    assert again == [f"its common kernels for sm_90 are in {folder}"]


def test_the_step_without_a_gpu_compiles_for_what_is_asked_for(tmp_path: Path) -> None:
    assert run_step(tmp_path, [], "", ANSWERS) == []
    failure, success = run_step(tmp_path, [], "90", ANSWERS)
    assert failure == "not compiled for sm_90: second: RuntimeError: no"
    assert success.startswith("1 kernels compiled for sm_90")
    assert len(run_step(tmp_path, [], "90", ANSWERS)) == 2, "what failed is tried again"


def test_one_gpu_whose_compiler_cannot_start_leaves_the_others_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_one = precompile.precompile_kernels

    def fail_for_one(python: Path, folder: Path, targets: Any, *others: Any) -> Any:
        if targets == [GpuTarget(120)]:
            raise OSError("Cannot allocate memory")
        return compile_one(python, folder, targets, *others)

    monkeypatch.setattr(precompile, "precompile_kernels", fail_for_one)
    good = ANSWERS.replace("RuntimeError: no", "").replace("exit 1", "exit 0")
    first, second = run_step(tmp_path, ["120", "90"], "", good)
    assert first.startswith("its kernels for sm_120 are compiled at first use: Cannot")
    assert second.startswith("2 kernels compiled for sm_90")


@pytest.mark.parametrize(
    "arch, names",
    [("", ["sm_90"]), ("80,90", ["sm_80", "sm_90"]), ("9.0;12.0", ["sm_90", "sm_120"])],
)
def test_the_targets_are_the_gpus_that_are_here_or_those_asked_for(
    arch: str, names: list[str]
) -> None:
    gpus: Any = [SimpleNamespace(arch="90"), SimpleNamespace(arch="90")]
    assert [target.name for target in precompile.choose_targets(gpus, arch)] == names


@pytest.mark.parametrize(
    "archs, said",
    [
        (
            [],
            "its kernels are compiled at first use: no GPU is here, and no --arch given",
        ),
        ([90, 120], "its common kernels are compiled for sm_90, sm_120"),
        ([80], "FlashAttention 4 has no backward for sm_80; use sdpa there"),
        (
            [80, 90],
            "its common kernels are compiled for sm_90; FlashAttention 4 has no backward for sm_80; "
            "use sdpa there",
        ),
    ],
)
def test_what_will_be_compiled_is_said_in_words(archs: list[int], said: str) -> None:
    assert precompile.describe_targets([GpuTarget(arch) for arch in archs]) == said


def test_what_is_no_compute_capability_is_refused() -> None:
    with pytest.raises(Stop, match="--arch H100: .* write 90 or sm_90"):
        precompile.choose_targets([], "H100")
