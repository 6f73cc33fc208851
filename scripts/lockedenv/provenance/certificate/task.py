"""The fixed training task: a tiny Llama, trained in each precision with each kernel of attention.

`python -m lockedenv.provenance.certificate.task DEVICE STEPS` is the child, in the prefix's
interpreter: it prints what one run gives as JSON.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import sys
from functools import partial
from typing import Any, Collection

from lockedenv.provenance.certificate.document import Precision, Row, RowName
from lockedenv.spec.tiny_models import batch, qlora_model, tiny_llama

# Another number whenever the same environment would compute other figures by the task.
TASK = 1
STEPS = 50
RUNS = (
    ("full", Precision.FP32),
    ("full", Precision.BF16),
    ("qlora", Precision.FOUR_BIT),
)
# At twice these, rounding alone makes the losses of two CPUs drift apart.
RATES = {"full": 5e-4, "qlora": 1e-2}
# Attention as transformers names it -> what has its kernels, and the package for people. Of None:
# torch.
ATTENTIONS = {
    "eager": None,
    "sdpa": None,
    "flash_attention_2": ("flash_attn_2_cuda", "flash-attn"),
    "flash_attention_4": ("flash_attn.cute", "flash-attn-4"),
}
# A certificate names it as left out only where it is installed: most environments never have it.
OPTIONAL = "flash_attention_4"


def find_kernels() -> set[str]:
    """The modules with kernels of attention that are installed."""
    found = set()
    for source in ATTENTIONS.values():
        if source is not None and _has_module(source[0]):
            found.add(source[0])
    return found


def choose_rows(
    device: str, bf16: bool, kernels: Collection[str]
) -> tuple[list[RowName], dict[str, str]]:
    """The rows that can run, and the names of those that cannot, each with the reason.

    `bf16`: whether the device computes in it. `kernels`: as `find_kernels` gives them.
    """
    rows = []
    left_out = {}
    for attention, source in ATTENTIONS.items():
        if attention == OPTIONAL and source is not None and source[0] not in kernels:
            continue
        for run, precision in RUNS:
            name = RowName(run, attention, precision)
            reason = _reason_against(name, device, bf16, kernels)
            if reason:
                left_out[str(name)] = reason
            else:
                rows.append(name)
    return rows, left_out


def norm(tensor: Any) -> float:
    """The root of the sum of squares, summed exactly: equal tensors give equal norms everywhere."""
    values = tensor.detach().double().cpu().flatten().tolist()
    return math.sqrt(math.fsum(value * value for value in values))


def fill(model: Any, scale: float, among: str = "") -> None:
    """Weights that are the same bits everywhere, from whole numbers.

    torch's normal ones depend on the CPU's kernels. `among`: only those with this in their name.
    """
    import torch

    for number, (name, weight) in enumerate(sorted(model.named_parameters())):
        if among in name and weight.dim() > 1 and "lora_B" not in name:
            generator = torch.Generator().manual_seed(number)
            whole = torch.randint(-64, 65, weight.shape, generator=generator)
            weight.data.copy_(whole * scale)


def make_model(name: RowName, device: str) -> Any:
    """The model of a row, ready to train."""
    import torch

    model = tiny_llama()
    fill(model, 2.0**-11)  # exact in bf16 too
    if name.run == "qlora":
        model = qlora_model(model, device)
        fill(model, 2.0**-9, "lora_A")
        model.get_base_model().set_attn_implementation(name.attention)
    else:
        dtype = torch.float32
        if name.precision is Precision.BF16:
            dtype = torch.bfloat16
        model.to(device, dtype).set_attn_implementation(name.attention)
    model.train()
    return model


class Observer:
    """Notes the norm of each module's output, up to `stop`, and of each gradient."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tensors: dict[str, float] = {}
        self.hooks = []
        for name, module in model.named_modules():
            if name:
                hook = partial(self._note_output, short_name(name))
                self.hooks.append(module.register_forward_hook(hook))

    def stop(self) -> None:
        """The outputs that follow are not noted."""
        for hook in self.hooks:
            hook.remove()

    def note_gradients(self) -> None:
        """In the order in which they are computed: the last layer's first."""
        for name, weight in reversed(list(self.model.named_parameters())):
            if weight.grad is not None:
                self.tensors[f"gradient of {short_name(name)}"] = norm(weight.grad)

    def _note_output(self, name: str, _module: Any, _inputs: Any, output: Any) -> None:
        import torch

        if isinstance(output, tuple):
            output = output[0]
        # Gradient checkpointing computes an output twice.
        if isinstance(output, torch.Tensor) and name not in self.tensors:
            self.tensors[name] = norm(output)


def train(name: RowName, device: str, steps: int) -> Row:
    """Trains one row: what it computes at each step, and at the end."""
    import torch

    model = make_model(name, device)
    observer = Observer(model)
    ids = batch(device)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATES[name.run])
    autocast = name.run == "qlora"  # flash-attn takes no fp32
    losses = []
    norms = []
    for step in range(steps):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        if step == 0:
            observer.stop()
            observer.note_gradients()
        gradient_norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(nine_digits(loss.item()))
        norms.append(nine_digits(gradient_norm.item()))
    return Row(tuple(losses), tuple(norms), observer.tensors, digest_weights(model))


def nine_digits(number: float) -> float:
    """The nine digits that tell all float32 apart."""
    return float(f"{number:.9g}")


def digest_weights(model: Any) -> str:
    """A sha256 over the bits of all weights."""
    import torch

    digest = hashlib.sha256()
    for _, weight in sorted(model.named_parameters()):
        whole = weight.detach().cpu().contiguous().view(-1)
        digest.update(whole.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def short_name(name: str) -> str:
    """A module's name without what a wrapper puts before it."""
    return re.sub(r"^(base_model\.model\.)?(model\.)?", "", name)


def describe_torch(device: str) -> dict[str, str]:
    """What torch computes with here: its BLAS, its CPU kernels, the GPU."""
    import torch

    shown = torch.__config__.show()
    pattern = r"Math Kernel Library Version [\w.]+|BLAS_INFO=\w+|MKL-DNN v[\w.]+"
    facts = {
        "BLAS": ", ".join(re.findall(pattern, shown)),
        "torch's CPU kernels": torch.backends.cpu.get_cpu_capability(),
    }
    if device == "cuda":
        facts["GPU"] = torch.cuda.get_device_name()
    return facts


def compute(device: str, steps: int) -> dict[str, Any]:
    """One run of the whole task in this process: rows, those left out,
    and what torch computes with."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    bf16 = device != "cuda" or torch.cuda.get_device_capability() >= (8, 0)
    names, left_out = choose_rows(device, bf16, find_kernels())
    rows = {}
    for name in names:
        rows[str(name)] = train(name, device, steps).document()
    return {"rows": rows, "left_out": left_out, "made_with": describe_torch(device)}


def _reason_against(
    name: RowName, device: str, bf16: bool, kernels: Collection[str]
) -> str:
    """Why a row cannot run; empty if it can."""
    source = ATTENTIONS[name.attention]
    if source is not None:
        module, package = source
        if device == "cpu":
            return "no GPU"
        if module not in kernels:
            return f"{package} is not installed"
    if name.precision is not Precision.FP32 and not bf16:
        return "this GPU cannot do bf16"
    if source is not None and name.precision is Precision.FP32:
        return f"{source[1]} has no fp32"
    return ""


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # of the package above it
        return False


if __name__ == "__main__":
    print(json.dumps(compute(sys.argv[1], int(sys.argv[2]))))
