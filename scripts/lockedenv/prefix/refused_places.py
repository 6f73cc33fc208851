"""The places where no environment can be: a name that PATH cannot hold, a mount point, a folder
that has the cache in it. It changes nothing.

`place.py` limits the length of a name.
"""

from __future__ import annotations

import os
from pathlib import Path

from lockedenv.errors import Stop
from lockedenv.prefix.place import Prefix, linked_environment, refuse_long_name


def refuse_place(prefix: Prefix, cache: Path) -> None:
    """Raises Stop for a place where no environment can work."""
    name = prefix.public_path
    refuse_long_name(name)
    bad = _unusable_characters(name)
    if bad:
        raise Stop(
            f"{name}: the prefix has {' '.join(bad)} in its name, which PATH, a "
            "script or triton's compiler cannot hold; choose another --prefix"
        )
    if os.path.ismount(name) and not name.is_symlink():
        raise Stop(
            f"{name} is a mount point, which cannot be replaced; choose a folder in it, such as "
            f"--prefix {name / 'maximalcai'}"
        )
    container = prefix.container
    if os.path.lexists(container) and (
        container.is_symlink() or not container.is_dir()
    ):
        raise Stop(
            f"{container} is not a folder, and the environments would lie in it; move it away, or "
            "choose another --prefix"
        )
    if os.path.ismount(container):
        raise Stop(
            f"{container} is a mount point, and {name} could not lead into it; choose a folder in "
            f"it, such as --prefix {container / 'maximalcai'}"
        )
    for folder in (name, container, prefix.path):
        if folder in [cache, *cache.parents]:
            raise Stop(
                f"the cache {cache} lies in the prefix {folder}, and would be removed with it; "
                "choose another with --cache"
            )
    if name.exists() and not name.is_dir():
        raise Stop(f"{name} is there and is not a folder; choose another --prefix")
    if name.is_symlink() and not name.exists() and not linked_environment(name):
        raise Stop(
            f"{name} is a symbolic link that leads nowhere; remove it, or choose another --prefix"
        )


def _unusable_characters(path: Path) -> list[str]:
    """The characters of a path that PATH, a script or a compiler cannot hold, in words, sorted.

    A space is among them: triton 3.1 gives the path of its ptxas to a shell without quotes, and
    the first line of a conda script cannot hold one.
    """
    found = set()
    for character in str(path):
        if character in " :'\"\\$`;&|<>*?" or not character.isprintable():
            found.add("a space" if character == " " else repr(character))
    return sorted(found)
