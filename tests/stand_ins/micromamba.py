"""Stands in for micromamba where none can be had: the same command line, and it really installs, by hash.

    micromamba --version
    micromamba create --yes --no-rc -p PREFIX -f conda-lock.yml      (archives from $CONDA_PKGS_DIRS, never a network)
    micromamba install --yes --no-rc -p PREFIX -f conda-lock.yml     (into a folder with conda-meta/history)
    micromamba create --prefix PREFIX --dry-run --json ... --channel URL SPEC ...        (solves, for conda-lock)

TEST_MICROMAMBA=/path/to/micromamba makes the tests use a real one instead.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import rattler
import yaml
from rattler.exceptions import SolverError


def solve() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel", action="append", default=[])
    options, others = parser.parse_known_args(sys.argv[2:])
    channels = [
        rattler.Channel(url) for url in options.channel if url.startswith("http")
    ]  # not that of the virtual packages
    specs = [
        rattler.MatchSpec(word)
        for word in others
        if not word.startswith("-") and "/" not in word
    ]
    try:
        records = asyncio.run(
            rattler.solve(channels, specs, platforms=["linux-64", "noarch"])
        )
    except SolverError as error:
        print(json.dumps({"solver_problems": [str(error)], "success": False}))
        sys.stdout.flush()
        os._exit(1)
    actions = []
    for r in records:
        hashes = {
            "md5": r.md5.hex() if r.md5 else "",
            "sha256": r.sha256.hex() if r.sha256 else "",
        }
        channel, subdir, _ = r.url.rsplit("/", 2)
        actions.append(
            {
                "name": r.name.normalized,
                "version": str(r.version),
                "build": str(r.build),
                "build_string": str(r.build),
                "build_number": r.build_number,
                "url": r.url,
                "fn": r.file_name,
                "dist_name": r.file_name.rsplit(".", 1)[0],
                "channel": channel,
                "subdir": subdir,
                "depends": list(r.depends),
                "constrains": [],
                "size": r.size,
                **hashes,
            }
        )
    print(
        json.dumps(
            {
                "success": True,
                "dry_run": True,
                "actions": {"FETCH": actions, "LINK": actions},
            }
        )
    )


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        print("2.5.0")
        return
    if "--dry-run" in sys.argv:
        solve()
        sys.stdout.flush()
        os._exit(0)  # rattler's threads may crash at exit
    if sys.argv[1:2] == ["info"]:
        print(json.dumps({"pkgs_dirs": [], "conda_version": "99.0.0"}))
        return
    if (
        sys.argv[1] not in ("create", "install")
        or sys.argv[2:5] != ["--yes", "--no-rc", "-p"]
        or sys.argv[6] != "-f"
    ):
        sys.exit(f"stand-in micromamba: does not know {sys.argv[1:]}")
    prefix = Path(sys.argv[5])
    lock = Path(sys.argv[7])
    cache = Path(os.environ["CONDA_PKGS_DIRS"])
    if sys.argv[1] == "create":
        shutil.rmtree(prefix, ignore_errors=True)
    elif not (prefix / "conda-meta/history").exists():
        sys.exit("critical libmamba Expected environment not found at prefix")
    if not lock.name.endswith(("-lock.yml", "-lock.yaml")):
        return  # as micromamba does: an empty environment, exit status 0
    records = []
    urls = {}
    for package in yaml.safe_load(lock.read_text())["package"]:
        archive = cache / package["url"].rsplit("/", 1)[1]
        if not archive.exists():
            sys.exit(f"critical libmamba Download error: {package['url']}")
        content = archive.read_bytes()
        if hashlib.sha256(content).hexdigest() != package["hash"]["sha256"]:
            archive.unlink()
            sys.exit("critical libmamba Found incorrect downloads. Aborting")
        index = rattler.IndexJson.from_package_archive(archive)
        sha = bytes.fromhex(package["hash"]["sha256"])
        md5 = bytes.fromhex(package["hash"]["md5"])
        subdir = package["url"].split("/")[-2]
        record = rattler.PackageRecord(
            index.name,
            str(index.version),
            index.build,
            index.build_number,
            subdir,
            sha256=sha,
            md5=md5,
            size=len(content),
            depends=index.depends,
            noarch="python" if subdir == "noarch" else None,
        )
        records.append(
            rattler.RepoDataRecord(
                record, archive.name, archive.as_uri(), package["url"].rsplit("/", 2)[0]
            )
        )
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
