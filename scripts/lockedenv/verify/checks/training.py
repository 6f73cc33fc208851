"""The training path on a tiny random Llama: nothing is downloaded."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from lockedenv.spec.level import Level
from lockedenv.spec.tiny_models import batch, qlora_model, tiny_llama
from lockedenv.verify.checks import (
    Result,
    check_each_gpu,
    child_check,
    failed,
    passed,
    relative,
    warned,
    within,
)
from lockedenv.verify.remedies import verify_command
from lockedenv.verify.variables import misleading_switches

BROKEN = (
    "the stack does not train here; to see what differs from the lock: "
    + verify_command(Path(sys.prefix), "--level", Level.QUICK.value)
)
RESUME = "resume with accelerate's save_state/load_state, or as examples/train_qlora.py shows"
# The logits of this model in bfloat16 are off by about 0.5 %; the bound is ten times that. A model
# that computes in float32, whatever it was asked for, is off by less than 2^-20.
BF16_BOUND = 0.05
FLOAT32_ERROR = 2.0**-20


@check_each_gpu(
    "transformers",
    "a model's forward and backward run, the forward in bf16 too; "
    "save as safetensors and load gives equal logits",
    remedy=BROKEN,
)
def transformers_model(device: str) -> Result:
    switches = misleading_switches(os.environ, "transformers")
    if switches:
        return failed(switches[0].problem, switches[0].remedy)
    import torch
    from transformers import LlamaForCausalLM

    model = tiny_llama().to(device)
    ids = batch(device)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            return failed(f"no finite gradient for {name}", BROKEN)
    model.save_pretrained("model", safe_serialization=True)
    again = LlamaForCausalLM.from_pretrained("model", use_safetensors=True).to(device)
    with torch.no_grad():
        logits = model.eval()(ids).logits
        if not torch.equal(logits, again.eval()(ids).logits):
            return failed("the logits differ after saving and loading", BROKEN)
        low = model.to(torch.bfloat16)(ids).logits
    error = relative(low.float(), logits)
    if low.dtype != torch.bfloat16 or error < FLOAT32_ERROR:
        return failed(
            f"asked for bfloat16, the model computed in {low.dtype} or higher", BROKEN
        )
    if not error <= BF16_BOUND:
        return failed(
            f"the logits in bfloat16 are off by {error:.1e} ({BF16_BOUND})", BROKEN
        )
    return passed(
        f"{device}: loss {loss.item():.3f}, gradients finite, logits identical after safetensors, "
        f"off by {error:.1e} in bfloat16",
        bfloat16_error=error,
    )


@check_each_gpu(
    "qlora",
    "QLoRA trains: 4-bit base, LoRA adapters; the loss falls and only the adapters change",
    remedy=BROKEN,
)
def qlora(device: str) -> Result:
    import torch

    model = qlora_model(tiny_llama(), device)
    before = {}
    trainable = []
    for name, parameter in model.named_parameters():
        before[name] = parameter.detach().clone()
        if parameter.requires_grad:
            trainable.append(parameter)
    ids = batch(device)
    optimizer = torch.optim.AdamW(trainable, lr=2e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    changed = 0
    for name, parameter in model.named_parameters():
        is_changed = not torch.equal(parameter, before[name])
        if is_changed != ("lora_" in name):
            return failed(
                f"changed by training: {name}, expected the adapters alone", BROKEN
            )
        changed += int(is_changed)
    if not losses[-1] < losses[0]:
        return failed(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}", BROKEN)
    return passed(
        f"{device}: loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps; "
        f"{changed} adapter weights changed, nothing else",
        losses=losses,
    )


@check_each_gpu(
    "accelerate",
    "accelerate's save_state and load_state resume to the same loss",
    remedy=BROKEN,
)
def accelerate_resume(device: str) -> Result:
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    plain = tiny_llama()
    ids = batch(str(accelerator.device))
    model, optimizer = accelerator.prepare(
        plain, torch.optim.AdamW(plain.parameters(), lr=1e-3)
    )

    def step() -> float:
        loss = model(input_ids=ids, labels=ids).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    step()
    accelerator.save_state("state")
    first = [step(), step()]
    accelerator.load_state("state")
    second = [step(), step()]
    bound = 1e-5
    if device != "cpu":
        bound = 1e-4  # a GPU sums in another order each time
    error = max(abs(first[0] - second[0]), abs(first[1] - second[1]))
    return within(
        {"difference of the losses after load_state": (error, bound)}, device, BROKEN
    )


@child_check(
    "trainer-resume",
    "what Trainer.train(resume_from_checkpoint=...) does on this torch, by trying it",
    remedy=BROKEN,
)
def trainer_resume(device: str) -> Result:
    # With several GPUs, Trainer would spread this tiny model over them.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    make_trainer(device, steps=1).train()
    try:
        make_trainer(device, steps=2).train(resume_from_checkpoint=True)
    except ValueError as error:
        if "CVE-2025-32434" not in str(error) and "torch.load" not in str(error):
            raise
        return warned(
            "Trainer refuses to resume on this torch (CVE-2025-32434): known, and so locked",
            RESUME,
        )
    return passed("Trainer resumes from its own checkpoint")


def make_trainer(device: str, steps: int) -> Any:
    """A Trainer of the tiny model that stops, and saves, after so many steps."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        "run",
        max_steps=steps,
        save_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=device == "cpu",
    )
    data = []
    for row in batch("cpu").repeat(4, 1):
        data.append({"input_ids": row, "labels": row})
    return Trainer(model=tiny_llama(), args=arguments, train_dataset=data)
