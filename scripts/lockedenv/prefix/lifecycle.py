"""The life of a prefix: whose a folder is, what state it is in, how one takes another's place and how it comes back.

    absent -> making -> installed -> verified; changed: made from other locks; moved: its scripts name another place

A folder is ours if MARK lies in it and says that the set-up made it; it is written before anything else. What is not
ours is never renamed, emptied or deleted. While a successor is made, the old prefix is OLD, beside it; it is given up
only for a successor that was verified. docs/TECHNICAL_SETUP.md draws who moves a prefix from one state to another.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

from lockedenv.errors import Stop
from lockedenv.host.files import read_json, write_atomically
from lockedenv.host.locking import holding
from lockedenv.host.orphans import end_orphans
from lockedenv.prefix.records import CONSTRAINTS, added, file_sha256, own_files, read_prefix
from lockedenv.redaction import redact
from lockedenv.spec.environment import MARK, Environment
from lockedenv.spec.locks import PipPackage

ABSENT, MAKING, INSTALLED, VERIFIED = "absent", "making", "installed", "verified"
CHANGED, MOVED, FOREIGN, REMOVING = "changed", "moved", "foreign", "removing"
WORKS_ON = "MAXIMALCAI_WORKS_ON"
SETUP = "setup"  # in MARK: the set-up made the folder, and may remove it; anything else: it was there before


@dataclass(frozen=True)
class Prefix:
    """A place for an environment; `path` is absolute and holds no symbolic link."""

    path: Path

    @property
    def old(self) -> Path:
        return self.beside("old")

    def beside(self, suffix: str) -> Path:
        """A path beside the prefix, under its name: its lock, its predecessor, what is unpacked for it."""
        return self.path.with_name(f"{self.path.name}.{suffix}")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the prefix's lock; what a killed run has left working on it is ended first."""
        with holding(self.beside("maximalcai-lock"), f"the environment {self.path}"):
            end_orphans(f"{WORKS_ON}={self.path}")
            os.environ[WORKS_ON] = str(self.path)  # all that this run starts inherits it
            try:
                yield
            finally:
                del os.environ[WORKS_ON]

    def mark(self) -> Dict[str, Any]:
        return read_json(self.path / MARK)

    def write(self, **changes: Any) -> None:
        """Changes what the mark says; the file is there, whole, at every moment."""
        write_atomically(self.path / MARK, json.dumps({**self.mark(), **changes}, indent=1) + "\n")

    def ours(self, folder: Optional[Path] = None) -> bool:
        """Whether the set-up made a folder (the prefix, if none is named) as this prefix."""
        folder = folder or self.path
        if folder.is_symlink() or not (folder / MARK).is_file():
            return False
        mark = read_json(folder / MARK)
        return mark.get("made_by") == SETUP and (
            folder == self.path or mark.get("path") == str(self.path)
        )

    def state(self, digest: str = "") -> str:
        """The state. `digest` is of the locks that it should have been made from; without it, they count as unchanged."""
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return ABSENT
        if not self.ours():
            return FOREIGN
        mark = self.mark()
        if mark.get("state") != INSTALLED:
            return MAKING
        if moved_from(self.path):
            return MOVED
        changed = digest and mark.get("locks") != digest
        return CHANGED if changed else VERIFIED if verified(mark) else INSTALLED

    def recover(self) -> Optional[str]:
        """Puts right what a killed run has left; gives a line for people if there is something to say. Hold the lock."""
        if not self.ours(self.old):
            return None
        state = self.state()
        if read_json(self.old / MARK).get("state") == REMOVING or state == VERIFIED:
            return self.give_up(self.old)
        # Installed: it is to be verified; foreign: someone else's, the old one stays where it is.
        return self._old_back() if state in (ABSENT, MAKING) else None

    @contextlib.contextmanager
    def replacing(self, backend: str, environment: Environment) -> Iterator[None]:
        """The block makes the prefix anew. Until it is installed, whatever ends the block brings the old one back."""
        if self.old.exists() and any(self.old.iterdir()) and not self.ours(self.old):
            raise Stop(
                f"{self.old} is there and was not made by this script; move it away: the old environment goes there"
            )
        if self.state() == MAKING:
            remove(self.path)
        elif self.ours() and self.ours(self.old):  # two that are not verified: the older one stays
            print(
                self.give_up(self.path)
                or f"{self.path} is removed; the older one stays at {self.old}",
                file=sys.stderr,
            )
        elif self.ours():
            self.write(path=str(self.path))  # it may have been moved here
            self.path.rename(self.old)
            follow(self.path, self.old)
        # The folder appears with its mark in it: one that a kill has left is never without.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = Prefix(Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent)))
        new.path.chmod(0o755)
        new.write(
            made_by=SETUP,
            path=str(self.path),
            backend=backend,
            state=MAKING,
            made=time.time_ns(),
            environment=environment.argument,
        )
        new.path.rename(self.path)
        try:
            yield
        except BaseException:
            if self.state() == MAKING:
                remove(self.path)
                if self.ours(self.old):
                    print(self._old_back(), file=sys.stderr)
            raise

    def _old_back(self) -> str:
        said = None
        if self.ours() and self.mark().get("state") == INSTALLED:
            said = self.give_up(self.path)
        elif self.ours():
            remove(self.path)
        self.old.rename(self.path)  # over an empty folder, if there is one
        follow(self.old, self.path)
        return f"{f'{said}; ' if said else ''}the old environment is back at {self.path}"

    def settle(self, passed: bool, complete: bool) -> Optional[str]:
        """After a verification, decides which of two stays; says so, or None. `complete`: all that was asked for is there."""
        if not self.ours(self.old):
            return None
        if passed and complete:
            return self.give_up(self.old)
        if passed:
            return f"the old environment stays at {self.old} until all that was asked for is there"
        if not verified(read_json(self.old / MARK)):
            return f"neither the new environment nor the old one is verified; the old one stays at {self.old}"
        return f"the new environment did not verify; {self._old_back()}"

    def give_up(self, folder: Path) -> Optional[str]:
        """Removes an environment of ours, and moves to PREFIX.kept-TIME what in it is of no package. Gives a line for people."""
        mark, moved = read_json(folder / MARK), 0
        names = (
            f"kept-{time.strftime('%Y%m%d-%H%M%S')}{n and f'-{n}' or ''}" for n in itertools.count()
        )
        kept = next(self.beside(name) for name in names if not self.beside(name).exists())
        for path in [*own_files(folder), *edited(folder)] if mark.get("state") != REMOVING else []:
            target = kept / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            moved += 1
        write_atomically(folder / MARK, json.dumps({**mark, "state": REMOVING}) + "\n")
        remove(folder)
        text = f"{moved} files or folders of your own were in the environment that was removed; they are in {kept}"
        return text if moved else None


def verified(mark: Dict[str, Any]) -> bool:
    """Whether a mark says that all that was asked for is there, and that the last verification at each level passed."""
    verdicts = mark.get("verdicts", {}).values()
    return (
        bool(verdicts)
        and all(verdict.get("passed") for verdict in verdicts)
        and not mark.get("lacking")
    )


def added_as_shown(folder: Path) -> List[str]:
    """What was installed beyond the lock, without the secrets of its addresses: to be shown and noted."""
    return [redact(line) for line in added(read_prefix(folder))]


def record_verdict(folder: Path, level: str, good: bool, made: Any = None) -> None:
    """Notes the outcome of a whole verification in a prefix's mark, if it is still that of the environment `made` then."""
    mark = read_json(folder / MARK)
    if mark.get("state") == INSTALLED and mark.get("made") == made:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        verdict = {"passed": good, "time": now, "added": added_as_shown(folder)}
        with contextlib.suppress(OSError):
            Prefix(folder).write(verdicts={**mark.get("verdicts", {}), level: verdict})


def moved_from(folder: Path) -> Optional[str]:
    """The path that a prefix was made at, if it is another one: its scripts name that."""
    made = read_json(folder / MARK).get("path", "")
    with contextlib.suppress(OSError):  # nothing is there any more
        if not made or made == str(folder) or os.path.samefile(made, folder):
            return None
    return str(made)


def remove(folder: Path) -> None:
    """Empties a folder that has our mark, the mark last, so that a killed removal is still known as ours."""
    assert (folder / MARK).is_file(), folder
    for path in folder.iterdir():
        if path.name != MARK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / MARK).unlink()
    folder.rmdir()


def follow(before: Path, now: Path) -> None:
    """Lets this program go on if its own interpreter was in the folder that was renamed: in an activated environment."""

    def moved(place: str) -> str:
        real = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
        return str(now) + real[len(str(before)) :] if f"{real}/".startswith(f"{before}/") else place

    for name in ("executable", "_base_executable", "prefix", "exec_prefix"):
        setattr(sys, name, moved(getattr(sys, name, None) or ""))
    for places in [
        sys.path,
        *(
            m.__path__
            for m in list(sys.modules.values())
            if isinstance(getattr(m, "__path__", 0), list)
        ),
    ]:
        places[:] = map(moved, places)


def mounts_in(path: Path) -> List[str]:
    """What is mounted below a folder."""
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        places = [line.split()[1].replace("\\040", " ") for line in file]
    return [place for place in places if place.startswith(f"{path}/")]


def refuse(path: Path, backend: str, cache: Path) -> None:
    """Raises Stop for a place where no environment can work."""
    bad = sorted({c for c in str(path) if c in ":'\"\\$`;&|<>*?" or not c.isprintable()})
    if bad:
        raise Stop(
            f"{path}: the prefix has {' '.join(map(repr, bad))} in its name, which PATH or a script cannot hold; "
            "choose another --prefix"
        )
    length, inside = len(os.fsencode(path)), path / "maximalcai"
    if backend == "conda" and length > 255:
        raise Stop(
            f"the prefix has {length} characters, and conda packages have room for 255; choose a shorter --prefix"
        )
    if os.path.ismount(path):
        raise Stop(
            f"{path} is a mount point, which cannot be renamed; choose a folder in it, such as --prefix {inside}"
        )
    if path in [cache, *cache.parents]:
        raise Stop(
            f"the cache {cache} lies in the prefix {path}, and would go with it; choose another with --cache"
        )
    if path.exists() and not path.is_dir():
        raise Stop(f"{path} is there and is not a folder; choose another --prefix")


ACTIVATE = """\
# Enters the environment, in bash and zsh; `deactivate` leaves it.
if ! [ -e {prefix}/activate ]; then
  echo "this environment was made at "{prefix}", and has been moved: move it back" >&2
  return 1
fi
if command -v deactivate >/dev/null 2>&1; then deactivate >/dev/null 2>&1 || true; fi
_maximalcai_path=$PATH _maximalcai_ps1=${{PS1-}} _maximalcai_uv=${{UV_CONSTRAINT-}} _maximalcai_pip=${{PIP_CONSTRAINT-}}
_maximalcai_hooks() {{
  for _maximalcai_hook in $(command ls {prefix}/etc/conda/$1 2>/dev/null); do
    case $_maximalcai_hook in *.sh) . {prefix}/etc/conda/$1/$_maximalcai_hook ;; esac
  done
}}
export {variable}={prefix} PATH={prefix}/bin:$PATH
if [ -e {prefix}/pip.conf ]; then
  export UV_CONSTRAINT="${{UV_CONSTRAINT:+$UV_CONSTRAINT }}"{constraints}
  if [ -n "$_maximalcai_pip" ]; then export PIP_CONSTRAINT="$_maximalcai_pip "{constraints}; fi
fi
PS1="("{name}") ${{PS1-}}"
_maximalcai_hooks activate.d
deactivate() {{
  _maximalcai_hooks deactivate.d
  export PATH=$_maximalcai_path; PS1=$_maximalcai_ps1
  UV_CONSTRAINT=$_maximalcai_uv; if [ -z "$UV_CONSTRAINT" ]; then unset UV_CONSTRAINT; fi
  if [ -n "$_maximalcai_pip" ]; then PIP_CONSTRAINT=$_maximalcai_pip; fi
  unset {variable} _maximalcai_uv _maximalcai_pip _maximalcai_path _maximalcai_ps1 _maximalcai_hook
  unset -f deactivate _maximalcai_hooks
}}
"""


def write_activate(path: Path, backend: str) -> None:
    """PREFIX/activate: one way in for both backends, which needs nothing but the prefix."""
    variable = "CONDA_PREFIX" if backend == "conda" else "VIRTUAL_ENV"
    name, constraints = shlex.quote(path.name), (path / CONSTRAINTS).as_uri()
    text = ACTIVATE.format(
        variable=variable,
        prefix=shlex.quote(str(path)),
        name=name,
        constraints=shlex.quote(constraints),
    )
    write_atomically(path / "activate", text)
    Prefix(path).write(activate=file_sha256(path / "activate"))


def edited(path: Path) -> List[Path]:
    """What the set-up wrote for people, `activate` and `pip.conf`, if they have put something of theirs in."""
    mark, found = read_json(path / MARK), []
    if (sha := file_sha256(path / "activate")) and sha != mark.get("activate", sha):
        found.append(path / "activate")
    if (path / "pip.conf").is_file() and (path / "pip.conf").read_text(errors="replace") != guard(
        Path(mark.get("path", path))
    ):
        found.append(path / "pip.conf")
    return found


def guard(path: Path) -> str:
    """What the set-up writes into PREFIX/pip.conf."""
    return f"[install]\nconstraint = {(path / CONSTRAINTS).as_uri()}\n"


def write_guard(prefix: Prefix, locked: List[PipPackage]) -> None:
    """PREFIX/pip.conf, which pip reads for this prefix alone: what people install leaves what is locked, or stops.

    A pip.conf that names them already stays, and any in an environment of yours; another one is kept as pip.conf.old. The
    constraints are named as an address, because pip and uv split the setting at spaces. UV_CONSTRAINT of PREFIX/activate says
    the same to uv.
    """
    path, lines = prefix.path, [f"{pin.name}=={pin.version}\n" for pin in locked]
    write_atomically(
        path / CONSTRAINTS,
        "# What is locked; `rm pip.conf` beside this file lets pip replace it.\n" + "".join(lines),
    )
    there = (path / "pip.conf").read_text(errors="replace") if (path / "pip.conf").is_file() else ""
    if not there or prefix.ours() and guard(path).splitlines()[1] not in there.splitlines():
        if there:
            (path / "pip.conf").replace(path / "pip.conf.old")
        write_atomically(path / "pip.conf", guard(path))


def enter_text(path: Path) -> str:
    """The line that enters an environment, alone: it is copied."""
    return f"enter it with:  source {shlex.quote(str(path / 'activate'))}"
