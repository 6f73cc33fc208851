"""The conda layer: its channels, its archives by hash, and micromamba, which makes a prefix of them."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List, Optional

from lockedenv.backends import download as fetch
from lockedenv.backends import kept
from lockedenv.cli.options import Options
from lockedenv.errors import Stop
from lockedenv.host.machine import same_filesystem, size_text
from lockedenv.host.process import ask, clean, holding, run
from lockedenv.output import Steps
from lockedenv.redaction import redact
from lockedenv.spec import locks
from lockedenv.spec.environment import CONDA_LOCK

# conda-forge's archive of micromamba; 2.5.0 is the version whose installing of a lock was studied.
MICROMAMBA = locks.CondaPackage(
    "micromamba",
    "2.5.0",
    "https://conda.anaconda.org/conda-forge/linux-64/micromamba-2.5.0-1.tar.bz2",
    "389eb59ea20333bf6993e7b7c2f43428",
    "4ae6e5cdff233616c94d4bb69cf77a572d67b0b227073de12c3aa0ff23795ded",
    6647388,
)


def archive_items(
    packages: List[locks.CondaPackage], mirrors: List[str], offline: Optional[Path] = None
) -> List[fetch.Item]:
    """The archives to fetch: from the offline folder, or from the mirrors first and then from the address in the lock."""
    items = []
    for p in packages:
        online = [*(fetch.address(mirror, p.url) for mirror in mirrors), p.url]
        items.append(
            fetch.Item(
                p.filename,
                p.sha256,
                p.size,
                [(offline / "pkgs" / p.filename).as_uri()] if offline else online,
            )
        )
    return items


def channel_problem(packages: List[locks.CondaPackage], mirrors: List[str]) -> Optional[str]:
    """Which of the packages' channels does not answer, and how; None if all do."""
    if not shutil.which("curl"):
        return "curl is not installed (apt-get install curl)"
    smallest = {p.channel: p for p in sorted(packages, key=lambda p: -p.size)}
    curl = "curl --disable --netrc-optional --config - --head --location --fail --silent --show-error".split()
    curl += ["--connect-timeout", "5", "--max-time", "10", "--output", os.devnull]

    def ask_for(package: locks.CondaPackage) -> Optional[str]:
        for source in archive_items([package], mirrors)[0].sources:
            status, _, said = ask(curl, input=f'url = "{source}"\n')
            if status == 0:
                return None
        return f"the channel {package.channel} does not answer ({redact(' '.join(said.split()))})"

    with ThreadPoolExecutor(len(smallest)) as pool:
        return next(filter(None, pool.map(ask_for, smallest.values())), None)


def fetch_archives(options: Options, steps: Steps) -> Path:
    """Every archive of the conda layer into the cache, whole and right; gives micromamba. Raises FetchError or Stop."""
    items, folder = (
        archive_items([*options.of.conda(), MICROMAMBA], options.mirrors, options.offline),
        options.cache / "pkgs",
    )
    rounds = 1 if options.offline else fetch.ROUNDS
    got = fetch.fetch(
        items[:-1], folder, steps.note, steps.quiet, rounds, kept.known
    )  # micromamba hashes all that it unpacks
    got += fetch.fetch(
        items[-1:], folder, steps.note, steps.quiet, rounds
    )  # itself is hashed by nobody else
    total = sum((folder / item.name).stat().st_size for item in items)
    steps.note(
        f"{len(items)} archives, {size_text(total)}, hashes right; {size_text(got)} fetched now"
    )
    return kept.program(
        folder / MICROMAMBA.filename,
        "bin/micromamba",
        f"micromamba-{MICROMAMBA.sha256[:12]}",
        options.cache,
    )


def create(options: Options, micromamba: Path, steps: Steps) -> None:
    """Makes the prefix, in which our mark lies, of the archives in the cache. Raises Stop if it fails or leaves less.

    With --force, what the cache holds unpacked is not used.
    """
    prefix, cache, anew, packages = options.target, options.cache, options.force, options.of.conda()
    root, archives, together = cache / "mamba", cache / "pkgs", same_filesystem(cache, prefix.path)
    # Unpacking makes 100,000 small files, slow on a network volume, and they could not be linked into the prefix.
    unpacked = archives if together else prefix.beside("maximalcai-pkgs")
    root.mkdir(parents=True, exist_ok=True)
    # Without a history micromamba takes the folder for someone else's; `create` would empty it, our mark included.
    (prefix.path / "conda-meta").mkdir()
    (prefix.path / "conda-meta/history").touch()
    with holding(cache / "pkgs.lock", f"the cache {cache}"):
        if together:
            folders = [archives / p.stem for p in packages]
            for path in filter(os.path.lexists, folders if anew else []):
                kept.discard(path)
            for path in kept.drop_changed(cache, folders):
                kept.discard(path)
        else:
            shutil.rmtree(unpacked, ignore_errors=True)
            unpacked.mkdir()
            for package in packages:
                (unpacked / package.filename).symlink_to(archives / package.filename)
        # HOME too: micromamba lists every prefix in ~/.conda/environments.txt.
        environ = clean(
            dict(os.environ),
            CONDA_PKGS_DIRS=str(unpacked),
            MAMBA_ROOT_PREFIX=str(root),
            HOME=str(root),
        )
        command = [
            micromamba,
            "install",
            "--yes",
            "--no-rc",
            "-p",
            prefix.path,
            "-f",
            options.of.folder / CONDA_LOCK,
        ]
        try:
            run(command, environ, "micromamba install", steps.quiet, disk=prefix.path)
            if together:
                kept.note(cache, [archives / p.stem for p in packages])
        except Stop:
            (cache / kept.HASHES).unlink(
                missing_ok=True
            )  # it may have found an archive not as noted: the next run reads all
            raise
        finally:
            if not together:
                shutil.rmtree(unpacked, ignore_errors=True)
    missing = [p.name for p in packages if not (prefix.path / f"conda-meta/{p.stem}.json").exists()]
    if missing or not (prefix.path / "bin/python").exists():
        raise Stop(
            f"micromamba said it was done, and {len(missing)} packages are missing ({', '.join(missing[:3])}...); "
            f"remove {archives}, and run again"
        )
