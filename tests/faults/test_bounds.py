"""A hostile or broken server: transfers end at their limit, slow sources are left, names cannot lead anywhere."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path

import pytest
from fixtures.fault_server import Fault, FaultServer, Handler
from lockedenv.backends import cache, download, uv_program
from lockedenv.backends.download import FetchError, Item
from lockedenv.cli.output import Steps
from lockedenv.errors import Stop
from lockedenv.host.places import default_cache
from lockedenv.spec.locks import PipPackage

NAME = "package-1.0-0.conda"
CONTENT = random.Random(1).randbytes(65_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / NAME).write_bytes(CONTENT)
    return tmp_path / "site"


def item(*servers: FaultServer, size: int = len(CONTENT), sha256: str = SHA256) -> Item:
    return Item(NAME, sha256, size, [f"{server.address}/{NAME}" for server in servers])


def fetch_quietly(wanted: Item, folder: Path, rounds: int = 2) -> int:
    return download.fetch([wanted], folder, Steps(1, True), rounds=rounds)


def send_without_end(sent: list[int], most: int = 200_000_000) -> Fault:
    """A body that does not end by itself before `most` bytes; `sent` gets the bytes that were taken."""

    def fault(handler: Handler, content: bytes, start: int) -> bool:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        block = content + bytes(1_000_000)
        sent.append(0)
        while sent[-1] < most:
            handler.wfile.write(block)
            sent[-1] += len(block)
        return True

    return fault


def send_slowly(bytes_a_second: int) -> Fault:
    def fault(handler: Handler, content: bytes, start: int) -> bool:
        handler.send_part(content, start, start)
        step = max(1, bytes_a_second // 10)
        for position in range(start, len(content), step):
            if handler.owner.stop.wait(0.1):
                break
            handler.wfile.write(content[position : position + step])
        return True

    return fault


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_body_without_end_is_cut_at_the_locked_size(
    site: Path, tmp_path: Path
) -> None:
    """65 kB that were sent without end filled the disk: 4.9 GB in 12 s."""
    sent: list[int] = []
    (site / NAME).write_bytes(b"another" * 10)
    with FaultServer(site) as server:
        server.fault = send_without_end(sent)
        with pytest.raises(
            FetchError, match=r"sent 65000 bytes of sha256 \w+..., not "
        ) as error:
            fetch_quietly(item(server), tmp_path / "pkgs")
    assert "after 2 attempts" in str(error.value)
    assert len(sent) == 2, "the server could not go on sending"
    assert max(sent) < 50_000_000, "the server could not go on sending"
    assert bytes_below(tmp_path / "pkgs") == 0


def test_what_is_right_up_to_the_locked_size_is_taken(
    site: Path, tmp_path: Path
) -> None:
    sent: list[int] = []
    with FaultServer(site) as server:
        server.fault = send_without_end(sent)
        assert fetch_quietly(item(server), tmp_path / "pkgs") == len(CONTENT)
    assert (tmp_path / "pkgs" / NAME).read_bytes() == CONTENT


def test_a_file_of_unknown_size_has_a_limit_too(site: Path, tmp_path: Path) -> None:
    sent: list[int] = []
    with FaultServer(site) as server:
        server.fault = send_without_end(sent)
        wanted = Item(NAME, SHA256, 0, [f"{server.address}/{NAME}"], limit=3_000_000)
        with pytest.raises(
            FetchError, match="sent more than 3 MB, the limit for a file of unkn"
        ):
            fetch_quietly(wanted, tmp_path / "pkgs")
    assert bytes_below(tmp_path / "pkgs") == 0


def test_a_part_of_a_killed_run_that_is_too_long_or_whole_is_settled_without_asking(
    site: Path, tmp_path: Path
) -> None:
    part = tmp_path / "pkgs" / f"{NAME}.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    with FaultServer(site) as server:
        fetch_quietly(item(server), tmp_path / "pkgs")
        assert not server.requests
        (tmp_path / "pkgs" / NAME).unlink()
        part.write_bytes(bytes(1_000_000))
        fetch_quietly(item(server), tmp_path / "pkgs")
    assert (tmp_path / "pkgs" / NAME).read_bytes() == CONTENT


def test_a_link_in_the_cache_is_not_written_through(site: Path, tmp_path: Path) -> None:
    (tmp_path / "pkgs").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "pkgs" / f"{NAME}.part").symlink_to(tmp_path / "thesis.tex")
    with FaultServer(site) as server:
        fetch_quietly(item(server), tmp_path / "pkgs")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "pkgs" / NAME).read_bytes() == CONTENT


# Slow sources ----------------------------------------------------------------------------------------------------


def test_a_slow_mirror_is_left_for_the_origin(site: Path, tmp_path: Path) -> None:
    """A mirror at 1 kB/s was never left: 65 kB took half a minute, 3 GB would take a month."""
    with FaultServer(site) as mirror, FaultServer(site) as origin:
        mirror.fault = send_slowly(3_000)
        began = time.monotonic()
        fetch_quietly(item(mirror, origin), tmp_path / "pkgs")
        assert time.monotonic() - began < 10
        assert mirror.requests[NAME] == 1
        assert origin.requests[NAME] == 1
        assert origin.started[0] > 0, "it goes on where the mirror was left"
    assert (tmp_path / "pkgs" / NAME).read_bytes() == CONTENT


def test_a_slow_mirror_is_not_asked_again_for_other_files(
    site: Path, tmp_path: Path
) -> None:
    contents = {
        f"package-{n}-0.conda": random.Random(n).randbytes(30_000) for n in range(40)
    }
    for name, content in contents.items():
        (site / name).write_bytes(content)
    with FaultServer(site) as mirror, FaultServer(site) as origin:
        mirror.fault = send_slowly(3_000)
        wanted = []
        for name, content in contents.items():
            sources = [f"{server.address}/{name}" for server in (mirror, origin)]
            sha256 = hashlib.sha256(content).hexdigest()
            wanted.append(Item(name, sha256, len(content), sources))
        download.fetch(wanted, tmp_path / "pkgs", Steps(1, True))
        assert mirror.requests.total() <= download.PARALLEL


def test_a_slow_source_without_another_is_kept(site: Path, tmp_path: Path) -> None:
    with FaultServer(site) as only, FaultServer(site) as gone:
        only.fault = send_slowly(30_000)
        gone.fault = lambda handler, content, start: handler.answer(404, b"") is None
        fetch_quietly(item(only), tmp_path / "one")
        assert only.requests[NAME] == 1
        only.requests.clear()
        fetch_quietly(item(only, gone), tmp_path / "two")
        assert (
            only.requests[NAME] == 2
        ), "left once, and asked again when the other has nothing"
    assert (tmp_path / "two" / NAME).read_bytes() == CONTENT


def test_two_slow_sources_give_the_file_together(site: Path, tmp_path: Path) -> None:
    with FaultServer(site) as one, FaultServer(site) as two:
        one.fault = send_slowly(20_000)
        two.fault = send_slowly(20_000)
        fetch_quietly(item(one, two), tmp_path / "pkgs")
        assert one.requests[NAME] + two.requests[NAME] <= 4
    assert (tmp_path / "pkgs" / NAME).read_bytes() == CONTENT


# What has another hash -------------------------------------------------------------------------------------------


def test_a_wrong_hash_in_a_lock_does_not_cost_the_right_archive(
    site: Path, tmp_path: Path
) -> None:
    """It was deleted before its successor was there: offline, the right lock then failed too."""
    with FaultServer(site) as server:
        fetch_quietly(item(server), tmp_path / "pkgs")
        with pytest.raises(FetchError):
            fetch_quietly(item(server, sha256="0" * 64), tmp_path / "pkgs")
        server.fault = lambda handler, content, start: handler.answer(503, b"") is None
        before = server.requests[NAME]
        assert fetch_quietly(item(server), tmp_path / "pkgs") == 0
        assert server.requests[NAME] == before
    assert (tmp_path / "pkgs" / NAME).read_bytes() == CONTENT


# Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../thesis.tex", "/etc/passwd", "..", ".", "", "a/b", "a\n", ".bashrc", "x.part"],
)
def test_an_item_has_a_plain_name(name: str) -> None:
    with pytest.raises(Stop, match="is not a plain file name"):
        Item(name, SHA256, 0, ["https://h.example/x"])


def test_a_package_index_does_not_choose_where_a_file_goes(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address ended in ..%2F..%2Fvictim%2Fthesis.tex: that file was deleted, and a .part written beside it."""
    pin = PipPackage("idna", "3.10", SHA256, len(CONTENT))
    victim = tmp_path / "victim/thesis.tex"
    victim.parent.mkdir()
    victim.write_text("years of work")

    def answer(handler: Handler, content: bytes, start: int) -> bool:
        if "thesis" in handler.path:
            handler.answer(200, CONTENT)
            return True
        file = {
            "filename": "idna-3.10-py3-none-any.whl",
            "url": f"{handler.owner.address}/files/..%2F..%2Fvictim%2Fthesis.tex",
            "hashes": {"sha256": SHA256},
        }
        page = {"meta": {"api-version": "1.0"}, "name": "idna", "files": [file]}
        body = json.dumps(page).encode()
        handler.answer(200, body, Content_Type="application/vnd.pypi.simple.v1+json")
        return True

    (site / "idna").write_text("")  # the server asks the fault for what is there alone
    uv = uv_program.bring_uv(default_cache(), Steps(1, True))
    with FaultServer(site) as server:
        monkeypatch.setenv("UV_DEFAULT_INDEX", server.address)
        server.fault = answer
        with pytest.raises(Stop):
            uv_program.fetch_files(
                [pin], tmp_path / "cache/wheels", uv, "3.11", Steps(1, True)
            )
    assert victim.read_text() == "years of work"
    assert [path.name for path in victim.parent.iterdir()] == ["thesis.tex"]
    assert cache.read_archive_hashes((tmp_path / "cache/wheels").glob("*.whl")) == {}
