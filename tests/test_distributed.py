"""The check across ranks: real processes under torchrun with gloo, in the real environment."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from conftest import ROOT, clean_environ, sh
from lockedenv.provenance import ranks as distributed
from lockedenv.provenance.ranks import (
    BETWEEN,
    INSIDE,
    SHOWN,
    WIDTH,
    Meeting,
    judge,
    nodes_of,
    rounds,
    table,
    values,
)

PROGRAM = ROOT / "scripts/verify_environment.py"
ENVIRON = clean_environ(OMP_NUM_THREADS="1")


def torchrun(prefix: Path, *options: Any) -> List[str]:
    return [str(x) for x in (prefix / "bin/python", "-m", "torch.distributed.run", *options)]


@pytest.fixture
def other(pip_environment: Path, tmp_path: Path) -> Path:
    """The same environment in another place, of links, but with another version of idna."""
    prefix = tmp_path / "other"
    sh("cp", "-al", pip_environment, prefix)
    metadata = next(prefix.glob("lib/python3.11/site-packages/idna-*.dist-info")) / "METADATA"
    text = metadata.read_text()
    metadata.unlink()
    metadata.write_text(re.sub("^Version: .*", "Version: 3.0", text, flags=re.M))
    return prefix


def test_ranks_that_agree(pip_environment: Path) -> None:
    ranks = 2
    command = [
        *torchrun(pip_environment, "--nproc-per-node", ranks, PROGRAM, "--distributed"),
        "--gpu",
        "off",
    ]
    done = sh(*command, check=False, env={**ENVIRON, "RUNPOD_GPU_COUNT": "8"})
    assert done.returncode == 0, done.stdout
    assert f"{ranks} ranks" in done.stdout and f" 0-{ranks - 1} " in done.stdout
    assert (
        "give the right values, fp32 and bf16" in done.stdout
        and "the same environment on every rank" in done.stdout
    )
    assert len(re.findall(r"^  all_reduce +[\d.]+ MiB +[\d.]+ GB/s$", done.stdout, re.M)) == 3
    assert (
        re.search(r"^  \S+ +inside the node [\d.]+ GB/s$", done.stdout, re.M)
        and "slower" not in done.stdout
    )


@pytest.mark.parametrize(
    "options, environ, said",
    [
        ([], {"RUNPOD_GPU_COUNT": "8"}, "no nvidia-smi (RUNPOD_GPU_COUNT=8)"),
        (["--gpu", "require"], {}, "no GPU found, and --gpu require was given"),
    ],
)
def test_ranks_without_the_gpus_that_they_should_have_do_not_pass(
    options: List[str], environ: Dict[str, str], said: str, pip_environment: Path
) -> None:
    """Nodes that had all lost their driver agreed over the CPU."""
    command = [
        *torchrun(pip_environment, "--nproc-per-node", 1, PROGRAM, "--distributed"),
        *options,
    ]
    done = sh(*command, check=False, env={**ENVIRON, **environ})
    assert done.returncode == 1 and said in done.stdout, done.stdout
    assert "NOT on every GPU: a node that should have GPUs has none that works" in done.stdout


def launcher(tmp_path: Path, code: str) -> Path:
    """A program for torchrun that does something to one rank, then runs the verifier."""
    path = tmp_path / "launch.py"
    path.write_text(
        f"import os, sys, runpy\nrank = int(os.environ['RANK'])\nPROGRAM = {str(PROGRAM)!r}\n"
        f"{code}\nsys.argv = [PROGRAM, '--distributed', *sys.argv[1:]]\nrunpy.run_path(PROGRAM, run_name='__main__')\n"
    )
    return path


def test_a_rank_with_another_package_is_named(
    pip_environment: Path, other: Path, tmp_path: Path
) -> None:
    """Rank 1 runs in the other prefix, which has another version of one package."""
    python = other / "bin/python"
    code = f"if rank == 1: os.execv({str(python)!r}, [{str(python)!r}, PROGRAM, '--distributed'])"
    done = sh(
        *torchrun(pip_environment, "--nproc-per-node", 2, launcher(tmp_path, code)),
        check=False,
        env=ENVIRON,
    )
    assert done.returncode == 1, done.stdout
    assert re.search(
        r"rank [01] on \S+ is not like the others:\n  packages idna \(pip\): others .*, here ",
        done.stdout,
    ), done.stdout
    assert "NOT the same environment on every rank" in done.stdout
    # Every rank exits 1, not rank 0 alone.
    assert (
        len(set(re.findall(r"rank\s+: (\d)", done.stdout))) >= 1 and "exitcode  : 1" in done.stdout
    )


def test_a_rank_killed_during_the_check_is_named(pip_environment: Path, tmp_path: Path) -> None:
    code = (
        "sys.path.insert(0, os.path.dirname(PROGRAM))\n"
        "from lockedenv.provenance import ranks as distributed\n"
        "if rank == 1: distributed.collectives = lambda *a: os.kill(os.getpid(), 9)\n"
    )
    done = sh(
        *torchrun(pip_environment, "--nproc-per-node", 3, launcher(tmp_path, code)),
        check=False,
        env=ENVIRON,
    )
    assert done.returncode == 1
    assert re.search(
        r"rank 0: rank 1 \(\S+\) died or hangs in `collectives`", done.stdout
    ), done.stdout


def test_a_rank_that_never_joins_is_named(pip_environment: Path, tmp_path: Path) -> None:
    code = "if rank == 1: import time; time.sleep(600)"
    command = torchrun(
        pip_environment, "--nproc-per-node", 2, launcher(tmp_path, code), "--timeout", "15"
    )
    done = sh(*command, check=False, env=ENVIRON)
    assert done.returncode == 1
    assert (
        "rank 0: rank 1 did not get to `arrived` within 15 s: dead, hanging, or not started"
        in done.stdout
    ), done.stdout


def test_a_rank_that_hangs_in_the_collectives_is_named(
    pip_environment: Path, tmp_path: Path
) -> None:
    code = (
        "sys.path.insert(0, os.path.dirname(PROGRAM))\n"
        "from lockedenv.provenance import ranks as distributed\n"
        "import signal, time\n"  # SIGTERM ends it: torchrun would wait 30 s before it kills
        "if rank == 1: distributed.in_thread = lambda *a: (signal.signal(15, signal.SIG_DFL), time.sleep(600))\n"
    )
    command = torchrun(
        pip_environment, "--nproc-per-node", 2, launcher(tmp_path, code), "--timeout", "15"
    )
    done = sh(*command, check=False, env=ENVIRON)
    assert done.returncode == 1 and re.search(
        r"rank 0: rank 1 \(\S+\) died or hangs in `collectives`", done.stdout
    ), done.stdout


def test_wrong_values_are_seen(pip_environment: Path, tmp_path: Path) -> None:
    code = (
        "import torch.distributed as dist\n"
        "right = dist.all_reduce\n"
        "if rank == 1: dist.all_reduce = lambda x: (right(x), x.mul_(2))\n"
    )
    done = sh(
        *torchrun(pip_environment, "--nproc-per-node", 2, launcher(tmp_path, code)),
        check=False,
        env=ENVIRON,
    )
    assert done.returncode == 1
    assert (
        "all_reduce of float32 gives wrong values on rank 1" in done.stdout
        and "the collectives are WRONG" in done.stdout
    )


def agents(prefixes: List[Path], ranks: int, *command: Any) -> "subprocess.CompletedProcess[str]":
    """As many torchrun agents as prefixes, with a rendezvous between them; what all said, and their one exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "x"]
    options = ["--nnodes", len(prefixes), "--nproc-per-node", ranks, *meeting, *command]
    pipes: Dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [
        subprocess.Popen(torchrun(prefix, *options), env=ENVIRON, **pipes) for prefix in prefixes
    ]
    said = "".join(node.communicate()[0] for node in nodes)
    statuses = {node.returncode for node in nodes}
    assert len(statuses) == 1, said
    return subprocess.CompletedProcess(options, statuses.pop(), said)


def test_two_nodes_each_with_its_own_prefix(pip_environment: Path, other: Path) -> None:
    """Two torchrun agents with a rendezvous between them."""
    done = agents([pip_environment, other], 1, PROGRAM, "--distributed")
    assert done.returncode == 1 and re.search(
        "^NOT the same environment on every rank$", done.stdout, re.M
    ), done.stdout
    assert "slower" not in done.stdout  # two nodes and one link: whose fault it is, nobody knows
    assert "packages idna (pip)" in done.stdout


def test_a_slow_node_is_named(pip_environment: Path, tmp_path: Path) -> None:
    """One of three, the last of which has the same environment in a prefix of its own."""
    sh("cp", "-al", pip_environment, tmp_path / "same")
    code = (
        "import time, torch.distributed as dist\n"
        "right = dist.all_reduce\n"
        "if os.environ['GROUP_RANK'] == '1': dist.all_reduce = lambda *a, **k: (time.sleep(0.1), right(*a, **k))\n"
    )
    done = agents(
        [pip_environment, pip_environment, tmp_path / "same"], 2, launcher(tmp_path, code)
    )
    assert done.returncode == 0, done.stdout  # it is told, and no more
    assert "the same environment on every rank" in done.stdout
    assert (
        len(
            re.findall(
                r"^  \S+ \(group \d\) +inside the node [\d.]+ GB/s  between nodes [\d.]+ GB/s$",
                done.stdout,
                re.M,
            )
        )
        == 3
    )
    slower = re.findall(
        r"^\S+ \(group (\d)\) is slower (.*): [\d.]+ GB/s, the median is [\d.]+ GB/s; look at ",
        done.stdout,
        re.M,
    )
    assert slower == [("1", INSIDE), ("1", BETWEEN)], done.stdout


def test_a_rank_that_hangs_in_the_bandwidth_is_named_after_the_verdict(
    pip_environment: Path, tmp_path: Path
) -> None:
    code = (
        "sys.path.insert(0, os.path.dirname(PROGRAM))\n"
        "from lockedenv.provenance import ranks as distributed\n"
        "import signal, time\n"
        "right, hang = distributed.in_thread, lambda: (signal.signal(15, signal.SIG_DFL), time.sleep(600))\n"
        "if rank == 1: distributed.in_thread = lambda work, seconds: right(work, seconds) if seconds == 15 else hang()\n"
    )
    command = torchrun(
        pip_environment, "--nproc-per-node", 2, launcher(tmp_path, code), "--timeout", "15"
    )
    done = sh(*command, check=False, env=ENVIRON)
    assert done.returncode == 1
    assert re.search(
        r"give the right values(.|\n)*rank 0: rank 1 \(\S+\) died or hangs in `bandwidth`",
        done.stdout,
    ), done.stdout


def test_a_link_that_hangs_is_named_within_its_own_limit(
    pip_environment: Path, tmp_path: Path
) -> None:
    """Three ranks as three nodes; the link between the first two hangs."""
    code = (
        "sys.path.insert(0, os.path.dirname(PROGRAM))\n"
        "os.environ['GROUP_RANK'] = str(rank)\n"
        "from lockedenv.provenance import ranks as distributed\n"
        "import time, torch.distributed as dist\n"
        "distributed.BANDWIDTH_SECONDS = 8.0\n"
        "right = dist.all_reduce\n"
        "if rank == 1: dist.all_reduce = lambda x, group=None: time.sleep(600) if group else right(x)\n"
    )
    done = sh(
        *torchrun(pip_environment, "--nproc-per-node", 3, launcher(tmp_path, code)),
        check=False,
        env=ENVIRON,
    )
    assert done.returncode == 1
    late = r"rank 2: rank 0 \(\S+\), rank 1 \(\S+\) did not get to `bandwidth step 2, between nodes` within [5-8] s: dead, hanging"
    assert re.search(late, done.stdout), done.stdout


class Store:
    """A stand-in for torch's store, which counts the keys that it is asked for. Where torch's would wait, this raises."""

    def __init__(self) -> None:
        self.values: Dict[str, bytes] = {}
        self.asked: List[str] = []
        self.lock, self.mine = threading.RLock(), threading.local()

    def count(self, *keys: str) -> None:
        if not getattr(self.mine, "uncounted", False):
            self.asked += keys

    def set(self, key: str, value: str) -> None:
        with self.lock:
            self.count(key)
            self.values[key] = value.encode()

    def append(self, key: str, value: str) -> None:
        with self.lock:
            self.count(key)
            self.values[key] = self.values.get(key, b"") + value.encode()

    def check(self, keys: List[str]) -> bool:
        with self.lock:
            self.count(*keys)
            return all(key in self.values for key in keys)

    def multi_get(self, keys: List[str]) -> List[bytes]:
        with self.lock:
            self.count(*keys)
            return [self.values[key] for key in keys]

    def get(self, key: str) -> bytes:
        return self.multi_get([key])[0]

    def until(self, true: Callable[[], bool], *_: Any, **__: Any) -> bool:
        """In place of `until`: counts one look for each wait, the one that ends it. How often it looks is a matter of time."""
        self.mine.uncounted = True
        while not true():
            time.sleep(0.01)
        self.mine.uncounted = False
        return true()


def manifest_of(rank: int, odd: bool) -> Dict[str, Any]:
    packages = [
        {
            "name": "idna",
            "version": "3.0" if odd else "3.1",
            "build": f"of-{rank}",
            "channel": "",
            "manager": "pip",
            "hash": "",
        }
    ]
    empty: Dict[str, Any] = {
        "cuda": {"nccl": None},
        "variables": {},
        "machine": {},
        "locks": {},
        "gpus": [],
    }
    return {**empty, "fingerprint": f"other-{rank}" if odd else "usual", "packages": packages}


def together(world: int, work: Callable[[int], Any]) -> List[Any]:
    """What `work` gives for each rank, in threads of their own."""
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, range(world)))


def meet_all(world: int, odd: List[int], monkeypatch: pytest.MonkeyPatch) -> "tuple[Store, str]":
    """The store after a meeting of many ranks, eight to a node, and what rank 0 told."""
    store, told = Store(), [""]
    monkeypatch.setattr(distributed, "until", store.until)

    def tell(*lines: str) -> None:
        told[0] += "\n".join(lines) + "\n"

    def rank_of(rank: int) -> Any:
        manifest, meeting = manifest_of(rank, rank in odd), Meeting(store, rank, world)
        identity = [manifest["fingerprint"], "none", "none", "none"]
        me = {"node": f"node-{rank // 8}", "group": f"{rank // 8}", "identity": identity}
        meeting.reach("manifest", json.dumps(manifest))
        return json.loads(
            meeting.exchange("arrived", json.dumps(me), 60, lambda: table(meeting, tell))
        )

    wanted = [
        not odd,
        {f"node-{node}": list(range(8 * node, 8 * node + 8)) for node in range(world // 8)},
        False,
    ]
    assert together(world, rank_of) == [wanted] * world
    return store, told[0]


@pytest.mark.parametrize("odd", [[], [3, 60]])
def test_what_the_meeting_costs_is_linear(odd: List[int], monkeypatch: pytest.MonkeyPatch) -> None:
    (small, _), (large, _) = (meet_all(world, odd, monkeypatch) for world in (64, 128))
    assert 64 < len(small.asked) and len(large.asked) <= 2.2 * len(small.asked)


def test_what_a_lost_rank_costs_is_linear_and_every_other_rank_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each but one gets to a stage and gives up there; all have met before."""
    costs = []
    for world in (64, 128):
        store, barrier = Store(), threading.Barrier(world - 1)
        monkeypatch.setattr(
            distributed, "until", lambda true, *_, **__: (barrier.wait(60), true())[1]
        )

        def give_up(rank: int) -> str:
            meeting = Meeting(store, rank, world)
            if rank != 5:
                with pytest.raises(ProcessLookupError) as error:
                    meeting.exchange("a stage", "", 7)
                return str(error.value)
            return ""

        for rank in range(world):
            Meeting(store, rank, world).reach("arrived", '{"node": "node-b"}')
        store.asked.clear()
        said = {*together(world, give_up)} - {""}
        assert said == {
            "rank 5 (node-b) did not get to `a stage` within 7 s: dead, hanging, or not started"
        }
        costs.append(len(store.asked))
    assert costs[1] <= 2.2 * costs[0]


def test_a_rank_0_that_does_not_answer_is_named_and_one_that_is_late_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store()
    first, second = (Meeting(store, rank, 2) for rank in range(2))
    first.reach("arrived", '{"node": "node-a"}')
    monkeypatch.setattr(distributed, "GRACE", 0.1)
    with pytest.raises(
        ProcessLookupError, match=r"^rank 0 \(node-a\) did not get to `arrived` within 0 s"
    ):
        second.exchange("arrived", '{"node": "node-b"}', 0)
    monkeypatch.setattr(distributed, "GRACE", 60)
    first.reach("next")
    late = threading.Timer(0.2, store.set, ["next/answer", "heard"])
    late.start()
    assert second.exchange("next", "", 0) == "heard"
    late.join()


@pytest.mark.parametrize("odd", [[], [7], [1, 2], list(range(32, 64))])
def test_few_manifests_are_read_and_the_rest_counted(
    odd: List[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = 72
    store, told = meet_all(world, odd, monkeypatch)
    asked = [key for key in store.asked if "manifest/" in key]
    assert len(asked) == world + 1 + min(
        len(odd), SHOWN
    )  # each is written once; one usual one is read, and the odd ones
    named = [
        int(rank)
        for rank in re.findall(r"^rank (\d+) on node-\d+ is not like the others:$", told, re.M)
    ]
    assert named == odd[:SHOWN] and told.count("packages idna (pip): others 3.1 of-0 ") == len(
        named
    )
    assert told.count("<- differs") == len(odd)
    more = re.findall(r"^and (\d+) more ranks are not like the others$", told, re.M)
    assert more == ([str(len(odd) - SHOWN)] if len(odd) > SHOWN else [])


@pytest.mark.parametrize("odd", [[], [1, 6]])
def test_a_rank_that_computes_otherwise_is_named(
    odd: List[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, told = Store(), []  # type: Any, List[str]
    monkeypatch.setattr(distributed, "until", store.until)
    certified = (ROOT / "certificates/default-cpu.json").read_text()
    rank_of = threading.local()

    def make(*_: Any, gpu: str) -> Dict[str, Any]:
        document = json.loads(certified)
        if rank_of.rank in odd:
            document["rows"]["full sdpa bf16"]["loss"][7] *= 1.1
            document["rows"]["full sdpa bf16"]["weights"] = str(rank_of.rank)
        return document

    def certify(rank: int) -> Any:
        rank_of.rank = rank
        meeting = Meeting(store, rank, 8)
        return distributed.certify(meeting, None, [], 60, lambda *lines: told.extend(lines * (rank == 0)))  # type: ignore

    monkeypatch.setattr(distributed.certificate, "make", make)
    monkeypatch.setattr(distributed, "in_thread", lambda work, seconds: work())
    said = together(8, certify)
    assert {same for same, _ in said} == {not odd} and {text for _, text in said} == {
        json.dumps(json.loads(certified))
    }
    lines = "\n".join(told)
    assert ("NOT every rank computes the same" in lines) == bool(odd)
    for rank in odd:
        assert re.search(
            rf"most ranks and rank {rank} on \S+: they do NOT compute the same", lines
        ), lines
    assert not odd or "DIFFERENT from step 7, the loss on" in lines


@pytest.mark.long
def test_ranks_that_compute_certificates_under_torchrun(
    pip_environment: Path, tmp_path: Path
) -> None:
    code = (
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\nfrom lockedenv.provenance import certificate\n"
        "certificate.make.__defaults__ = (2,)\nif rank == 1: os.environ['MKL_CBWR'] = 'COMPATIBLE'"
    )
    options = ["--certificate", tmp_path / "all.json", "--timeout", "300"]
    done = sh(
        *torchrun(pip_environment, "--nproc-per-node", 3, launcher(tmp_path, code), *options),
        check=False,
        env=ENVIRON,
    )
    assert done.returncode == 0 and "every rank computes the same" in done.stdout, done.stdout
    assert json.loads((tmp_path / "all.json").read_text())["task"]["steps"] == 2


def is_bf16(number: int) -> bool:
    """Whether 8 significant bits hold it."""
    return number % (1 << max(0, number.bit_length() - 8)) == 0


@pytest.mark.parametrize("world", [1, 2, 88, 1024, 4096])
def test_the_values_of_the_collectives_are_exact_and_tell_every_rank(world: int) -> None:
    part = world // 2
    near = sorted(
        {(part + step) % world for step in range(WIDTH + 1)}
    )  # who adds to this part of the sums
    of = {rank: values(rank, world) for rank in {*near, 0, world - 1}}
    assert all(is_bf16(number) for case in of[part].values() for side in case for number in side)
    (_, sums), (_, gathered) = of[part]["all_reduce"], of[part]["all_gather"]
    assert len(sums) == len(gathered) == world * WIDTH and max(sums) <= 256
    mine = slice(part * WIDTH, (part + 1) * WIDTH)
    given = {rank: case["reduce_scatter"][0][mine] for rank, case in of.items()}
    wanted = of[part]["reduce_scatter"][1]
    assert [sum(places) for places in zip(*given.values())] == wanted == sums[mine]
    for rank in near:  # lost, or there twice
        for factor in (0, 2):
            got = [total + (factor - 1) * own for total, own in zip(wanted, given[rank])]
            assert got != wanted
    for whole in (
        sums,
        gathered,
    ):  # no two ranks have the same part: one in another's place is seen
        assert (
            len({tuple(whole[start : start + WIDTH]) for start in range(0, len(whole), WIDTH)})
            == world
        )
    for rank, case in of.items():
        own = gathered[rank * WIDTH : (rank + 1) * WIDTH]
        assert case["all_gather"] == (own, gathered) and case["broadcast"] == (
            own,
            gathered[-WIDTH:],
        )
        assert case["all_reduce"] == (case["reduce_scatter"][0], sums)


@pytest.mark.parametrize("world", [2, 88])
def test_every_rank_has_its_say_in_the_sums(world: int) -> None:
    inputs = [values(rank, world)["all_reduce"][0] for rank in range(world)]
    sums = values(0, world)["all_reduce"][1]
    assert [sum(places) for places in zip(*inputs)] == sums and all(sums)


def test_the_values_are_small_for_many_ranks() -> None:
    tracemalloc.start()
    cases = values(4095, 4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 2**20 and len(cases["reduce_scatter"][0]) == 4096 * WIDTH


@pytest.mark.parametrize("nodes", range(1, 12))
def test_the_rounds_are_the_links_of_a_ring_and_disjoint(nodes: int) -> None:
    ranks = [8 * node for node in range(nodes)]
    found = rounds(ranks)
    ring = (
        {frozenset((ranks[node], ranks[node - 1])) for node in range(nodes)} if nodes > 1 else set()
    )
    assert {frozenset(link) for links in found for link in links} == ring and len(found) <= 3
    assert sum(map(len, found)) == len(ring)
    assert all(len({rank for link in links for rank in link}) == 2 * len(links) for links in found)


def test_nodes_of_one_name_are_told_apart_by_their_group() -> None:
    said = [{"node": node, "group": group} for node, group in ("a0", "b1", "a2", "a0", "b1")]
    assert nodes_of(said) == {"a (group 0)": [0, 3], "b": [1, 4], "a (group 2)": [2]}


def test_a_node_well_under_the_others_is_named_and_no_other() -> None:
    usual = {INSIDE: 400.0, BETWEEN: 48.0}
    assert not [
        line
        for line in judge({"a": usual, "b": {INSIDE: 290.0, BETWEEN: 34.0}, "c": usual})
        if "slower" in line
    ]
    *rows, said = judge({"a": usual, "b": {INSIDE: 390.0, BETWEEN: 24.0}, "c": usual, "d": usual})
    assert len(rows) == 4 and "inside the node 390.00 GB/s  between nodes 24.00 GB/s" in rows[1]
    assert said.startswith(
        "b is slower between nodes: 24.00 GB/s, the median is 48.00 GB/s; look at its network cards"
    )
    *rows, said = judge(
        {"a": {BETWEEN: 48.0}, "b": usual, "c": {INSIDE: 200.0, BETWEEN: 48.0}, "d": usual}
    )
    assert len(rows) == 4 and said.startswith(
        "c is slower inside the node: 200.00 GB/s, the median is 400.00 GB/s; look at `nvidia-smi"
    )
    # Of two nodes with one link between them, nobody knows whose fault it is.
    assert [
        line[:30]
        for line in judge({"a": {INSIDE: 4.0, BETWEEN: 5.0}, "b": {INSIDE: 40.0, BETWEEN: 5.0}})[2:]
    ] == ["a is slower inside the node: 4"]
    assert len(judge({"a": {BETWEEN: 5.0}, "b": {BETWEEN: 5.1}})) == 2 and judge({"a": {}}) == []


def test_outside_torchrun_it_says_what_to_do(pip_environment: Path) -> None:
    environ = {k: v for k, v in ENVIRON.items() if k not in ("RANK", "WORLD_SIZE")}
    done = sh(pip_environment / "bin/python", PROGRAM, "--distributed", check=False, env=environ)
    assert (
        done.returncode == 1
        and "the ranks cannot meet" in done.stdout
        and "run it under torchrun" in done.stdout
    )
    assert "Traceback" not in done.stdout
    none = {"RANK": "0", "WORLD_SIZE": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = sh(
        pip_environment / "bin/python",
        PROGRAM,
        "--distributed",
        check=False,
        env={**environ, **none},
    )
    assert (
        done.returncode == 1
        and "the ranks cannot meet: RANK is 0, and WORLD_SIZE 0; run it under" in done.stdout
    ), done.stdout
