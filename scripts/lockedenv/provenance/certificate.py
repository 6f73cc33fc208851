"""The numeric certificate: what a fixed training task computes here, so exactly that it can be compared months later.

`python -m lockedenv.provenance.certificate DEVICE STEPS` is the child, in the prefix's interpreter: it prints what one run gives.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Dict, List, Tuple

from lockedenv.errors import Stop
from lockedenv.host.launchers import child_environment
from lockedenv.host.machine import Gpu
from lockedenv.host.process import ask
from lockedenv.prefix.records import Installed
from lockedenv.provenance.compare import apart, unsteady
from lockedenv.provenance.documents import DocumentError as ManifestError
from lockedenv.provenance.manifest import SCHEMA_VERSION, fingerprint, packages
from lockedenv.spec import environment

TASK, STEPS = (
    1,
    50,
)  # the task gets another number whenever the same environment would compute other figures by it
LIMIT = 600  # seconds for each run, which takes 15 on a core of 2025
RUNS = [("full", "fp32"), ("full", "bf16"), ("qlora", "4-bit")]
RATES = {
    "full": 5e-4,
    "qlora": 1e-2,
}  # at twice these, rounding alone makes the losses of two CPUs drift apart
# One thread: every machine has one, and the number of them decides in which order a sum is made.
FIXED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "NVIDIA_TF32_OVERRIDE": "0",
}
FIXED.update(CUBLAS_WORKSPACE_CONFIG=":4096:8", FLASH_ATTENTION_DETERMINISTIC="1")
DROPPED = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "TORCH",
    "PYTORCH_",
    "CUBLAS_",
    "TRANSFORMERS_",
    "ACCELERATE_",
    "NVIDIA_TF32_",
)
# These choose other kernels for the user's own runs too: they stay as they are, and are noted.
CHOOSE = "ATEN_CPU_CAPABILITY MKL_CBWR MKL_ENABLE_INSTRUCTIONS ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA LD_PRELOAD".split()
FEATURES = (
    "avx2 avx512f avx512_bf16 avx512_fp16 amx_bf16".split()
)  # by which MKL, oneDNN and torch choose theirs
VERSIONS = "torch transformers peft accelerate bitsandbytes flash-attn".split()


def combinations(
    device: str, bf16: bool, flash: bool
) -> Tuple[List[Tuple[str, str, str]], Dict[str, str]]:
    """The rows that can run, as (run, attention, precision), and the names of those that cannot, each with the reason."""
    rows, left_out = [], {}
    for attention, (run, precision) in product("eager sdpa flash_attention_2".split(), RUNS):
        why = "this GPU cannot do bf16" if precision != "fp32" and not bf16 else ""
        if attention == "flash_attention_2":
            why = why or "flash-attn has no fp32" * (precision == "fp32")
            why = "no GPU" if device == "cpu" else why if flash else "flash-attn is not installed"
        if why:
            left_out[f"{run} {attention} {precision}"] = why
        else:
            rows.append((run, attention, precision))
    return rows, left_out


def norm(tensor: Any) -> float:
    """The root of the sum of squares, summed exactly: equal tensors give equal norms on every machine."""
    return math.sqrt(math.fsum(x * x for x in tensor.detach().double().cpu().flatten().tolist()))


def fill(model: Any, scale: float, among: str = "") -> None:
    """Weights that are the same bits everywhere, from whole numbers: torch's normal ones depend on the CPU's kernels."""
    import torch

    for number, (name, weight) in enumerate(sorted(model.named_parameters())):
        if among in name and weight.dim() > 1 and "lora_B" not in name:
            whole = torch.randint(
                -64, 65, weight.shape, generator=torch.Generator().manual_seed(number)
            )
            weight.data.copy_(whole * scale)


def train(run: str, attention: str, precision: str, device: str, steps: int) -> Dict[str, Any]:
    """One row: loss and gradient norm of each step, the norm of each tensor of the first step, a digest of the final weights."""
    import torch
    from lockedenv.spec.tiny_models import batch, qlora_model, tiny_llama

    model = tiny_llama()
    fill(model, 2.0**-11)  # exact in bf16 too
    if run == "qlora":
        model = qlora_model(model, device)
        fill(model, 2.0**-9, "lora_A")
        model.get_base_model().set_attn_implementation(attention)
    else:
        model.to(
            device, torch.bfloat16 if precision == "bf16" else torch.float32
        ).set_attn_implementation(attention)
    model.train()
    tensors: Dict[str, float] = {}

    def short(name: str) -> str:
        return re.sub(r"^(base_model\.model\.)?(model\.)?", "", name)

    def note(name: str, _: Any, __: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        if (
            isinstance(out, torch.Tensor) and name not in tensors
        ):  # gradient checkpointing computes it twice
            tensors[name] = norm(out)

    hooks = [
        module.register_forward_hook(partial(note, short(name)))
        for name, module in model.named_modules()
        if name
    ]
    ids, trained = batch(device), [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATES[run])
    row: Dict[str, Any] = {"loss": [], "gradient_norm": []}
    for step in range(steps):
        with torch.autocast(
            device, torch.bfloat16, enabled=run == "qlora"
        ):  # flash-attn takes no fp32
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if step == 0:
            for hook in hooks:
                hook.remove()
            for name, weight in reversed(list(model.named_parameters())):
                if weight.grad is not None:
                    tensors[f"gradient of {short(name)}"] = norm(weight.grad)
        size = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for key, value in (("loss", loss.item()), ("gradient_norm", size.item())):
            row[key].append(float(f"{value:.9g}"))  # nine digits tell all float32 apart
    digest = hashlib.sha256()
    for _, weight in sorted(model.named_parameters()):
        digest.update(
            weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return {**row, "tensors": tensors, "weights": digest.hexdigest()}


def compute(device: str, steps: int) -> Dict[str, Any]:
    """One run of the whole task in this process: its rows, those left out, and what torch computes with."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    gpu = device == "cuda"
    bf16 = not gpu or torch.cuda.get_device_capability() >= (8, 0)
    rows, left_out = combinations(device, bf16, importlib.util.find_spec("flash_attn") is not None)
    libraries = re.findall(
        r"Math Kernel Library Version [\w.]+|BLAS_INFO=\w+|MKL-DNN v[\w.]+", torch.__config__.show()
    )
    made = {
        "BLAS": ", ".join(libraries),
        "torch's CPU kernels": torch.backends.cpu.get_cpu_capability(),
    }
    made.update({"GPU": torch.cuda.get_device_name()} if gpu else {})
    return {
        "rows": {" ".join(row): train(*row, device, steps) for row in rows},
        "left_out": left_out,
        "made_with": made,
    }


def in_child(python: Path, device: str, steps: int, environ: Dict[str, str]) -> Dict[str, Any]:
    """What `compute` gives in a process of its own. Raises Stop."""
    with tempfile.TemporaryDirectory(prefix="certificate-") as folder:
        command = [python, "-m", "lockedenv.provenance.certificate", device, str(steps)]
        status, said, why = ask(command, LIMIT, cwd=folder, env={**environ, "TMPDIR": folder})
    if status != 0:
        last = (why.strip().splitlines() or ["it said nothing"])[-1]
        raise Stop(
            f"the certificate's task failed (exit {status}): {last}; --level full says what does not work here"
        )
    run: Dict[str, Any] = json.loads(said.splitlines()[-1])
    for name, row in run["rows"].items():
        for step, pair in enumerate(zip(row["loss"], row["gradient_norm"])):
            if not all(map(math.isfinite, pair)):
                raise Stop(
                    f"{name}: loss {pair[0]}, gradient norm {pair[1]} at step {step}: this does not train; --level full "
                    "says what does not work here, or take another pod"
                )
    return run


def cpu() -> Dict[str, str]:
    """The CPU, so exactly that equal ones get equal kernels."""
    info = dict(
        re.findall(
            r"^([\w ]+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text().split("\n\n")[0], re.M
        )
    )
    about = [f"{key} {info[key]}" for key in ("cpu family", "model", "cache size") if key in info]
    has = [feature for feature in FEATURES if feature in info.get("flags", "").split()]
    return {
        "CPU": ", ".join([info.get("model name", "unknown"), *about]),
        "CPU features": " ".join(has),
    }


def make(
    installed: Installed, gpus: List[Gpu], device: str, steps: int = STEPS, *, gpu: str = ""
) -> Dict[str, Any]:
    """The certificate (schemas/certificate.schema.json) of this machine's device, or of that `gpu` of it. Raises Stop."""
    given = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
    environ = {
        k: v
        for k, v in child_environment(installed.prefix, device, given).items()
        if k in CHOOSE or not k.startswith(DROPPED)
    }
    chosen = {name: environ[name] for name in CHOOSE if name in environ}
    with ThreadPoolExecutor(
        2
    ) as pool:  # AUTO: the best kernels, and the same ones wherever the memory lies
        again = {"MKL_CBWR": "AUTO", **environ, **FIXED}
        first, second = pool.map(
            lambda _: in_child(installed.python, device, steps, again), range(2)
        )
    for name, row in first["rows"].items():
        row["spread"] = max((error for _, error in apart(row, second["rows"][name])), default=0.0)
        if not row["spread"] <= unsteady(name):
            raise Stop(
                f"{name}: two runs on this machine are apart by {row['spread']:.1e}: it does not compute reliably; run it "
                "again, and if it stays so, take another pod"
            )
    versions = {name: str(installed.version(name)) for name in VERSIONS if installed.version(name)}
    driver = {"driver": gpus[0].driver} if device == "cuda" and gpus else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "task": {"version": TASK, "steps": steps},
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": environment.of(installed.prefix).name,
        "backend": installed.backend,
        "fingerprint": fingerprint(packages(installed)),
        "device": device,
        "made_with": {
            **first["made_with"],
            **driver,
            **cpu(),
            "threads": FIXED["OMP_NUM_THREADS"],
            **versions,
            **chosen,
        },
        "left_out": first["left_out"],
        "rows": first["rows"],
    }


def like(
    document: Dict[str, Any], name: str, installed: Installed, gpus: List[Gpu]
) -> Dict[str, Any]:
    """This machine's certificate, to compare with one from a file `name`. Raises ManifestError, Stop."""
    if document["task"]["version"] != TASK:
        raise ManifestError(
            f"{name}: is of task version {document['task']['version']}, this machine's is {TASK}; make it anew "
            "with --certificate, or compare with the clone that made it"
        )
    if document["device"] == "cuda" and not gpus:
        raise ManifestError(
            f"{name}: is a GPU's certificate, and this machine has none; compare it on a machine with a GPU"
        )
    return make(installed, gpus, document["device"], document["task"]["steps"])


def text(document: Dict[str, Any]) -> str:
    """The file: a line for each row."""
    rows = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in document["rows"].items()
    )
    return json.dumps({**document, "rows": {}}, indent=1)[:-4] + "{\n" + rows + "\n }\n}\n"


def summary(document: Dict[str, Any]) -> str:
    """What was certified, for people."""
    name, row = max(document["rows"].items(), key=lambda item: float(item[1]["spread"]))
    spread = (
        f"apart by {row['spread']:.1e} at most ({name})" if row["spread"] else "bit for bit equal"
    )
    left_out = [f"left out: {name} ({why})" for name, why in document["left_out"].items()]
    return "\n".join(
        [
            *left_out,
            f"{len(document['rows'])} rows of {document['task']['steps']} steps; two runs: {spread}",
        ]
    )


if __name__ == "__main__":
    print(json.dumps(compute(sys.argv[1], int(sys.argv[2]))))
