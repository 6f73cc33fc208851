"""What lies beside the locked files: what would be taken first or run fails by name, all else is listed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable, NamedTuple

import pytest
from lockedenv.errors import printable
from lockedenv.prefix.activation import guard_text
from lockedenv.prefix.place import Prefix
from lockedenv.prefix.removal import own_paths
from lockedenv.spec.level import Level
from lockedenv.verify.checks import Result, files
from lockedenv.verify.elf import read_dynamic
from lockedenv.verify.report import Report, Scope
from small_prefix import SITE, SmallPrefix, add_package, elf

RPATH = 15
RUNPATH = 29
WITH_RUNPATH = {
    "demo/loader.so": elf("libother.so.2", "$ORIGIN/../nowhere/lib", RUNPATH)
}


@pytest.fixture
def small(tmp_path: Path) -> SmallPrefix:
    return SmallPrefix(tmp_path, WITH_RUNPATH)


class Stray(NamedTuple):
    """`put` puts it there; `check` then fails, and says `said`."""

    name: str
    put: Callable[[SmallPrefix], object]
    check: Callable[[object], Result]
    said: str


def program(name: str) -> Callable[[SmallPrefix], object]:
    return lambda small: small.write(f"bin/{name}", b"#!/bin/sh\n", 0o755)


def link_out(path: str) -> Callable[[SmallPrefix], object]:
    """Replaces a folder by a link to a copy of it elsewhere."""

    def put(small: SmallPrefix) -> None:
        shutil.move(str(small.path / path), str(small.path.parent / "elsewhere"))
        (small.path / path).symlink_to(small.path.parent / "elsewhere")

    return put


def linked_package(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "single"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").touch()
    (small.site / "single").symlink_to(elsewhere)


def linked_beside_programs(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "json"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").touch()
    (small.path / "bin/json").symlink_to(elsewhere)


def linked_back_end(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "other"
    elsewhere.mkdir()
    (small.site / "triton/backends").mkdir(parents=True)
    (small.site / "triton/backends/other").symlink_to(elsewhere)


def linked_record(name: str) -> Callable[[SmallPrefix], object]:
    """Puts a link to the record of a package that torch imports, under this name."""

    def put(small: SmallPrefix) -> None:
        elsewhere = small.path.parent / "record"
        elsewhere.mkdir()
        (elsewhere / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: other\nVersion: 1.0\n"
        )
        (elsewhere / "entry_points.txt").write_text(
            "[torch.backends]\nother = other:load\n"
        )
        (small.site / name).symlink_to(elsewhere)

    return put


def linked_bytecode(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "bytecode"
    elsewhere.mkdir()
    (elsewhere / "core.cpython-311.pyc").touch()
    (small.site / "demo/__pycache__").symlink_to(elsewhere)


def linked_libraries(small: SmallPrefix) -> None:
    (small.path.parent / "x86-64-v3").mkdir()
    (small.site / "demo/lib/glibc-hwcaps").symlink_to(small.path.parent)


def start_in_another_folder(small: SmallPrefix) -> None:
    folder = small.path.parent / "src"
    folder.mkdir()
    (folder / "sitecustomize.py").touch()
    add_package(small.path, "later", "1.0", {"later.pth": f"{folder}\n".encode()})


def linked_hooks(small: SmallPrefix) -> None:
    elsewhere = small.path.parent / "conda"
    (elsewhere / "activate.d").mkdir(parents=True)
    (small.path / "etc").mkdir()
    (small.path / "etc/conda").symlink_to(elsewhere)


def added(files: dict[str, bytes]) -> Callable[[SmallPrefix], object]:
    return lambda small: add_package(small.path, "later", "1.0", files)


STRAYS = [
    Stray(
        "an extension module beside __init__.py",
        lambda small: small.write(
            f"{SITE}/demo/__init__.cpython-311-x86_64-linux-gnu.so"
        ),
        files.strays,
        f"and Python takes it in place of {SITE}/demo/__init__.py",
    ),
    Stray(
        "an extension module beside a module",
        lambda small: small.write(f"{SITE}/single.abi3.so"),
        files.strays,
        f"single.abi3.so: no package has it, and Python takes it in place of {SITE}/single.py",
    ),
    Stray(
        "a package before a module",
        lambda small: small.write(f"{SITE}/demo/core/__init__.py"),
        files.strays,
        f"and Python takes it in place of {SITE}/demo/core.py",
    ),
    Stray(
        "a linked package before a module",
        linked_package,
        files.strays,
        f"and Python takes it in place of {SITE}/single.py",
    ),
    Stray(
        "a module before a package without __init__",
        lambda small: small.write(f"{SITE}/ns.py"),
        files.strays,
        f"and Python takes it in place of {SITE}/ns/",
    ),
    Stray(
        "an __init__ in a package without one",
        lambda small: small.write(f"{SITE}/ns/__init__.py"),
        files.strays,
        f"and Python takes it in place of {SITE}/ns/",
    ),
    Stray(
        "a module beside the programs",
        lambda small: small.write("bin/json.py"),
        files.strays,
        "and Python takes it in place of the standard library's json",
    ),
    Stray(
        "a locked package's name beside the programs",
        lambda small: small.write("bin/demo.py"),
        files.strays,
        f"and Python takes it in place of {SITE}/demo/__init__.py",
    ),
    Stray(
        "a linked package beside the programs",
        linked_beside_programs,
        files.strays,
        "bin/json: no package has it, and Python takes it in place of the standard library's json",
    ),
    Stray(
        "a library for this processor",
        lambda small: small.write(
            f"{SITE}/demo/lib/glibc-hwcaps/x86-64-v3/libdemo.so.1"
        ),
        files.strays,
        "x86-64-v3/libdemo.so.1: no package has it, and the loader may take it",
    ),
    Stray(
        "a library for this processor, before glibc 2.37",
        lambda small: small.write(f"{SITE}/nowhere/lib/tls/haswell/libother.so.2"),
        files.strays,
        "haswell/libother.so.2: no package has it, and the loader may take it",
    ),
    Stray(
        "libraries for this processor, by a link",
        linked_libraries,
        files.strays,
        "demo/lib/glibc-hwcaps: no package has it, and the loader may take it",
    ),
    Stray(
        "a back end of triton's",
        lambda small: small.write(f"{SITE}/triton/backends/other/compiler.py"),
        files.strays,
        "other/compiler.py: no package has it, and a locked package imports whatever lies in this",
    ),
    Stray(
        "a linked back end of triton's",
        linked_back_end,
        files.strays,
        "triton/backends/other: no package has it, and a locked package imports whatever lies",
    ),
    Stray(
        "an added package's back end of torch.compile",
        added({"torch/_dynamo/backends/later.py": b""}),
        files.strays,
        "torch/_dynamo/backends/later.py: is of later, and a locked package imports whatever lies",
    ),
    Stray(
        "a header",
        lambda small: small.write(f"{SITE}/demo/include/x/include/types.h"),
        files.strays,
        "demo/include/x/include/types.h: no package has it, and a compiler takes it before",
    ),
    Stray(
        "nvidia-smi",
        program("nvidia-smi"),
        files.strays,
        "bin/nvidia-smi: no package has it",
    ),
    Stray(
        "an added package that torch imports",
        added(
            {
                "later-1.0.dist-info/entry_points.txt": b"[torch.backends]\nlater = later:load\n"
            }
        ),
        files.strays,
        "entry_points.txt: is of later, and what it names runs whenever a locked package is",
    ),
    Stray(
        "a locked package's new entry points",
        lambda small: small.write(
            f"{SITE}/demo-1.0.dist-info/entry_points.txt",
            b" [bitsandbytes.backends] \na = b:c\n",
        ),
        files.strays,
        "demo-1.0.dist-info/entry_points.txt: no package has it, and what it names runs",
    ),
    Stray(
        "a linked record of a package that torch imports",
        linked_record("other-1.0.dist-info"),
        files.strays,
        "other-1.0.dist-info: no package has it, and what it names runs whenever",
    ),
    Stray(
        "a record in capitals of a package that torch imports",
        linked_record("other-1.0.DIST-INFO"),
        files.strays,
        "other-1.0.DIST-INFO: no package has it, and what it names runs whenever",
    ),
    Stray(
        "a linked folder of bytecode",
        linked_bytecode,
        files.strays,
        "demo/__pycache__: no package has it, and Python takes bytecode from where it leads",
    ),
    Stray(
        "an added package's .pth file to a folder with sitecustomize",
        start_in_another_folder,
        files.startup,
        "later.pth: is of later, and it runs at every start",
    ),
    Stray(
        "emptied activate",
        lambda small: small.write("activate"),
        files.present,
        "activate: empty",
    ),
    Stray(
        "a changed line of activate",
        lambda small: small.write("activate", b"export A=2\n"),
        files.present,
        "activate: changed since it was installed",
    ),
    Stray(
        "a file that nobody may read",
        lambda small: (small.site / "single.py").chmod(0),
        files.present,
        "single.py: cannot be read",
    ),
    Stray(
        "gcc",
        program("gcc"),
        files.strays,
        "bin/gcc: no package has it, and it is started",
    ),
    Stray("ptxas", program("ptxas"), files.strays, "bin/ptxas: no package has it"),
    Stray("ninja", program("ninja"), files.strays, "bin/ninja: no package has it"),
    Stray(
        "a compiler with a target in its name",
        program("x86_64-linux-gnu-g++-12"),
        files.strays,
        "g++-12: no package has it, and it is started in place of",
    ),
    Stray(
        "another python",
        program("python3.12"),
        files.strays,
        "bin/python3.12: no package",
    ),
    Stray(
        "a program of the machine's",
        program("ls"),
        files.strays,
        "bin/ls: no package has it",
    ),
    Stray(
        "a library among locked ones",
        lambda small: small.write(f"{SITE}/demo/lib/libz.so.1"),
        files.strays,
        "libz.so.1: no package has it, and the loader may take it",
    ),
    Stray(
        "a library where a locked one looks, and no folder was",
        lambda small: small.write(f"{SITE}/nowhere/lib/libother.so.2"),
        files.strays,
        "libother.so.2: no package has it, and the loader may take it",
    ),
    Stray(
        "a hook that activate runs",
        lambda small: small.write("etc/conda/activate.d/later.sh"),
        files.strays,
        "activate.d/later.sh: no package has it, and a shell runs it",
    ),
    Stray(
        "a hook that deactivate runs",
        lambda small: small.write("etc/conda/deactivate.d/later.sh"),
        files.strays,
        "deactivate.d/later.sh: no package has it, and a shell runs it",
    ),
    Stray(
        "a linked folder of hooks", linked_hooks, files.strays, "and a shell runs it"
    ),
    Stray(
        "an added package's module before a locked one",
        added({"single/__init__.py": b""}),
        files.strays,
        f"is of later, and Python takes it in place of {SITE}/single.py",
    ),
    Stray(
        "an added package's compiler",
        added({"../../../bin/cc": b"#!/bin/sh\n"}),
        files.strays,
        "bin/cc: is of later, and it is started in place of",
    ),
    Stray(
        "sitecustomize",
        lambda small: small.write(f"{SITE}/sitecustomize.py"),
        files.startup,
        "sitecustomize.py: no package has it, and it runs at every start",
    ),
    Stray(
        "usercustomize as a package",
        lambda small: small.write(f"{SITE}/usercustomize/__init__.py"),
        files.startup,
        "and it runs at every start",
    ),
    Stray(
        "a .pth file",
        lambda small: small.write(f"{SITE}/zz.pth", b"/somewhere\n"),
        files.startup,
        "zz.pth: no package has it",
    ),
    Stray(
        "an added package's .pth file with code",
        added({"later.pth": b"import os\n"}),
        files.startup,
        "later.pth: is of later, and it runs at every start",
    ),
    Stray(
        "pyvenv.cfg beside the interpreter",
        lambda small: small.write("bin/pyvenv.cfg"),
        files.startup,
        "bin/pyvenv.cfg: no package has it",
    ),
    Stray(
        "site-packages replaced by a link",
        link_out(SITE),
        files.present,
        f"{SITE}: is a link now, to ",
    ),
    Stray(
        "emptied constraints",
        lambda small: small.write("maximalcai-constraints.txt"),
        files.present,
        "maximalcai-constraints.txt: empty",
    ),
]


@pytest.mark.parametrize("stray", STRAYS, ids=[stray.name for stray in STRAYS])
def test_what_would_be_taken_first_or_run_is_a_failure_by_name(
    stray: Stray, small: SmallPrefix
) -> None:
    assert stray.check(small.context()).verdict == "pass"
    if stray.name == "an added package's compiler":
        add_executable(small, stray)
    else:
        stray.put(small)
    result = stray.check(small.context())
    assert result.verdict == "fail", result
    assert stray.said in "\n".join([result.summary, *result.details]), result
    assert result.remedy
    assert result.action


def add_executable(small: SmallPrefix, stray: Stray) -> None:
    stray.put(small)
    (small.path / "bin/cc").chmod(0o755)


@pytest.mark.parametrize("name", ["a .pth file", "gcc", "a hook that activate runs"])
def test_the_remedy_of_a_stray_mends_it(name: str, small: SmallPrefix) -> None:
    (stray,) = [stray for stray in STRAYS if stray.name == name]
    stray.put(small)
    subprocess.run(stray.check(small.context()).remedy, shell=True, check=True)
    assert stray.check(small.context()).verdict == "pass"


def test_what_harms_nobody_is_listed(small: SmallPrefix) -> None:
    """Own results, own programs, and an added package with a path in its .pth file."""
    small.write("results/loss.csv")
    small.write("notes.txt")
    small.write("bin/my-own-tool", b"#!/bin/sh\n", 0o755)
    add_package(
        small.path, "later", "1.0", {"later.py": b"", "later.pth": b"/somewhere\n"}
    )
    context = small.context()
    result = files.strays(context)
    assert result.verdict == "pass", result
    assert "bin/my-own-tool" in result.summary
    assert "results/" in result.summary
    assert files.startup(context).verdict == "pass"
    assert files.present(context).verdict == "pass"


def test_a_linked_record_that_names_no_plug_in_is_listed(small: SmallPrefix) -> None:
    """An own checkout's, linked by hand: without entry points, or with others."""
    elsewhere = small.path.parent / "record"
    elsewhere.mkdir()
    (small.site / "mine-1.0.dist-info").symlink_to(elsewhere)
    assert files.strays(small.context()).verdict == "pass"
    (elsewhere / "entry_points.txt").write_text("[console_scripts]\nmine = mine:main\n")
    assert files.strays(small.context()).verdict == "pass"


def test_a_linked_package_beside_condas_standard_library_runs_first(
    small: SmallPrefix,
) -> None:
    """Python looks there before it looks into site-packages."""
    small.become_condas()
    elsewhere = small.path.parent / "single"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").touch()
    (small.path / "lib/python3.11/single").symlink_to(elsewhere)
    result = files.startup(small.context())
    said = "\n".join([result.summary, *result.details])
    assert (
        "lib/python3.11/single: no package has it, and it runs at every start" in said
    )


def test_settings_that_people_add_to_pip_conf_are_listed(small: SmallPrefix) -> None:
    """Also between ours, where the file is another one byte for byte."""
    setting = guard_text(Prefix(small.path))
    small.write("pip.conf", setting.encode())
    small.take_inventory()
    small.write(
        "pip.conf", setting.replace("[install]", "[install]\nno-deps = false").encode()
    )
    result = files.present(small.context())
    assert result.verdict == "warn", result
    small.write("pip.conf", b"[install]\nno-deps = false\n")
    result = files.present(small.context())
    assert result.verdict == "fail", result
    assert "post_create.sh" in result.remedy, result


@pytest.mark.parametrize("place", ["after", "before"])
def test_lines_that_people_add_to_activate_are_listed(
    place: str, small: SmallPrefix
) -> None:
    content = b"export A=1\nexport HF_HOME=/workspace/hf\n"
    if place == "before":
        content = b"export HF_HOME=/workspace/hf\nexport A=1\n"
    small.write("activate", content)
    for check in (files.present, files.files):
        result = check(small.context())
        assert result.verdict == "warn", result
        assert "activate has lines that are not the set-up's" in result.summary


def test_what_ordinary_use_leaves_in_a_prefix_is_no_failure(small: SmallPrefix) -> None:
    """Packages with plugins that are loaded by name, a kernel of Jupyter's, results, caches."""
    entry_points = b"[console_scripts]\nlater = later:main\n[pandas_plotting_backends]\na = later\n"
    module = {
        "later/__init__.py": b"",
        "later-1.0.dist-info/entry_points.txt": entry_points,
    }
    add_package(
        small.path, "later", "1.0", {**module, "../../../bin/later": b"#!/bin/sh\n"}
    )
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
    assert result.summary == (
        "results: no package has it, it cannot be looked into (File name too long)"
    )
    assert (
        result.remedy == f"if you did not put it there: rm -r {small.path / 'results'}"
    )
    assert "results/deep/" in " ".join(
        own_paths(small.path) + context.contents.unlisted
    )
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


def test_a_line_of_a_pth_file_that_is_no_path_stops_no_check(
    small: SmallPrefix,
) -> None:
    lines = b"d" * 5000 + b"\n\0\n"
    add_package(small.path, "later", "1.0", {"later.pth": lines})
    assert files.startup(small.context()).verdict == "pass"


@pytest.mark.parametrize(
    "name", ["a\nverified: no check failed.pth", "a\x1b[2J'b\\.pth", "\udcff.pth"]
)
def test_a_name_that_would_change_the_screen_is_escaped_and_the_remedy_removes_it(
    name: str, small: SmallPrefix
) -> None:
    (small.site / name).write_text("import os\n")
    context = small.context()
    result = files.startup(context)
    result.check = "startup"
    out = io.StringIO()
    report = Report(out, grouped=True)
    report.begin(context, Scope(Level.QUICK, ("startup",), False))
    report.result(result)
    report.summary([result], 1.0)
    for text in (result.summary, result.remedy, *out.getvalue().splitlines()):
        assert text.isprintable(), text
    assert f"{SITE}/{printable(name)}: no package has it" in result.summary
    subprocess.run(["bash", "-c", result.remedy], check=True)
    assert files.startup(small.context()).verdict == "pass"


def test_a_name_of_ones_own_is_listed_in_one_line(small: SmallPrefix) -> None:
    small.write("bin/mine\n\x1b[2J")
    result = files.strays(small.context())
    assert "bin/mine\\n\\x1b[2J" in "\n".join([result.summary, *result.details])
    (small.site / "single.py").unlink()
    (small.site / "single.py").symlink_to("else\nwhere")
    assert "is a link now, to else\\nwhere" in files.present(small.context()).summary


def test_a_module_inside_a_locked_package_is_a_warning(small: SmallPrefix) -> None:
    small.write(f"{SITE}/demo/new.py")
    result = files.strays(small.context())
    assert result.verdict == "warn"
    assert "demo/new.py: no package has it, beside locked files" in result.summary


@pytest.mark.parametrize("tag", [RPATH, RUNPATH])
def test_where_a_library_looks_is_read_from_its_dynamic_section(
    tag: int, tmp_path: Path
) -> None:
    library = tmp_path / "libloader.so"
    library.write_bytes(elf("libother.so.2", "$ORIGIN:/opt/lib", tag))
    dynamic = read_dynamic(library)
    assert dynamic
    assert dynamic.needed == ("libother.so.2",)
    folders = ("$ORIGIN", "/opt/lib")
    assert (dynamic.rpath, dynamic.runpath) == (
        (folders, ()) if tag == RPATH else ((), folders)
    )
    for damaged in (b"", b"text", library.read_bytes()[:100]):
        library.write_bytes(damaged)
        found = read_dynamic(library)
        assert found is None or found.needed == ()
