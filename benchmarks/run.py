#!/usr/bin/env python3
"""The figures of this project, as ratios within one run: what is compared runs in turns on the same machine.

    python3 benchmarks/run.py                  all of them, into benchmarks/RESULTS.md and benchmarks/setup-steps.svg
    python3 benchmarks/run.py verifier fetch   some, printed; --prefix PREFIX names the environment for them

    setup      the whole set-up (pip backend) against uv alone and the pip line that it replaces; 30 GB of disk, 10 GB a round
    pod        the same against uv alone with a full cache on another disk; the prefix is on a tmpfs: root, 12 GB of memory
    verifier   quick level against `pip check` and torch's collect_env; the full level against version 1.0's
    manifest   writing the session manifest
    fetch      the fetcher against curl one file after another, and a second run
    meeting    the meeting of 64 to 1,024 ranks that --distributed begins with; each is a real client of one store

Standard library alone; the plot is drawn by plot.py, which uv runs. Without a GPU, flash-attn is in none of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from fault_server import FaultServer, Handler  # noqa: E402
from lockedenv.backends import download as fetch  # noqa: E402
from lockedenv.backends import uv_program  # noqa: E402
from lockedenv.cli.output import Steps  # noqa: E402
from lockedenv.host import machine  # noqa: E402
from lockedenv.host.machine import size_text  # noqa: E402
from lockedenv.spec import locks  # noqa: E402

OLD_LINE = "torch transformers accelerate bitsandbytes peft scipy numpy".split()
VERSION_1 = "cc90f63"
SECTIONS = ("setup", "pod", "verifier", "manifest", "fetch", "meeting")


def timed(*command: Any) -> Tuple[float, str]:
    """(seconds, what it printed) of a command, whatever its exit status."""
    started = time.monotonic()
    done = subprocess.run(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return time.monotonic() - started, done.stdout


def table(title: str, contenders: Dict[str, Callable[[], float]], rounds: int) -> str:
    """Runs the contenders in turns; a Markdown table of their medians, and how many times the first one's each is."""
    times: Dict[str, List[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            times[name].append(run())
            print(f"{title}: {name}: {times[name][-1]:.2f} s", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = next(iter(medians.values()))
    rows = [f"| {name} | {median:.2f} | {median / base:.2f} |" for name, median in medians.items()]
    return "\n".join(
        [f"### {title}", "", f"| | median of {rounds}, s | ratio |", "|---|---|---|", *rows, ""]
    )


# The whole set-up ------------------------------------------------------------------------------------------------


def step_times(said: str) -> List[Tuple[str, float]]:
    """(title, seconds) of the numbered steps in what the set-up script printed."""
    title, found = "", []
    for line in said.splitlines():
        step, took = re.match(r"\[\d+/\d+\] (\S+)", line), re.match(r" {6}([\d.]+) s$", line)
        title = step[1] if step else title
        if took:
            found.append((title, float(took[1])))
    return found


def fetched_bytes(said: str) -> float:
    """What pip says it downloaded, in bytes, and the wheels that it took from a folder."""
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
    found = re.findall(r"Downloading \S+ \(([\d.]+) (kB|MB|GB)\)", said)
    local = [Path(path) for path in re.findall(r"Processing (\S+\.whl)", said)]
    return sum(float(number) * units[unit] for number, unit in found) + sum(
        p.stat().st_size for p in local if p.exists()
    )


def uv_alone(folder: Path, place: Path, *options: Any, within: Sequence[Any] = ()) -> float:
    """The seconds of the uv that the set-up installs with, alone: the wheels of the same lock into a fresh environment."""
    uv = uv_program.bring_uv(folder / "tools", Steps(1, True))
    environ = {
        **uv_program.uv_environment(folder, place, dict(os.environ)),
        "UV_CACHE_DIR": str(place / "uv"),
    }
    settings = [
        f"{name}={value}"
        for name, value in environ.items()
        if name.startswith(("UV_", "SSL_")) and name not in uv_program.EXTRA
    ]
    lines = [
        '"$0" venv --quiet --no-project --python 3.11 "$1/env"',
        '"$0" pip install --quiet --python "$1/env" "${@:2}"',
    ]
    subprocess.run(["rm", "-rf", place / "uv", place / "env"])
    command = [
        "env",
        *settings,
        "bash",
        "-e",
        "-c",
        "\n".join(lines),
        uv,
        place,
        "--require-hashes",
        "--no-deps",
    ]
    seconds, said = timed(
        *within, *command, *uv_program.PLATFORM, *options, "-r", ROOT / "requirements.txt"
    )
    assert not said, said
    return seconds


def later_pod(folder: Path, rounds: int) -> str:
    """What a pod does whose volume has every wheel, and whose own disk has nothing."""
    ram, volume, script = (
        folder / "ram",
        folder / "volume",
        ROOT / "scripts/setup_runpod_environment.sh",
    )
    ram.mkdir()
    pod = [
        "unshare",
        "--mount",
        "--map-root-user",
        "bash",
        "-c",
        f'mount -t tmpfs -o size=12g none {ram} && "$@"',
        "bash",
    ]

    def ours() -> float:
        common = [
            "--backend",
            "pip",
            "--level",
            "quick",
            "--prefix",
            ram / "env",
            "--cache",
            volume,
        ]
        seconds, said = timed(*pod, script, *common)
        assert "verified" in said, said
        steps.append(dict(step_times(said))["Install"])
        return seconds

    steps: List[float] = []
    ours()  # fills the volume
    alone = partial(
        uv_alone, folder, ram, "--no-index", "--find-links", volume / "wheels", within=pod
    )
    title = "A later pod: a full cache on another disk than the prefix, pip backend"
    text = table(
        title,
        {
            "uv alone, the same wheels": alone,
            "setup_runpod_environment.sh, quick verification included": ours,
        },
        rounds,
    )
    return f"{text}\nIts step that installs the wheels: {statistics.median(steps[1:]):.2f} s.\n"


def setting_up(folder: Path, prefix: Path, rounds: int) -> str:
    """Our set-up into `prefix` and the old pip line beside it, cold and warm; what they fetch, and what differs."""
    script, old, steps, said_by_pip = (
        ROOT / "scripts/setup_runpod_environment.sh",
        folder / "old",
        {},
        [""],
    )

    def ours(name: str, *drop: str) -> float:
        for place in drop:
            subprocess.run(["rm", "-rf", folder / place])
        common = ["--prefix", prefix, "--cache", folder / "cache"]
        seconds, said = timed(script, "--backend", "pip", "--level", "quick", *common)
        assert "verified" in said, said
        steps[name] = step_times(said)
        return seconds

    def pip(*drop: str) -> float:
        for place in ("old", *drop):
            subprocess.run(["rm", "-rf", folder / place])
        made = timed(sys.executable, "-m", "venv", old)[0]
        seconds, said = timed(old / "bin/pip", "install", "--cache-dir", folder / "pip", *OLD_LINE)
        said_by_pip[0] = max(said, said_by_pip[0], key=fetched_bytes)
        return made + seconds

    line = f"pip install {' '.join(OLD_LINE)}"
    text = table(
        "The whole set-up, pip backend, quick verification included",
        {
            "setup_runpod_environment.sh, empty cache": lambda: ours(
                "empty cache", prefix.name, "cache"
            ),
            "uv alone, the same wheels, empty cache": lambda: uv_alone(folder, folder / "alone"),
            f"`{line}`, empty cache": lambda: pip("pip"),
            "setup_runpod_environment.sh, warm cache": lambda: ours("warm cache", prefix.name),
            "the pip line, warm cache": pip,
            "setup_runpod_environment.sh, finished: verifies": lambda: ours("finished"),
        },
        rounds,
    )
    pins = {p.name: p for p in locks.read_pip_lock(ROOT / "requirements.txt")}
    listed = json.loads(
        timed(old / "bin/pip", "list", "--format", "json", "--disable-pip-version-check")[1]
    )
    theirs = {locks.canonical(p["name"]): p["version"] for p in listed}
    both = [name for name in theirs if name in pins]
    same = sum(theirs[name].split("+")[0] == pins[name].version for name in both)
    report = timed(old / "bin/python", ROOT / "scripts/verify_environment.py", "--level", "quick")[
        1
    ].splitlines()
    rows = [f"| {name} | {pins[name].version} | {theirs.get(name, 'none')} |" for name in OLD_LINE]
    rows += [
        f"| files by hash | all {len(pins)} | none |",
        f"| packages | {len(pins)} | {len(theirs)} |",
    ]
    rows += [
        f"| fetched | {size_text(sum(p.size for p in pins.values()))} | {size_text(fetched_bytes(said_by_pip[0]))} |"
    ]
    rows += [f"| verified | yes | {report[-1]} |"]
    if (prefix / "bin/uv").exists():
        drawing = subprocess.run(
            [
                prefix / "bin/uv",
                "run",
                "--quiet",
                "--script",
                ROOT / "benchmarks/plot.py",
                folder / "setup-steps.svg",
            ],
            input=json.dumps(steps),
            text=True,
            stderr=subprocess.PIPE,
        )
        print(drawing.stderr, file=sys.stderr)
    differs = f"Of the {len(both)} packages that both have, the pip line of today brings {same} in the locked version.\n"
    if not (folder / "pip").exists():
        differs += (
            "This machine's index lets pip keep nothing, so pip's warm cache was empty too.\n"
        )
    return "\n".join(
        [
            text,
            "| | setup_runpod_environment.sh | the pip line |",
            "|---|---|---|",
            *rows,
            "",
            differs,
        ]
    )


# The others ------------------------------------------------------------------------------------------------------


def verifier(prefix: Path, rounds: int) -> str:
    python, program = prefix / "bin/python", ROOT / "scripts/verify_environment.py"
    quick = {
        "verify_environment.py --level quick": lambda: timed(python, program, "--level", "quick")[
            0
        ],
        "python -m pip check": lambda: timed(python, "-m", "pip", "check")[0],
        "python -m torch.utils.collect_env": lambda: timed(python, "-m", "torch.utils.collect_env")[
            0
        ],
    }
    with tempfile.TemporaryDirectory() as old:
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", VERSION_1], stdout=subprocess.PIPE, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", old], input=archive, check=True)
        full = {
            "verify_environment.py": lambda: timed(python, program)[0],
            "version 1.0's, on the same environment": lambda: timed(
                python, Path(old, "scripts/verify_environment.py")
            )[0],
        }
        return (
            table("The verifier, quick level", quick, rounds)
            + "\n"
            + table("The verifier, full level", full, rounds)
        )


def manifest(prefix: Path, rounds: int) -> str:
    quick = [prefix / "bin/python", ROOT / "scripts/verify_environment.py", "--level", "quick"]
    with tempfile.TemporaryDirectory() as folder:
        return table(
            "The session manifest",
            {
                "quick level": lambda: timed(*quick)[0],
                "quick level and --manifest": lambda: timed(
                    *quick, "--manifest", Path(folder, "manifest.json")
                )[0],
            },
            rounds,
        )


def throttled(handler: Handler, content: bytes, start: int) -> bool:
    """A server far away: 50 ms to answer, 25 MB/s on each connection."""
    time.sleep(0.05)
    handler.send_response(206 if start else 200)
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    for at in range(start, len(content), 1 << 20):
        handler.wfile.write(content[at : at + (1 << 20)])
        time.sleep((1 << 20) / 25e6)
    return True


def fetching(rounds: int) -> str:
    with tempfile.TemporaryDirectory() as folder, FaultServer(Path(folder, "site")) as server:
        site = Path(folder, "site")
        site.mkdir()
        server.fault = throttled
        items = []
        for number, size in enumerate([20_000_000, 10_000_000, *[1_000_000] * 20, *[50_000] * 40]):
            content = random.Random(number).randbytes(size)
            (site / f"{number}").write_bytes(content)
            items.append(
                (
                    f"{number}",
                    hashlib.sha256(content).hexdigest(),
                    size,
                    f"{server.address}/{number}",
                )
            )

        def ours(fresh: bool) -> float:
            target = Path(folder, "ours")
            if fresh:
                shutil.rmtree(target, ignore_errors=True)
            started = time.monotonic()
            fetch.fetch(
                [fetch.Item(n, sha, size, [url]) for n, sha, size, url in items],
                target,
                print,
                quiet=True,
            )
            return time.monotonic() - started

        def one_after_another() -> float:
            started = time.monotonic()
            for name, _, _, url in items:
                subprocess.run(["curl", "-sf", "-o", f"{folder}/theirs-{name}", url], check=True)
            return time.monotonic() - started

        return table(
            "Fetching 62 files, 52 MB, from a server 50 ms away with 25 MB/s a connection",
            {
                "fetch.py, hashes checked": lambda: ours(True),
                "curl, one after another, no check": one_after_another,
                "fetch.py again, all there": lambda: ours(False),
            },
            rounds,
        )


def meet(world: int) -> None:
    """Prints the seconds from the first rank's first word to the last one's verdict; runs in the environment's Python."""
    from lockedenv.prefix.records import read_prefix
    from lockedenv.provenance import ranks as distributed
    from lockedenv.provenance.manifest import make
    from torch.distributed import TCPStore

    limit, document, processes = timedelta(seconds=60), make(read_prefix(Path(sys.prefix)), []), 2
    text = json.dumps(document)
    fork = multiprocessing.get_context("fork")
    store = TCPStore("127.0.0.1", 0, None, True, limit, wait_for_workers=False)
    ready, times = fork.Barrier(processes), fork.Queue()

    def join(rank: int, client: Any) -> float:
        name = "another" if rank == world - 1 else document["fingerprint"]  # rank 0 names it
        me = {
            "node": f"node-{rank // 8}",
            "group": f"{rank // 8}",
            "identity": [name, "none", "none", "none"],
        }
        meeting = distributed.Meeting(client, rank, world)
        meeting.reach("manifest", text)
        answer = meeting.exchange(
            "arrived", json.dumps(me), 60, lambda: distributed.table(meeting, lambda *_: None)
        )
        assert not json.loads(answer)[0] and len(json.loads(answer)[1]) == world // 8
        return time.monotonic()

    def part(number: int) -> None:
        ranks = range(number, world, processes)
        with ThreadPoolExecutor(len(ranks)) as pool:
            clients = list(
                pool.map(lambda _: TCPStore("127.0.0.1", store.port, None, False, limit), ranks)
            )
            ready.wait()
            started = time.monotonic()
            times.put((started, max(pool.map(join, ranks, clients))))
            times.close()
            times.join_thread()
            os._exit(0)  # the clients made in threads cannot all be freed: pybind11 aborts

    parts = [fork.Process(target=part, args=(number,)) for number in range(processes)]
    for process in parts:
        process.start()
    starts, ends = zip(*(times.get(timeout=300) for _ in parts))
    print(max(ends) - min(starts))


def meetings(prefix: Path, rounds: int) -> str:
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import run; run.meet(int(sys.argv[1]))"

    def seconds(world: int) -> float:
        return float(timed(prefix / "bin/python", "-c", program, world)[1])

    worlds = [64, 128, 256, 512, 1024]
    contenders = {f"{world} ranks": partial(seconds, world) for world in worlds}
    return table(
        "The meeting of --distributed: clients of one store, in the threads of two processes",
        contenders,
        rounds,
    )


def this_machine() -> str:
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    limit = size_text(machine.memory_limit()[0])
    return (
        f"{machine.cpu_limit():g} CPUs ({model[1] if model else platform.this_machine()}), {limit} of memory, no GPU, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument(
        "--prefix", type=Path, help="a finished environment, where `setup` is not among them"
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    unknown = set(args.what) - set(SECTIONS)
    if unknown or (
        args.what
        and "setup" not in args.what
        and not args.prefix
        and not set(args.what) <= {"fetch", "pod"}
    ):
        parser.error(
            f"unknown: {', '.join(unknown)}"
            if unknown
            else "--prefix names the environment to measure in"
        )
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        folder = Path(name)
        prefix = args.prefix or folder / "env"
        sections: Dict[str, Callable[[], str]] = {
            "setup": lambda: setting_up(folder, folder / "env", args.rounds),
            "pod": lambda: later_pod(folder, args.rounds),
            "verifier": lambda: verifier(prefix, args.rounds),
            "manifest": lambda: manifest(prefix, args.rounds),
            "fetch": lambda: fetching(args.rounds),
            "meeting": lambda: meetings(prefix, args.rounds),
        }
        texts = [f"{this_machine()}.\n"] + [sections[what]() for what in args.what or SECTIONS]
        if args.what:
            print("\n".join(texts))
            return
        head = "# Results\n\nWritten by `python3 benchmarks/run.py`, which repeats them: medians, and ratios within one run.\n"
        picture = "![the set-up's time by step](setup-steps.svg)\n"
        (ROOT / "benchmarks/RESULTS.md").write_text(
            "\n".join([head, texts[0], picture, *texts[1:]])
        )
        shutil.copy(folder / "setup-steps.svg", ROOT / "benchmarks/setup-steps.svg")


if __name__ == "__main__":
    main()
