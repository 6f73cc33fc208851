"""The inventory: every path that the set-up installed, and what differs from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from lockedenv.prefix import make_inventory
from lockedenv.prefix.compare_inventory import (
    PathDifference,
    PathProblem,
    compare_full,
    compare_quick,
    times_changed_wholesale,
    unlisted_paths,
)
from lockedenv.prefix.interpreter import hash_library, read_interpreter
from lockedenv.prefix.inventory import (
    INVENTORY,
    Inventory,
    InventoryEntry,
    InventoryError,
    Package,
    PathKind,
    read_inventory,
    write_inventory,
)
from lockedenv.prefix.make_inventory import take_inventory, without_reinstalled
from lockedenv.spec.layers import Layer
from small_environment import IDNA, SITE, add_wheel, fill


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A small environment of the pip backend."""
    return fill(tmp_path / "env")


def test_every_path_of_the_set_up_is_listed_with_its_package(prefix: Path) -> None:
    entries = take_inventory(prefix, [IDNA]).entries_by_path()
    assert entries[f"{SITE}/idna/core.py"] == InventoryEntry(
        f"{SITE}/idna/core.py",
        PathKind.FILE,
        4,
        (prefix / SITE / "idna/core.py").stat().st_mtime_ns,
        False,
        digest(b"two\n"),
        "",
        "idna",
    )
    assert entries["bin/idna"].executable
    assert entries["bin/idna"].package == "idna"
    assert entries["lib64"].target == "lib"
    assert entries["lib64"].kind is PathKind.LINK
    assert entries["bin/python"].target == sys.executable
    assert entries["activate"].sha256 == digest(b"export A=1\n")
    assert entries["pip.conf"].sha256
    assert entries["pyvenv.cfg"].sha256
    assert entries[f"{SITE}/idna-3.10.dist-info/RECORD"].sha256
    assert entries[SITE].kind is PathKind.FOLDER
    assert unlisted_paths(prefix, take_inventory(prefix, [IDNA])) == []


def test_only_files_without_a_recorded_hash_are_read(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    hashes = make_inventory.hashes

    def noting(paths: object) -> dict[Path, str]:
        listed = list(paths)  # type: ignore[call-overload]
        read.extend(path.name for path in listed)
        return hashes(listed)

    monkeypatch.setattr(make_inventory, "hashes", noting)
    take_inventory(prefix, [IDNA])
    assert sorted(read) == ["RECORD", "activate", "pip.conf", "pyvenv.cfg"]


def test_what_people_add_is_not_listed(prefix: Path) -> None:
    add_wheel(prefix, "six", "1.16.0", {"six.py": b"six\n"})
    (prefix / "results").mkdir()
    (prefix / "results/loss.csv").touch()
    (prefix / "notes").mkdir()
    (prefix / SITE / "idna/__pycache__").mkdir()
    (prefix / SITE / "idna/__pycache__/core.cpython-311.pyc").touch()
    (prefix / SITE / "idna/__pycache__/mine.txt").touch()
    (prefix / SITE / "idna/core.cpython-311-x86_64-linux-gnu.so").touch()
    assert unlisted_paths(prefix, take_inventory(prefix, [IDNA])) == [
        f"{SITE}/idna/__pycache__/mine.txt",
        f"{SITE}/idna/core.cpython-311-x86_64-linux-gnu.so",
        f"{SITE}/six-1.16.0.dist-info/METADATA",
        f"{SITE}/six-1.16.0.dist-info/RECORD",
        f"{SITE}/six.py",
        "notes",
        "results/loss.csv",
    ]


def damage(prefix: Path, path: str, problem: PathProblem) -> None:
    place = prefix / path
    if problem is PathProblem.MISSING:
        place.unlink()
    elif problem is PathProblem.KIND:
        place.unlink()
        place.symlink_to("elsewhere.py")
    elif problem is PathProblem.SIZE:
        place.write_bytes(b"another size\n")
    elif problem is PathProblem.TIME:
        os.utime(place, ns=(0, 0))
    elif problem is PathProblem.EXECUTABLE:
        place.chmod(0o644)
    elif problem is PathProblem.TARGET:
        place.unlink()
        place.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "path, problem",
    [
        (f"{SITE}/idna/core.py", PathProblem.MISSING),
        (f"{SITE}/idna/core.py", PathProblem.KIND),
        (f"{SITE}/idna/core.py", PathProblem.SIZE),
        (f"{SITE}/idna/core.py", PathProblem.TIME),
        ("bin/idna", PathProblem.EXECUTABLE),
        ("lib64", PathProblem.TARGET),
        ("activate", PathProblem.SIZE),
    ],
)
def test_the_quick_comparison_names_each_damage(
    prefix: Path, path: str, problem: PathProblem
) -> None:
    taken = take_inventory(prefix, [IDNA])
    assert compare_quick(prefix, taken) == []
    damage(prefix, path, problem)
    found = compare_quick(prefix, taken)
    package = taken.entries_by_path()[path].package
    assert found == [PathDifference(path, problem, package)]


def test_a_folder_that_became_a_link_is_named(prefix: Path) -> None:
    """What a link in place of site-packages leads to has the same names, sizes and times."""
    taken = take_inventory(prefix, [IDNA])
    (prefix / SITE).rename(prefix.parent / "elsewhere")
    (prefix / SITE).symlink_to(prefix.parent / "elsewhere")
    assert compare_quick(prefix, taken) == [PathDifference(SITE, PathProblem.KIND)]


def test_a_file_that_is_shorter_than_its_record_when_it_is_listed_is_named(
    prefix: Path,
) -> None:
    (prefix / SITE / "idna/core.py").write_bytes(b"")
    taken = take_inventory(prefix, [IDNA])
    found = compare_quick(prefix, taken)
    assert found == [PathDifference(f"{SITE}/idna/core.py", PathProblem.SIZE, "idna")]


def test_the_full_comparison_reads_the_content_and_leaves_the_time(
    prefix: Path,
) -> None:
    path = prefix / SITE / "idna/core.py"
    taken = take_inventory(prefix, [IDNA])
    status = path.stat()
    os.utime(prefix / "pip.conf", ns=(0, 0))
    path.write_bytes(b"odd\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [d.problem for d in compare_quick(prefix, taken)] == [PathProblem.TIME]
    assert compare_full(prefix, taken) == [
        PathDifference(f"{SITE}/idna/core.py", PathProblem.CONTENT, "idna")
    ]


def test_times_that_changed_wholesale_are_known_as_such(prefix: Path) -> None:
    taken = take_inventory(prefix, [IDNA])
    os.utime(prefix / "pip.conf", ns=(0, 0))
    assert not times_changed_wholesale(taken, compare_quick(prefix, taken))
    copy = prefix.with_name("copy")
    shutil.copytree(prefix, copy, symlinks=True, copy_function=shutil.copyfile)
    assert times_changed_wholesale(taken, compare_quick(copy, taken))


def test_an_inventory_comes_back_as_it_was_written(prefix: Path) -> None:
    assert read_inventory(prefix) is None
    taken = take_inventory(prefix, [IDNA])
    write_inventory(prefix, taken)
    assert read_inventory(prefix) == taken


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "it is not JSON"),
        ("[]", "its schema_version is not 1"),
        ('{"schema_version": 1}', "it is of another shape"),
        (
            '{"schema_version":1,"made":1,"interpreter":null,"packages":[],"entries":[["a"]]}',
            "shape",
        ),
        (
            '{"schema_version":1,"made":1,"interpreter":null,"packages":[],'
            '"entries":[["../x","f",1,1,0,"","",-1]]}',
            "the path '../x' leads out of the prefix",
        ),
        (
            '{"schema_version":1,"made":1,"interpreter":[],"packages":[],"entries":[]}',
            "it is of another shape",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_a_damaged_inventory_names_file_and_remedy(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / INVENTORY).write_text(text)
    with pytest.raises(InventoryError) as caught:
        read_inventory(tmp_path)
    message = str(caught.value)
    assert said in message
    assert f"scripts/post_create.sh --prefix {tmp_path}" in message


def test_a_pipe_is_not_waited_for(prefix: Path) -> None:
    os.mkfifo(prefix / INVENTORY)
    with pytest.raises(InventoryError, match="it is not a regular file"):
        read_inventory(prefix)
    record = prefix / SITE / "idna-3.10.dist-info/RECORD"
    record.unlink()
    os.mkfifo(record)
    assert (
        f"{SITE}/idna/core.py" not in take_inventory(prefix, [IDNA]).entries_by_path()
    )


def test_a_record_that_leads_out_of_the_prefix_lists_nothing_there(
    prefix: Path,
) -> None:
    record = prefix / SITE / "idna-3.10.dist-info/RECORD"
    record.write_text(f"../../../../thesis.tex,,\n/etc/passwd,,\n{record.read_text()}")
    paths = take_inventory(prefix, [IDNA]).entries_by_path()
    assert f"{SITE}/idna/core.py" in paths
    assert not [path for path in paths if "thesis" in path or "passwd" in path]


def test_25_000_paths_are_read_and_compared_in_less_than_half_a_second(
    folder: Path,
) -> None:
    entries = []
    for number in range(25_000):
        path = f"{SITE}/package{number // 250}/module_{number}.py"
        if number % 250 == 0:
            (folder / path).parent.mkdir(parents=True)
        (folder / path).touch()
        entries.append(
            InventoryEntry(
                path,
                PathKind.FILE,
                0,
                (folder / path).stat().st_mtime_ns,
                False,
                "0" * 64,
            )
        )
    write_inventory(folder, Inventory((IDNA,), tuple(entries)))
    seconds = []
    for _ in range(5):
        started = time.process_time()
        inventory = read_inventory(folder)
        assert inventory is not None
        assert compare_quick(folder, inventory) == []
        seconds.append(time.process_time() - started)
    print(f"{min(seconds):.2f} s")
    assert min(seconds) < 0.5


def test_the_machines_interpreter_is_known_by_its_standard_library(
    tmp_path: Path,
) -> None:
    found = read_interpreter(Path(sys.executable))
    assert found.version == sys.version.split()[0]
    assert found.build in " ".join(sys.version.split())
    assert Path(found.folder, "os.py").is_file()
    assert len(found.sha256) == 64
    library = tmp_path / "python3.11"
    library.mkdir()
    (library / "os.py").write_text("1\n")
    zipped = tmp_path / "python311.zip"
    whole = hash_library([library], zipped)
    (library / "__pycache__").mkdir()
    (library / "__pycache__/os.cpython-311.pyc").touch()
    (library / "site-packages").mkdir()
    (library / "site-packages/x.py").touch()
    assert hash_library([library], zipped) == whole
    (library / "sitecustomize.py").touch()
    assert hash_library([library], zipped) != whole, "it runs at every start"
    (library / "sitecustomize.py").unlink()
    zipped.touch()
    assert hash_library([library], zipped) != whole, "Python looks there first"
    zipped.unlink()
    (library / "os.py").write_text("2\n")
    assert hash_library([library], zipped) != whole


def test_the_file_has_one_path_a_line(prefix: Path) -> None:
    taken = take_inventory(prefix, [IDNA])
    write_inventory(prefix, taken)
    text = (prefix / INVENTORY).read_text()
    assert len(text.splitlines()) == len(taken.entries) + 2
    assert json.loads(text)["packages"] == [["idna", "3.10", "a" * 64, "pip"]]


def test_what_was_installed_again_by_conda_is_taken_anew(tmp_path: Path) -> None:
    """In an environment that people made: an earlier inventory held the old record against it for good."""
    package = Package("tqdm", "4.67.1", "b" * 64, Layer.CONDA)
    record = add_conda_package(tmp_path, package, b"one\n")
    first = take_inventory(tmp_path, [package])
    record.write_text(record.read_text().replace('"build": "0"', '"build":  "0"'))
    os.utime(tmp_path / "lib/tqdm.py", ns=(1, 1))
    kept = take_inventory(tmp_path, [package], earlier=first)
    assert {difference.path for difference in compare_quick(tmp_path, kept)} == {
        "lib/tqdm.py",
        "conda-meta/tqdm-4.67.1-0.json",
    }
    anew = take_inventory(
        tmp_path, [package], earlier=without_reinstalled(first, tmp_path)
    )
    assert compare_quick(tmp_path, anew) == []
    (tmp_path / "lib/tqdm.py").write_bytes(b"six\n")
    assert [difference.path for difference in compare_full(tmp_path, anew)] == [
        "lib/tqdm.py"
    ]


def add_conda_package(prefix: Path, package: Package, content: bytes) -> Path:
    """Puts a conda package of one file into an environment; gives its record."""
    (prefix / "lib").mkdir()
    (prefix / "lib/tqdm.py").write_bytes(content)
    (prefix / "conda-meta").mkdir()
    path = {"_path": "lib/tqdm.py", "path_type": "hardlink", "sha256": digest(content)}
    document = {
        "name": package.name,
        "version": package.version,
        "build": "0",
        "channel": "conda-forge",
        "sha256": package.sha256,
        "paths_data": {"paths": [path]},
    }
    record = prefix / f"conda-meta/{package.name}-{package.version}-0.json"
    record.write_text(json.dumps(document))
    return record
