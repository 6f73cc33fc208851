"""What surrounds a check: the bound of an error, torch.compile's compiler, LD_LIBRARY_PATH by experiment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fixtures.commands import clean_environ, sh
from lockedenv.verify.checks import within
from lockedenv.verify.checks.surroundings import compile_problem
from lockedenv.verify.variables import misleading


def test_within_names_what_is_out_of_its_bound() -> None:
    assert (
        within({"a": (1e-3, 1e-2)}, "cpu", "r").summary
        == "cpu: a 1.0e-03 (bound 1.0e-02)"
    )
    result = within(
        {"a": (1e-3, 1e-2), "b": (float("nan"), 1.0), "c": (2.0, 1.0)}, "cpu", "r"
    )
    assert result.verdict == "fail"
    assert result.summary == "cpu: b nan (bound 1.0e+00) (and 1 more)"
    assert within(
        {f"c{i}": (i / 10, 1.0) for i in range(8)}, "cpu", "r"
    ).summary.startswith("cpu: 8 cases; nearest the bound: c7 ")


def test_what_torch_compile_lacks_is_known_beforehand(tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path)}
    problem = compile_problem(tmp_path, bare)
    assert problem
    assert "there is no g++" in problem
    assert "apt-get install -y g++" in problem
    assert compile_problem(tmp_path, {**bare, "CXX": "clang++"}) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/g++").write_text("#!/bin/sh\n")
    (tmp_path / "bin/g++").chmod(0o755)
    assert compile_problem(tmp_path, bare) is None


@pytest.mark.parametrize(
    "name, real, blamed",
    [
        ("libnvJitLink.so.12", "libnvJitLink.so.12.1.105", True),
        (
            "libnvJitLink.so.12",
            "libnvJitLink.so.12",
            True,
        ),  # of what version it does not say
        ("libnvJitLink.so.12", "libnvJitLink.so.12.4.127", False),
        ("libnvJitLink.so.12", "libnvJitLink.so.12.8.93", False),
        ("libnvJitLink.so.13", "libnvJitLink.so.13.0.88", False),
        ("libcudnn_ops.so.9", "libcudnn_ops.so.9.5.1", True),
        ("libcudnn_graph.so.9", "libcudnn_graph.so.9.1.0", False),
        ("libcudnn.so.9", "libcudnn.so.9.5.1", False),
        ("libcublas.so.12", "libcublas.so.12.8.4.1", False),
        ("libcudart.so.12", "libcudart.so.12.8.90", False),
        ("libnccl.so.2", "libnccl.so.2.25.1", False),
    ],
)
def test_which_libraries_on_ld_library_path_are_blamed(
    name: str, real: str, blamed: bool, tmp_path: Path
) -> None:
    (tmp_path / real).touch()
    if name != real:
        (tmp_path / name).symlink_to(real)
    wrong = misleading(
        tmp_path / "env",
        {"LD_LIBRARY_PATH": f"/usr/local/nvidia/lib:{tmp_path}"},
        "12.4",
        "9.1.0.70",
    )
    assert bool(wrong) == blamed
    if blamed:
        assert (
            wrong[0][0]
            == f"LD_LIBRARY_PATH has {tmp_path}, whose {name} is found before the locked one"
        )
    assert (
        misleading(tmp_path, {"LD_LIBRARY_PATH": str(tmp_path)}, "12.4", "9.1.0") == []
    )


def test_what_is_blamed_is_what_torch_takes_from_ld_library_path(
    pip_environment: Path, tmp_path: Path
) -> None:
    """The experiment of variables.misleading: copies of the libraries on LD_LIBRARY_PATH, and which of them are mapped."""
    found = sorted(
        (pip_environment / "lib").glob("python3*/site-packages/nvidia/*/lib/lib*.so*")
    )
    for library in found:
        (
            shutil.copy2(library, tmp_path)
            if library.stat().st_dev != tmp_path.stat().st_dev
            else os.link(library, tmp_path / library.name)
        )
    program = """
import ctypes, re, torch
torch.backends.cudnn.version()
for part in ("Adv", "Cnn", "Graph", "Ops"):
    getattr(ctypes.CDLL("libcudnn.so.9"), f"cudnn{part}VersionCheck")()
torch.linalg.inv(torch.eye(2))
ctypes.CDLL(torch.__path__[0] + "/lib/libtorch_cuda_linalg.so")
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if re.search(r"/lib(cu|nv|nccl)", line)}), sep="\\n")
"""
    environ = clean_environ(LD_LIBRARY_PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    mapped = [
        Path(line)
        for line in sh(
            pip_environment / "bin/python", "-c", program, env=environ
        ).stdout.splitlines()
    ]
    taken = {path.name for path in mapped if path.parent == tmp_path}
    assert taken == {
        "libnvJitLink.so.12",
        *(f"libcudnn_{part}.so.9" for part in ("adv", "cnn", "graph", "ops")),
    }
    assert {"libcublas.so.12", "libcudart.so.12", "libnccl.so.2", "libcupti.so.12"} <= {
        p.name for p in mapped
    } - taken
