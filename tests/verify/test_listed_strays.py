"""What people put into a prefix is listed and harms nobody; a folder that is too deep to look into is named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lockedenv.prefix.ownership import own_paths
from lockedenv.verify.checks import files
from small_prefix import SITE, SmallPrefix, add_package
from strays import read_text


def test_what_harms_nobody_is_listed(small: SmallPrefix) -> None:
    """Own results, own programs, and an added package with a path in its .pth file."""
    small.write("results/loss.csv")
    small.write("notes.txt")
    small.write("bin/my-own-tool", b"#!/bin/sh\n", 0o755)
    module = {"later.py": b"", "later.pth": b"/somewhere\n"}
    add_package(small.path, "later", "1.0", module)
    context = small.context()
    result = files.strays(context)
    assert result.verdict == "pass", result
    assert "bin/my-own-tool" in result.summary
    assert "results/" in result.summary
    assert files.startup(context).verdict == "pass"
    assert files.present(context).verdict == "pass"


def test_what_ordinary_use_leaves_in_a_prefix_is_no_failure(small: SmallPrefix) -> None:
    """Packages with plugins that are loaded by name, a kernel of Jupyter's, results, caches."""
    entry_points = (
        b"[console_scripts]\n"
        b"later = later:main\n"
        b"[pandas_plotting_backends]\n"
        b"a = later\n"
    )
    package = {
        "later/__init__.py": b"",
        "later-1.0.dist-info/entry_points.txt": entry_points,
        "../../../bin/later": b"#!/bin/sh\n",
    }
    add_package(small.path, "later", "1.0", package)
    (small.path / "bin/later").chmod(0o755)
    for path in (
        "share/jupyter/kernels/mine/kernel.json",
        "etc/jupyter/jupyter_server_config.py",
        "wandb/run-1/files/output.log",
        "outputs/checkpoint-1/libstate.so",
        "outputs/train.py",
        ".cache/huggingface/token",
        "lib/libmine.so.1",
        "include/mine.h",
        "triton/backends/mine/compiler.py",
        f"{SITE}/later/__pycache__/__init__.cpython-311.pyc",
    ):
        small.write(path, b"mine")
    context = small.context()
    for check in (files.present, files.startup, files.strays):
        assert check(context).verdict == "pass", check(context)
    own = files.strays(context).measured["own"]
    assert "lib/libmine.so.1" in own
    assert "outputs/train.py" in own


def make_too_deep(folder: Path) -> None:
    """Folders in folders, until the path of the last ones is longer than the system takes."""
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(5000 // 200):
        os.mkdir("d" * 200, dir_fd=descriptor)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("file.py", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def test_a_folder_that_is_too_deep_to_look_into_is_one_warning(
    small: SmallPrefix,
) -> None:
    make_too_deep(small.path / "results/deep")
    context = small.context()
    result = files.strays(context)
    assert result.verdict == "warn", result
    assert not result.details, result
    cause = "no package has it, it cannot be looked into (File name too long)"
    assert result.summary == f"results: {cause}"
    command = f"rm -r {small.path / 'results'}"
    assert result.remedy == f"if you did not put it there: {command}"
    named = [*own_paths(small.path), *context.contents.unlisted]
    assert "results/deep/" in " ".join(named)
    for check in (files.present, files.startup, files.files):
        assert check(context).verdict == "pass", check(context)


def test_one_where_python_looks_is_a_failure(small: SmallPrefix) -> None:
    make_too_deep(small.site / "demo/deep")
    result = files.strays(small.context())
    assert result.summary == (
        f"{SITE}/demo/deep: no package has it, it cannot be looked into (File name too long), "
        "and Python, the loader or a shell may look there"
    )
    assert result.verdict == "fail"
    assert result.remedy == f"rm -r {small.site / 'demo/deep'}"
    subprocess.run(result.remedy, shell=True, check=True)
    assert files.strays(small.context()).verdict == "pass"


def test_a_name_of_ones_own_is_listed_in_one_line(small: SmallPrefix) -> None:
    small.write("bin/mine\n\x1b[2J")
    result = files.strays(small.context())
    assert "bin/mine\\n\\x1b[2J" in read_text(result)
    (small.site / "single.py").unlink()
    (small.site / "single.py").symlink_to("else\nwhere")
    assert "is a link now, to else\\nwhere" in files.present(small.context()).summary
