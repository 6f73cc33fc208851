"""What differs between two session manifests, or between what two numeric certificates say that a machine computes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

from lockedenv.provenance.documents import DocumentError as ManifestError
from lockedenv.provenance.manifest import SCHEMA_VERSION, fingerprint

# What machines or libraries that sum in another order may differ by: 64 roundings in fp32 (2**-24 each), 4 in bf16 (2**-9), in
# which 4-bit weights are multiplied too. Measured between the kernels of torch, oneDNN and MKL for SSE, AVX2 and AVX-512, and
# between both released environments: at most 1.8e-7, 1.0e-3 and 5.7e-4. An error of a kernel under 1 % is found in fp32 only.
BETWEEN = {"fp32": 2.0**-18, "bf16": 2.0**-7, "4-bit": 2.0**-7}
# Allowed on one kind of machine: so many times the spread of two runs, which is measured. Another two are further apart in 6 of
# 100 cases (2/pi * atan(1/10), for normal differences). Where the two runs were equal, as on a CPU, nothing is allowed.
SLACK = 10.0
NOT_THE_GPU = (
    "CPU",
    "CPU features",
    "torch's CPU kernels",
    "BLAS",
    "driver",
)  # what a GPU's figures do not depend on
ABOUT = ("environment", "fingerprint", "backend", "device")
EQUAL, WITHIN, DIFFERENT = "bit for bit equal", "equal within", "DIFFERENT"


def read(path: Path) -> Dict[str, Any]:
    """A manifest or a certificate from a file. Raises ManifestError."""
    kind, option = "session manifest or certificate", "--manifest or --certificate"
    try:
        document: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = "certificate" if "task" in document else "session manifest"
        option = f"--{kind.split()[-1]}"
        if document["schema_version"] != SCHEMA_VERSION:
            raise ManifestError(
                f"{path}: is of schema version {document['schema_version']}, this reads {SCHEMA_VERSION}"
            )
        if kind == "certificate":
            look_through(document)
        else:
            if fingerprint(document["packages"]) != document["fingerprint"]:
                raise ValueError("its fingerprint is not that of its packages")
            _flat(document)
        return document
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror})") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise ManifestError(
            f"{path}: is not a {kind} ({error}); make one with {option} FILE"
        ) from None


def look_through(document: Dict[str, Any]) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError if it is not a whole certificate."""
    steps, _, _ = (
        document["task"]["steps"],
        document["task"]["version"],
        "".join(document[key] for key in ABOUT),
    )
    for groups in (document["made_with"], document["left_out"]):
        groups.items()
    for name, row in document["rows"].items():
        figures = [*row["loss"], *row["gradient_norm"], *row["tensors"].values(), row["spread"]]
        whole = (
            steps > 0
            and {len(row["loss"]), len(row["gradient_norm"])} == {steps}
            and row["tensors"]
            and row["weights"]
        )
        real = (
            {*map(type, figures)} <= {int, float}
            and math.isfinite(row["spread"])
            and row["spread"] >= 0
        )
        if not (whole and real and len(name.split()) == 3):
            raise ValueError(f"its row {name} is damaged")


def _flat(document: Dict[str, Any]) -> Dict[str, Dict[str, str]]:
    """A manifest as groups of name -> value, for comparing."""
    by_name: Dict[str, str] = {}
    for p in document["packages"]:
        text = " ".join(filter(None, (p["version"], p["build"], p["channel"])))
        by_name[f"{p['name']} ({p['manager']})"] = (
            f"{text} {p['hash'][:12]}" if p["name"] != "flash-attn" else text
        )
    return {
        "packages": by_name,
        "GPU": {
            f"GPU {i}": f"{g['name']}, {g['memory_bytes']} bytes, {g['capability']}"
            for i, g in enumerate(document["gpus"])
        },
        "driver": {
            **{f"GPU {i}": str(g["driver"]) for i, g in enumerate(document["gpus"])},
            **{k: str(v) for k, v in document["cuda"].items()},
        },
        **{
            group: {k: str(v) for k, v in document[group].items()}
            for group in ("variables", "machine")
        },
        "locks": {k: str(v)[:12] for k, v in document["locks"].items()},
    }


def differences(a: Dict[str, Any], b: Dict[str, Any]) -> List[Tuple[str, str, str, str]]:
    """(group, name, in a, in b) of all that differs between two manifests; '-' where one has nothing."""
    rows = []
    for (group, left), right in zip(_flat(a).items(), _flat(b).values()):
        for name in sorted({*left, *right}):
            if left.get(name) != right.get(name):
                rows.append((group, name, left.get(name, "-"), right.get(name, "-")))
    return rows


def comparison(a: Dict[str, Any], b: Dict[str, Any], names: Tuple[str, str]) -> str:
    """What differs, grouped, as text for people."""
    rows = differences(a, b)
    same = a["fingerprint"] == b["fingerprint"]
    verdict = "the same environment" if same else "NOT the same environment"
    lines = [
        f"{names[0]} and {names[1]}: {verdict} (fingerprints {a['fingerprint'][:12]}, {b['fingerprint'][:12]})"
    ]
    for group in dict.fromkeys(row[0] for row in rows):
        lines.append(f"{group}:")
        lines += [
            f"  {name:<28} {left}  ->  {right}" for g, name, left, right in rows if g == group
        ]
    return "\n".join(lines)


def apart(a: Dict[str, Any], b: Dict[str, Any]) -> List[Tuple[str, float]]:
    """(place, relative difference) of all that differs between two runs of a row, in the order in which it is computed."""
    pairs = [
        (f"step 0, {name}", value, b["tensors"].get(name, value))
        for name, value in a["tensors"].items()
    ]
    if not {*a["tensors"]} & {*b["tensors"]}:
        return [("step 0, where they have no tensor in common,", math.inf)]
    for step, figures in enumerate(
        zip(a["loss"], b["loss"], a["gradient_norm"], b["gradient_norm"])
    ):
        pairs += [
            (f"step {step}, the loss", *figures[:2]),
            (f"step {step}, the gradient norm", *figures[2:]),
        ]
    found = [(place, abs(x - y) / max(abs(x), abs(y))) for place, x, y in pairs if x != y]
    if a["weights"] != b["weights"]:
        found.append(("the final weights", max((error for _, error in found), default=2.0**-24)))
    return found


def unsteady(name: str) -> float:
    """The spread of a row above which a machine's own two runs are too far apart to be a measure of anything."""
    return 4 * BETWEEN.get(name.split()[-1], 0.0)


def judge(name: str, a: Dict[str, Any], b: Dict[str, Any], like: bool) -> Tuple[str, str]:
    """The verdict on a row, and what to say of it. `like`: both are of one kind of machine and the same versions."""
    found, bound = apart(a, b), SLACK * max(a["spread"], b["spread"])
    if not max(a["spread"], b["spread"]) <= unsteady(name):
        return (
            DIFFERENT,
            f"{DIFFERENT} from itself: two runs of one machine are apart by {max(a['spread'], b['spread']):.1e}",
        )
    if not found:
        return EQUAL, EQUAL
    if (
        not like
    ):  # then the gradient's norm soon tells more of the path that rounding takes than of a kernel
        bound = max(bound, BETWEEN.get(name.split()[-1], 0.0))
    held = [
        pair
        for pair in found
        if like or not re.match(r"step [1-9]\d*, the gradient norm|the final weights", pair[0])
    ]
    for place, error in held:
        if not error <= bound:
            return (
                DIFFERENT,
                f"{DIFFERENT} from {place} on: by {error:.1e}, where {bound:.1e} is allowed",
            )
    most = max((error for _, error in held), default=0.0)
    return WITHIN, f"{WITHIN} {bound:.1e}: apart by {most:.1e} at most, from {found[0][0]} on"


def certificates(a: Dict[str, Any], b: Dict[str, Any], names: Tuple[str, str]) -> Tuple[str, int]:
    """What two certificates say of each row, as text for people, and 1 if any is different. Raises ManifestError."""
    kinds = ["certificate" if "task" in document else "manifest" for document in (a, b)]
    if kinds[0] != kinds[1]:
        raise ManifestError(
            f"{names[0]} is a {kinds[0]}, {names[1]} a {kinds[1]}: --compare takes two of one kind"
        )
    tasks = ["task {version} with {steps} steps".format(**document["task"]) for document in (a, b)]
    common = [name for name in a["rows"] if name in b["rows"]]
    if tasks[0] != tasks[1] or not common:
        tasks = (
            tasks if common else [", ".join(document["rows"]) or "no row" for document in (a, b)]
        )
        raise ManifestError(
            f"{names[0]} is of {tasks[0]}, {names[1]} of {tasks[1]}: make both anew with one clone's --certificate"
        )
    made = [
        {**{key: document[key][:12] for key in ABOUT}, **document["made_with"]}
        for document in (a, b)
    ]
    other = [key for key in {**made[0], **made[1]} if made[0].get(key) != made[1].get(key)]
    on_gpu = a["device"] == b["device"] == "cuda"
    like = not [
        key for key in other if key not in ("environment", "fingerprint", *NOT_THE_GPU * on_gpu)
    ]
    said = {name: judge(name, a["rows"][name], b["rows"][name], like) for name in common}
    worst = next(
        verdict
        for verdict in (DIFFERENT, WITHIN, EQUAL)
        if verdict in [v for v, _ in said.values()]
    )
    verdict = {
        DIFFERENT: "they do NOT compute the same",
        WITHIN: "they compute the same within the tolerance",
    }
    lines = [
        f"{names[0]} and {names[1]}: {verdict.get(worst, 'they compute the same, bit for bit')}"
    ]
    lines += [f"  {key:<28} {made[0].get(key, '-')}  ->  {made[1].get(key, '-')}" for key in other]
    lines += [f"  {name:<28} {text}" for name, (_, text) in said.items()]
    for name in sorted({*a["rows"], *b["rows"]}.difference(common)):
        where, why = next(
            (n, d["left_out"].get(name, "it has none"))
            for n, d in zip(names, (a, b))
            if name not in d["rows"]
        )
        lines.append(f"  {name:<28} not compared: {why} ({where})")
    if worst != EQUAL:
        allowed = (
            f"{SLACK:.0f} times the spread of two runs, measured"
            if like
            else "what another order of summing does"
        )
        lines.append(
            f"allowed: {allowed} ({'the same kind of machine and versions' if like else 'another machine or other versions'})"
        )
    wrong, right = (
        {n.split()[1] for n, (v, _) in said.items() if (v == DIFFERENT) == bad}
        for bad in (True, False)
    )
    if wrong - right and right:
        lines.append(
            f"what differs is {', '.join(sorted(wrong - right))}; {', '.join(sorted(right))} computes the same"
        )
    return "\n".join(lines), int(worst == DIFFERENT)
