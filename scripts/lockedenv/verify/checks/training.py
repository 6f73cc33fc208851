"""The training path on a tiny random Llama: nothing is downloaded."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from lockedenv.spec.tiny_models import batch, qlora_model, tiny_llama
from lockedenv.verify.checks import Result, check_each_gpu, failed, passed, warned, within

BROKEN = "the stack does not train here: run --level quick for what differs from the lock"
train_check = partial(check_each_gpu, remedy=BROKEN)


@train_check(
    "transformers",
    "a model's forward and backward run, and save as safetensors and load gives equal logits",
)
def transformers_model(device: str) -> Result:
    import torch
    from transformers import LlamaForCausalLM

    model, ids = tiny_llama().to(device), batch(device)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    without = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    if without:
        return failed(f"no finite gradient for {without[0]}", BROKEN)
    model.save_pretrained("model", safe_serialization=True)
    again = LlamaForCausalLM.from_pretrained("model", use_safetensors=True).to(device)
    if not torch.equal(model.eval()(ids).logits, again.eval()(ids).logits):
        return failed("the logits differ after saving and loading", BROKEN)
    return passed(
        f"{device}: loss {loss.item():.3f}, gradients finite, logits identical after safetensors"
    )


@train_check(
    "qlora", "QLoRA trains: 4-bit base, LoRA adapters; the loss falls and only the adapters change"
)
def qlora(device: str) -> Result:
    import torch

    model = qlora_model(tiny_llama(), device)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    ids = batch(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    changed = {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    odd = sorted(changed ^ {name for name in before if "lora_" in name})
    if odd:
        return failed(f"changed by training: {odd[0]}, expected the adapters alone", BROKEN)
    if not losses[-1] < losses[0]:
        return failed(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}", BROKEN)
    figures = f"{device}: loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps; {len(changed)} adapter weights"
    return passed(f"{figures} changed, nothing else", losses=losses)


@train_check("accelerate", "accelerate's save_state and load_state resume to the same loss")
def accelerate_resume(device: str) -> Result:
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    model, ids = tiny_llama(), batch(str(accelerator.device))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))

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
    bound = 1e-5 if device == "cpu" else 1e-4  # a GPU sums in another order each time
    error = max(abs(a - b) for a, b in zip(first, second))
    return within({"difference of the losses after load_state": (error, bound)}, device, BROKEN)


@train_check(
    "trainer-resume",
    "what Trainer.train(resume_from_checkpoint=...) does on this torch, by trying it",
    each_gpu=False,
)
def trainer_resume(device: str) -> Result:
    visible = os.environ.get(
        "CUDA_VISIBLE_DEVICES"
    )  # with several GPUs, Trainer would spread this tiny model over them
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": row, "labels": row} for row in batch("cpu").repeat(4, 1)]

    def trainer(steps: int) -> Any:
        arguments = TrainingArguments(
            "run",
            max_steps=steps,
            save_steps=1,
            per_device_train_batch_size=2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        return Trainer(model=tiny_llama(), args=arguments, train_dataset=data)

    trainer(1).train()
    try:
        trainer(2).train(resume_from_checkpoint=True)
    except ValueError as error:
        if "CVE-2025-32434" not in str(error) and "torch.load" not in str(error):
            raise
        remedy = "resume with accelerate's save_state/load_state, or by the lines in docs/RUNPOD_H100_SESSION.md"
        return warned(
            "Trainer refuses to resume on this torch (CVE-2025-32434): known, and so locked", remedy
        )
    return passed("Trainer resumes from its own checkpoint")
