"""A remedy is a command for this very prefix: run on the damage that it is printed for, it mends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import pytest
from breaking import SITE, Break, flip, write
from fixtures.commands import clean_environ, sh
from fixtures.conda_environment import CondaEnvironment
from lockedenv.prefix.inventory import INVENTORY, InventoryError, read_inventory
from lockedenv.prefix.mark import MadeBy, Mark, State, write_mark
from lockedenv.spec.layers import BackendName
from lockedenv.verify.remedies import (
    RemedyKind,
    rebuild_command,
    remove_command,
    repair_command,
    verify_command,
)


@pytest.mark.parametrize(
    "damage",
    [
        write(f"{SITE}/idna/core.py", flip),
        write("maximalcai-constraints.txt", lambda content: b""),
        write("activate", lambda content: content[100:]),
        write("pip.conf", lambda content: b"[global]\n"),
        write(f"{SITE}/zz.pth", lambda content: b"import os"),
    ],
    ids=["a wheel's file", "constraints", "activate", "pip.conf", "a stray"],
)
def test_the_printed_remedy_mends_the_damage(
    damage: Break, broken: CondaEnvironment, tmp_path: Path
) -> None:
    damage(broken)
    remedies = find_remedies(broken, tmp_path / "before.json")
    assert len(remedies) == 1, remedies
    # The stand-in of torch passes no check of the full level, which the command ends with.
    sh("bash", "-c", remedies[0], check=False, env=clean_environ(), cwd="/")
    assert find_remedies(broken, tmp_path / "after.json") == []


def find_remedies(environment: CondaEnvironment, target: Path) -> list[str]:
    """The different remedies of the failures at the quick level that follow from no other one."""
    environment.verify("--level", "quick", "--json", str(target))
    found = {}
    for result in json.loads(target.read_text())["results"]:
        if result["verdict"] == "fail" and not result["follows_from"]:
            found[result["remedy"]] = None
    return list(found)


@pytest.fixture
def marked(tmp_path: Path) -> Callable[[Mark], Path]:
    def mark_folder(mark: Mark) -> Path:
        write_mark(tmp_path, mark)
        return tmp_path

    return mark_folder


def test_the_set_ups_prefix_is_rebuilt_where_it_is_of_its_environment_and_backend(
    marked: Callable[[Mark], Path],
) -> None:
    mark = Mark(
        MadeBy.SETUP, State.INSTALLED, backend=BackendName.PIP, environment="current"
    )
    prefix = marked(mark)
    command = rebuild_command(prefix)
    options = f"--prefix {prefix} --environment current --force --backend pip"
    assert command.endswith(f"scripts/setup_runpod_environment.sh {options}")
    assert repair_command(prefix).endswith(
        f"scripts/post_create.sh --prefix {prefix} --environment current"
    )


def test_a_prefix_that_people_made_is_made_again_as_they_made_it(
    marked: Callable[[Mark], Path],
) -> None:
    prefix = marked(Mark(MadeBy.PEOPLE, State.INSTALLED))
    assert rebuild_command(prefix).startswith(f"python3 -m venv --clear {prefix} && ")
    (prefix / "conda-meta").mkdir()
    assert rebuild_command(prefix).startswith(
        "python3 -m venv "
    ), "anybody can make such a folder"
    (prefix / "conda-meta/history").touch()
    create, repair = rebuild_command(prefix).split(" && ")
    assert create.startswith(f"micromamba create -y -p {prefix} -f ")
    assert create.endswith("/conda-lock.yml")
    assert repair == repair_command(prefix)


def test_the_least_destructive_action_comes_first() -> None:
    assert list(RemedyKind) == [
        RemedyKind.REMOVE,
        RemedyKind.REPAIR,
        RemedyKind.REBUILD,
    ]


def made_beside(
    place: Path, name: str, made: int, state: State = State.INSTALLED
) -> Path:
    """An environment of this PREFIX, in PREFIX.d."""
    folder = place.with_name(f"{place.name}.d") / name
    folder.mkdir(parents=True)
    mark = Mark(
        MadeBy.SETUP,
        state,
        path=str(folder),
        id=name,
        backend=BackendName.PIP,
        made=made,
    )
    write_mark(folder, mark)
    return folder


def test_a_remedy_names_the_prefix_as_people_do(tmp_path: Path) -> None:
    """PREFIX.d/ID is removed at the next rebuild, and a copied remedy led to nothing."""
    place = tmp_path / "env"
    used = made_beside(place, "0" * 8, 2)
    place.symlink_to(used)
    for folder in (used, place):
        assert repair_command(folder).endswith(f"--prefix {place}")
        assert f"--prefix {place} " in rebuild_command(folder)
        assert verify_command(folder).startswith(f"{place}/bin/python ")
        assert remove_command(folder, ["a"]) == f"rm -r {place}/a"
    with pytest.raises(InventoryError, match=f"--prefix {place}$"):
        (used / INVENTORY).write_text("[]")
        read_inventory(used)


def test_a_remedy_of_what_the_prefix_does_not_lead_to_names_its_own_folder(
    tmp_path: Path,
) -> None:
    place = tmp_path / "env"
    used = made_beside(place, "0" * 8, 2)
    place.symlink_to(used)
    earlier = made_beside(place, "1" * 8, 1)
    assert repair_command(earlier).endswith(f"--prefix {earlier}")
    # The set-up works on a successor that is not verified yet, but PREFIX does not lead to it.
    successor = made_beside(place, "2" * 8, 3)
    assert repair_command(successor).endswith(f"--prefix {place}")
    assert verify_command(successor).startswith(f"{successor}/bin/python ")
    assert remove_command(successor, ["a"]) == f"rm -r {successor}/a"
