"""What lock.sh writes is what is read, by this project, by YAML and by conda-lock."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conda_lock.lockfile import parse_conda_lock_file
from fixtures.commands import ROOT
from fixtures.version_tables import copy_tables
from lockedenv.lock import version_table, write
from lockedenv.lock.write import conda_lock_text, requirements_text, write_locks
from lockedenv.spec import locks
from lockedenv.spec.environment import WHEELS_OVER_CONDA, list_environments
from lockedenv.spec.locks import PipPackage, read_seal

LOCK = ROOT / "conda-lock.yml"


def test_reading_agrees_with_yaml_and_with_conda_lock() -> None:
    data = yaml.safe_load(LOCK.read_text())
    read = locks.read_conda_lock(LOCK)
    parsed = parse_conda_lock_file(LOCK)
    assert read.content_hash == data["metadata"]["content_hash"]["linux-64"]
    assert read.content_hash == parsed.metadata.content_hash["linux-64"]
    found = [(p.name, p.version, p.url, p.md5, p.sha256) for p in read.packages]
    assert len(found) > 90
    by_conda_lock = [
        (p.name, p.version, p.url, p.hash.md5, p.hash.sha256) for p in parsed.package
    ]
    assert sorted(found) == sorted(by_conda_lock)
    by_yaml = []
    for p in data["package"]:
        by_yaml.append(
            (p["name"], p["version"], p["url"], p["hash"]["md5"], p["hash"]["sha256"])
        )
    assert found == by_yaml
    dependencies = {p["name"]: p["dependencies"] for p in data["package"]}
    assert {p.name: p.dependencies for p in parsed.package} == dependencies


def test_what_is_written_is_what_is_read() -> None:
    data = yaml.safe_load(LOCK.read_text())
    read = locks.read_conda_lock(LOCK)
    for package, entry in zip(read.packages, data["package"]):
        entry["size"] = package.size
    assert sum(package.size > 0 for package in read.packages) > 90
    assert conda_lock_text(data, read_seal(LOCK).specification) == LOCK.read_text()


def test_what_json_escapes_means_the_same_in_yaml() -> None:
    data = yaml.safe_load(LOCK.read_text())
    for entry in data["package"]:
        entry["size"] = 0
    first = data["package"][0]
    first["dependencies"] = {"a": '# "b": {c}, [d] - \\ \u00e9 \n'}
    written = yaml.safe_load(conda_lock_text(data))["package"][0]
    assert written == {name: value for name, value in first.items() if name != "size"}


def test_a_lock_of_wheels_is_read_as_it_was_written(tmp_path: Path) -> None:
    packages = [
        PipPackage("zebra", "2", "ab" * 32, 7, "cd" * 32),
        PipPackage("ape", "1", "ef" * 32),
        PipPackage("bee", "3", "12" * 32, 9),
    ]
    path = tmp_path / "pip.txt"
    path.write_text(requirements_text(WHEELS_OVER_CONDA, packages, "3.11", "34" * 32))
    assert locks.read_pip_lock(path) == [packages[1], packages[2], packages[0]]
    seal = read_seal(path)
    assert seal.specification == "34" * 32
    assert seal.content == locks.content_digest(path.read_text())


def test_nothing_is_replaced_before_everything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.txt").write_text("old")
    write_text = Path.write_text

    def full(path: Path, text: str, **options: str) -> int:
        if path.name.startswith("two"):
            raise OSError(28, "No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(write.Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_locks(tmp_path, {"one.txt": "new", "two.txt": "new"})
    assert (tmp_path / "one.txt").read_text() == "old"


def test_the_table_of_versions_is_written_between_its_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = copy_tables(tmp_path, monkeypatch)
    texts = [table.document.read_text() for table in tables]
    assert version_table.find_stale_tables(list_environments()) == []
    for table in tables:
        table.write("| new |\n")
        assert table.read() == "| new |\n"
    stale = version_table.find_stale_tables(list_environments())
    assert [path.name for path in stale] == ["TECHNICAL_SETUP.md", "README.md"]
    version_table.write_tables(list_environments())
    assert [table.document.read_text() for table in tables] == texts
    tables[-1].document.write_text("no marks\n")
    with pytest.raises(
        version_table.Stop, match="the marks around the table of versions are gone"
    ):
        version_table.write_tables(list_environments())
