"""buildah, which builds the Dockerfile for real, and runs what it has built where nothing can be written.

buildah keeps what it has in one folder, and each command has mounts of its own: that folder is all
that is to be removed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fixtures.commands import ROOT, sh
from lockedenv.backends import index as package_index

HERE = Path(__file__).parent
GIGABYTE = 10**9
NOT_COPIED = (".git", "__pycache__", ".*_cache")
# --disable-compression: each layer lies there 4 times otherwise.
OPTIONS = (
    "--format=docker",
    "--layers",
    "--network=host",
    "--disable-compression=false",
)


@dataclass(frozen=True)
class Image:
    """An image: its configuration as Docker has it, and the size of each layer, the lowest first."""

    name: str
    config: dict[str, Any]
    layers: dict[str, int]

    def gigabytes(self) -> list[str]:
        """The layers that are large."""
        return [digest for digest, size in self.layers.items() if size > GIGABYTE]


class Engine:
    """buildah, a copy of the project, and the machine's package index for the build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        for name in ("tmp", "root"):
            (folder / name).mkdir()
        # vfs, the other driver, copies 6 GB for each layer.
        places = f'graphroot = "{folder}/storage"\nrunroot = "{folder}/run"'
        configuration = f'[storage]\ndriver = "overlay"\n{places}\n'
        (folder / "storage.conf").write_text(configuration)
        self.environ = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "BUILDAH_ISOLATION": "chroot",
            "TMPDIR": f"{folder}/tmp",
        }
        shutil.copytree(ROOT, self.project, ignore=shutil.ignore_patterns(*NOT_COPIED))
        settings = package_index.index_settings(dict(os.environ))
        self.certificates = settings.get("SSL_CERT_FILE", os.devnull)
        self.index_volumes = self._write_index(settings)

    def _write_index(self, settings: dict[str, str]) -> list[str]:
        """The machine's package index as pip.conf; gives the options that show it to the build."""
        lines = ["[global]"]
        words: list[str] = []
        for name, uv_name in package_index.UV_NAMES.items():
            if uv_name in settings:
                lines.append(f"{name} = {settings[uv_name]}")
                words += settings[uv_name].split()
        (self.folder / "pip.conf").write_text("\n".join(lines) + "\n")
        volumes = [f"--volume={self.folder}/pip.conf:/etc/pip.conf:ro"]
        for word in words:
            path = Path(urlsplit(word).path)
            if word.startswith(("file:", "/")) and path.exists():
                # The files of an index lie beside it.
                shown = path.parent if path.name == "simple" else path
                volumes.append(f"--volume={shown}:{shown}:ro")
        return list(dict.fromkeys(volumes))

    def sh(
        self, script: str, *arguments: Any, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "--mount", "bash", "-euc", script, "bash", *arguments]
        return sh(*command, check=check, env=self.environ)

    def make_base(self) -> None:
        """The image that the Dockerfile begins with."""
        self.sh((HERE / "make_base.sh").read_text(), self.certificates)

    def build(self, target: str, **arguments: str) -> Image:
        """The image of a target. `arguments`: build arguments."""
        given = {
            "BASE": "localhost/base",
            "BACKEND": "pip",
            "FLASH_ATTN": "none",
            **arguments,
        }
        words = [f"--build-arg={name}={value}" for name, value in given.items()]
        names = [f"--target={target}", f"--tag={target}"]
        self.sh(
            'buildah build "$@"',
            *OPTIONS,
            *names,
            *words,
            *self.index_volumes,
            self.project,
        )
        inspected = self.sh('buildah inspect --type image "$1"', target).stdout
        found = json.loads(inspected)["Docker"]
        known = json.loads(
            (self.folder / "storage/overlay-layers/layers.json").read_text()
        )
        sizes = {}
        for layer in known:
            if "diff-digest" in layer:
                sizes[layer["diff-digest"]] = layer["diff-size"]
        layers = {digest: sizes[digest] for digest in found["rootfs"]["diff_ids"]}
        return Image(target, found["config"], layers)

    def run(
        self, image: Image, command: Sequence[str], before: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as the image's user in its folder with its variables.

        `before` may change its files, which lie in $root.
        """
        read_only = (HERE / "run_read_only.sh").read_text()
        script = f'root=$(buildah mount "$(buildah from "$1")")\n{before}\n{read_only}'
        config = image.config
        place = [image.name, self.folder / "root", config["WorkingDir"], config["User"]]
        return self.sh(script, *place, *config["Env"], *command, check=False)
