"""Stands in for micromamba where none can be had: the same command line, and it really installs, by hash.

    micromamba --version
    micromamba create --yes --no-rc -p PREFIX -f conda-lock.yml      (archives from $CONDA_PKGS_DIRS, never a network)
    micromamba install --yes --no-rc -p PREFIX -f conda-lock.yml     (into a folder with conda-meta/history)

TEST_MICROMAMBA=/path/to/micromamba makes the tests use a real one instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import rattler
import yaml


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        print("2.5.0")
        return
    if sys.argv[1] not in ("create", "install") or sys.argv[2:5] != ["--yes", "--no-rc", "-p"] or sys.argv[6] != "-f":
        sys.exit(f"stand-in micromamba: does not know {sys.argv[1:]}")
    prefix, lock, cache = Path(sys.argv[5]), Path(sys.argv[7]), Path(os.environ["CONDA_PKGS_DIRS"])
    if sys.argv[1] == "create":
        shutil.rmtree(prefix, ignore_errors=True)
    elif not (prefix / "conda-meta/history").exists():
        sys.exit("critical libmamba Expected environment not found at prefix")
    if not lock.name.endswith(("-lock.yml", "-lock.yaml")):
        return  # as micromamba does: an empty environment, exit status 0
    records, urls = [], {}
    for package in yaml.safe_load(lock.read_text())["package"]:
        archive = cache / package["url"].rsplit("/", 1)[1]
        if not archive.exists():
            sys.exit(f"critical libmamba Download error: {package['url']}")
        content = archive.read_bytes()
        if hashlib.sha256(content).hexdigest() != package["hash"]["sha256"]:
            archive.unlink()
            sys.exit("critical libmamba Found incorrect downloads. Aborting")
        index = rattler.IndexJson.from_package_archive(archive)
        sha, md5 = bytes.fromhex(package["hash"]["sha256"]), bytes.fromhex(package["hash"]["md5"])
        subdir = package["url"].split("/")[-2]
        record = rattler.PackageRecord(
            index.name, str(index.version), index.build, index.build_number, subdir, sha256=sha, md5=md5,
            size=len(content), depends=index.depends, noarch="python" if subdir == "noarch" else None,
        )  # fmt: skip
        records.append(rattler.RepoDataRecord(record, archive.name, archive.as_uri(), package["url"].rsplit("/", 2)[0]))
        urls[package["name"]] = package["url"]
    asyncio.run(rattler.install(records, prefix, cache_dir=cache, show_progress=False))
    for path in (prefix / "conda-meta").glob("*.json"):
        data = json.loads(path.read_text())
        data["url"] = urls[data["name"]]
        data["channel"] = urls[data["name"]].rsplit("/", 2)[0]
        path.write_text(json.dumps(data))
    (prefix / "conda-meta/history").touch()


if __name__ == "__main__":
    main()
