"""The training path on a tiny random Llama: nothing is downloaded."""

from __future__ import annotations

import os
from typing import Any

from lockedenv.verify.checks import FULL, check
from lockedenv.verify.results import Result, failed, passed, warned

BROKEN = "the stack does not train here: run --level quick for what differs from the lock"


def tiny_llama(**options: Any) -> Any:
    """A Llama of 100,000 random parameters, always the same ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    config._attn_implementation = options.pop("attention", "sdpa")
    return LlamaForCausalLM(config)


def batch(device: str) -> Any:
    import torch

    return torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(1)).to(device)


@check("transformers", "a model's forward and backward run, and save as safetensors and load gives equal logits", FULL,
       remedy=BROKEN, child=True)  # fmt: skip
def transformers_model(device: str) -> Result:
    import torch
    from transformers import LlamaForCausalLM

    model, ids = tiny_llama().to(device), batch(device)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    if without:
        return failed(f"no finite gradient for {without[0]}", BROKEN)
    model.save_pretrained("model", safe_serialization=True)
    if not os.path.exists("model/model.safetensors"):
        return failed("save_pretrained wrote no model.safetensors", BROKEN)
    again = LlamaForCausalLM.from_pretrained("model").to(device)
    with torch.no_grad():
        same = torch.equal(model.eval()(ids).logits, again.eval()(ids).logits)
    if not same:
        return failed("the logits differ after saving and loading", BROKEN)
    return passed(f"{device}: loss {loss.item():.3f}, gradients finite, logits identical after safetensors")


@check("qlora", "QLoRA trains: 4-bit base, LoRA adapters; the loss falls and only the adapters change", FULL,
       remedy=BROKEN, child=True)  # fmt: skip
def qlora(device: str) -> Result:
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    tiny_llama().save_pretrained("base", safe_serialization=True)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    base = LlamaForCausalLM.from_pretrained("base", quantization_config=four, device_map={"": device})
    model = get_peft_model(
        prepare_model_for_kbit_training(base), LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
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
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    adapters = {name for name in before if "lora_" in name}
    if changed != adapters:
        return failed(f"changed by training: {sorted(changed ^ adapters)[0]}, expected the adapters alone", BROKEN)
    if not losses[-1] < losses[0]:
        return failed(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}", BROKEN)
    figures = f"{device}: loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps; {len(adapters)} adapter weights"
    return passed(f"{figures} changed, nothing else", losses=losses)


@check("accelerate", "accelerate's save_state and load_state resume to the same loss", FULL, remedy=BROKEN, child=True)
def accelerate_resume(device: str) -> Result:
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    model = tiny_llama()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    ids = batch(str(accelerator.device))

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
    error = max(abs(a - b) for a, b in zip(first, second))
    bound = 1e-5 if device == "cpu" else 1e-4  # a GPU sums in another order each time
    if not error <= bound:
        return failed(f"after load_state the losses are {second}, not {first}", BROKEN)
    return passed(f"{device}: two steps after load_state differ by {error:.1e} (bound {bound:.1e})")


@check("trainer-resume", "what Trainer.train(resume_from_checkpoint=...) does on this torch, by trying it", FULL,
       remedy=BROKEN, child=True)  # fmt: skip
def trainer_resume(device: str) -> Result:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # with several GPUs, Trainer would spread this tiny model over them
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": row, "labels": row} for row in batch("cpu").repeat(4, 1)]

    def trainer(steps: int) -> Any:
        arguments = TrainingArguments(
            "run", max_steps=steps, save_steps=1, per_device_train_batch_size=2, report_to=[], disable_tqdm=True,
            use_cpu=device == "cpu",
        )  # fmt: skip
        return Trainer(model=tiny_llama(), args=arguments, train_dataset=data)

    trainer(1).train()
    try:
        trainer(2).train(resume_from_checkpoint=True)
    except ValueError as error:
        if "CVE-2025-32434" not in str(error) and "torch.load" not in str(error):
            raise
        remedy = (
            "resume with accelerate's save_state/load_state; or, for a checkpoint that you wrote yourself, replace "
            "transformers.trainer.check_torch_load_is_safe by a function that does nothing (docs/RUNPOD_H100_SESSION.md)"
        )
        return warned("Trainer refuses to resume on torch < 2.6 (CVE-2025-32434): known, and so locked", remedy)
    return passed("Trainer resumes from its own checkpoint")
