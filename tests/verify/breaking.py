"""Ways to break a real environment, one fault at a time, and what must be seen of each."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, Callable, NamedTuple

from fixtures.commands import clean_environ, sh
from fixtures.conda_environment import CondaEnvironment

SITE = "lib/python3.11/site-packages"
Break = Callable[[CondaEnvironment], Any]


class Fault(NamedTuple):
    """`do` breaks a copy of the environment; `check` then fails, and says `said`."""

    name: str
    check: str
    said: str
    do: Break
    environ: dict[str, str] = {}
    options: list[str] = []


def meta(env: CondaEnvironment, name: str) -> Path:
    return next(
        p
        for p in (env.prefix / "conda-meta").glob(f"{name}-*.json")
        if json.loads(p.read_text())["name"] == name
    )


def record(name: str, **changes: Any) -> Break:
    """Changes fields of a package's conda record."""

    def do(env: CondaEnvironment) -> None:
        path = meta(env, name)
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return do


def removed(name: str) -> Break:
    return lambda env: meta(env, name).unlink()


def dist(name: str, version: str, text: str = "") -> Break:
    """Puts a distribution there as pip would."""

    def do(env: CondaEnvironment) -> None:
        info = env.prefix / SITE / f"{name}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            text or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (info / "INSTALLER").write_text("pip\n")
        (info / "RECORD").write_text("")

    return do


def undist(name: str) -> Break:
    return lambda env: shutil.rmtree(
        next((env.prefix / SITE).glob(f"{name}-*.dist-info"))
    )


def both(*steps: Break) -> Break:
    def do(env: CondaEnvironment) -> None:
        for step in steps:
            step(env)

    return do


def uv(*arguments: str) -> Break:
    def do(env: CondaEnvironment) -> None:
        sh(
            env.prefix / "bin/uv",
            "pip",
            *arguments,
            "--python",
            env.prefix / "bin/python",
            env=clean_environ(),
        )

    return do


def link(path: str, target: str) -> Break:
    def do(env: CondaEnvironment) -> None:
        (env.prefix / path).unlink(missing_ok=True)
        (env.prefix / path).symlink_to(target)

    return do


def write(path: str, change: Callable[[bytes], bytes]) -> Break:
    """Rewrites a file of the prefix, in a new file: the old one is linked with the cache."""

    def do(env: CondaEnvironment) -> None:
        target = env.prefix / path
        content = b""
        mode = 0o644
        if target.exists():
            content = target.read_bytes()
            mode = target.stat().st_mode
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(change(content))
        target.chmod(mode)

    return do


def lock(path: str, change: Callable[[str], str]) -> Break:
    return lambda env: (env.project / path).write_text(
        change((env.project / path).read_text())
    )


def module(code: str) -> Break:
    """A tokenizers package that does this when it is imported by its check's child."""
    return write(f"{SITE}/tokenizers/__init__.py", lambda _: code.encode())


def write_info(name: str, file: str, change: Callable[[bytes], bytes]) -> Break:
    """Rewrites a file of a distribution's dist-info."""

    def do(env: CondaEnvironment) -> None:
        path = next((env.prefix / SITE).glob(f"{name}-*.dist-info")) / file
        content = change(path.read_bytes())
        path.unlink()
        path.write_bytes(content)

    return do


def editable(name: str) -> Break:
    """`pip install -e` of an altered package that says that it is of the locked version."""

    def do(env: CondaEnvironment) -> None:
        info = next((env.prefix / SITE).glob(f"{name}-*.dist-info"))
        source = env.prefix.parent / "altered"
        source.mkdir()
        (source / f"{name}.py").write_text("altered = True\n")
        version = info.name.split("-")[1][: -len(".dist")]
        (source / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "{version}"\n[tool.setuptools]\npy-modules = ["{name}"]\n'
        )
        options = [
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "-e",
            source,
        ]
        sh(env.prefix / "bin/python", "-m", "pip", *options, env=clean_environ())

    return do


def owned_by(name: str, path: str) -> Break:
    """A distribution of no lock whose RECORD names a file of site-packages, with its hash."""

    def do(env: CondaEnvironment) -> None:
        dist(name, "1.0")(env)
        digest = (
            base64.urlsafe_b64encode(
                hashlib.sha256((env.prefix / SITE / path).read_bytes()).digest()
            )
            .decode()
            .rstrip("=")
        )
        (env.prefix / SITE / f"{name}-1.0.dist-info/RECORD").write_text(
            f"{path},sha256={digest},1\n{name}-1.0.dist-info/RECORD,,\n"
        )

    return do


def flip(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


CHILD = ["--only", "tokenizers"]
FILES = ["--only", "files"]
STRAYS = ["--only", "strays"]


def assert_seen(fault: Fault, broken: CondaEnvironment) -> None:
    """The named check fails, says what is wrong and what to do, and no other check says it."""
    fault.do(broken)
    environ = {
        name: value.format(prefix=broken.prefix)
        for name, value in fault.environ.items()
    }
    options = fault.options or ["--level", "quick"]
    done = broken.verify("--verbose", *options, **environ)
    assert done.returncode == 1, done.stdout
    failures = read_failures(done.stdout)
    assert fault.check in failures, done.stdout
    shown = done.stdout[done.stdout.index(f"FAIL  {fault.check} ") :].split("\nPASS")[0]
    assert fault.said in shown, shown
    assert "\n      > " in shown, "no remedy"
    if (
        fault.check != "locks"
    ):  # where a lock cannot be read, other checks say why they are of no use
        saying = [name for name in failures if fault.said in failures[name]]
        assert saying == [fault.check], done.stdout


def read_failures(said: str) -> dict[str, str]:
    """What the verifier says of each check that failed, with the lines below it."""
    failures = {}
    for text in re.split("^(?=[A-Z]+  [a-z])", said, flags=re.MULTILINE):
        word, _, rest = text.partition("  ")
        if word == "FAIL":
            failures[rest.split()[0]] = text
    return failures
