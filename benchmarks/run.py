#!/usr/bin/env python3
"""The figures of this project, as ratios within one run: what is compared runs in turns on the same machine.

    python3 benchmarks/run.py verifier --prefix PREFIX     quick level against `pip check` and torch's collect_env; full level
    python3 benchmarks/run.py manifest --prefix PREFIX     writing the session manifest
    python3 benchmarks/run.py fetch                        the fetcher against curl one file after another, and a second run
    python3 benchmarks/run.py setup                        the whole set-up (pip backend) against the old pip line; 15 GB

Prints a Markdown table of medians; --rounds N changes how many. Standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from fault_server import FaultServer, Handler  # noqa: E402
from lockedenv import fetch  # noqa: E402

OLD_LINE = "torch transformers accelerate bitsandbytes peft scipy numpy".split()


def seconds(command: List[Any], **environ: str) -> float:
    started = time.monotonic()
    subprocess.run(
        [str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environ}
    )
    return time.monotonic() - started


def table(title: str, contenders: Dict[str, Callable[[], float]], rounds: int) -> None:
    """Runs the contenders in turns and prints their medians, and how many times the first one's each is."""
    times: Dict[str, List[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            times[name].append(run())
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = next(iter(medians.values()))
    print(f"\n### {title}\n\n| | median of {rounds}, s | ratio |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {median / base:.2f} |")


def verifier(prefix: Path, rounds: int) -> None:
    python, program = prefix / "bin/python", ROOT / "scripts/verify_environment.py"
    table(
        "Verifier, quick level",
        {
            "verify_environment.py --level quick": lambda: seconds([python, program, "--level", "quick"]),
            "python -m pip check": lambda: seconds([python, "-m", "pip", "check"]),
            "python -m torch.utils.collect_env": lambda: seconds([python, "-m", "torch.utils.collect_env"]),
        },
        rounds,
    )
    table("Verifier, full level", {"verify_environment.py": lambda: seconds([python, program])}, 1)


def manifest(prefix: Path, rounds: int) -> None:
    python, program = prefix / "bin/python", ROOT / "scripts/verify_environment.py"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "manifest.json")
        quick = [python, program, "--level", "quick"]
        table(
            "Session manifest",
            {
                "quick level": lambda: seconds(quick),
                "quick level and --manifest": lambda: seconds([*quick, "--manifest", target]),
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


def fetching(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, FaultServer(Path(folder, "site")) as server:
        site = Path(folder, "site")
        site.mkdir()
        server.fault = throttled
        items = []
        for number, size in enumerate([20_000_000, 10_000_000, *[1_000_000] * 20, *[50_000] * 40]):
            content = random.Random(number).randbytes(size)
            (site / f"{number}").write_bytes(content)
            items.append((f"{number}", hashlib.sha256(content).hexdigest(), size, f"{server.address}/{number}"))

        def ours(fresh: bool) -> float:
            target = Path(folder, "ours")
            if fresh:
                shutil.rmtree(target, ignore_errors=True)
            started = time.monotonic()
            fetch.fetch([fetch.Item(n, sha, size, [url]) for n, sha, size, url in items], target, print, quiet=True)
            return time.monotonic() - started

        def one_after_another() -> float:
            started = time.monotonic()
            for name, _, _, url in items:
                subprocess.run(["curl", "-sf", "-o", f"{folder}/theirs-{name}", url], check=True)
            return time.monotonic() - started

        table(
            "Fetching 62 files, 52 MB, from a server 50 ms away with 25 MB/s a connection",
            {
                "fetch.py, hashes checked": lambda: ours(True),
                "curl, one after another, no check": one_after_another,
                "fetch.py again, all there": lambda: ours(False),
            },
            rounds,
        )


def setting_up(rounds: int) -> None:
    script = ROOT / "scripts/setup_runpod_environment.sh"
    with tempfile.TemporaryDirectory() as folder:

        def ours(cold: bool) -> float:
            for name in ["env", "env.lock"] + ["cache"] * cold:
                subprocess.run(["rm", "-rf", f"{folder}/{name}"])
            command = [
                script,
                "--backend",
                "pip",
                "--prefix",
                f"{folder}/env",
                "--cache",
                f"{folder}/cache",
                "--level",
                "quick",
            ]
            return seconds(command)

        def old() -> float:
            subprocess.run(["rm", "-rf", f"{folder}/old"])
            subprocess.run([sys.executable, "-m", "venv", f"{folder}/old"], check=True)
            return seconds([f"{folder}/old/bin/pip", "install", "--no-cache-dir", *OLD_LINE])

        table(
            "Set-up, pip backend, quick verification included",
            {
                "setup_runpod_environment.sh, cold": lambda: ours(True),
                "the same, warm cache": lambda: ours(False),
                "the same, finished": lambda: seconds(
                    [script, "--prefix", f"{folder}/env", "--cache", f"{folder}/cache"]
                ),
                f"pip install {' '.join(OLD_LINE)}, cold": old,
            },
            rounds,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["verifier", "manifest", "fetch", "setup"])
    parser.add_argument("--prefix", type=Path, default=Path.home() / "maximalcai")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    if args.what in ("verifier", "manifest"):
        {"verifier": verifier, "manifest": manifest}[args.what](args.prefix, args.rounds)
    else:
        {"fetch": fetching, "setup": setting_up}[args.what](args.rounds)


if __name__ == "__main__":
    main()
