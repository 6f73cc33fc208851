#!/usr/bin/env python
"""Fine-tunes a language model with QLoRA: a 4-bit base, LoRA adapters, checkpoints on the volume.

Copy it and change it.

    python examples/train_qlora.py --model meta-llama/Llama-3.1-8B --data train.jsonl \\
        --output /workspace/results/run1
    python examples/train_qlora.py --tiny --output /tmp/tiny    a tiny model: no GPU, no download

DATA is a file of JSON lines, each with a field "text". Run the same command again to go on
from the last checkpoint. Without a GPU bitsandbytes says that it lacks `kernels`: it computes with
its own code, and `kernels` would fetch compiled code without a hash.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

CHECKPOINTING = {"use_reentrant": False}  # torch will ask for this choice
TINY_TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A locked environment is the same every time.",
]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Fine-tunes a language model with QLoRA."
    )
    parser.add_argument(
        "--model",
        default="meta-llama/Llama-3.1-8B",
        help="a name on the hub, or a folder",
    )
    parser.add_argument(
        "--data", type=Path, help="a file of JSON lines, each with a field text"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="checkpoints, adapter and manifest go here",
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--batch", type=int, default=4, help="sequences for each GPU and step"
    )
    parser.add_argument(
        "--length", type=int, default=1024, help="tokens in a sequence, at most"
    )
    parser.add_argument("--rate", type=float, default=2e-4, help="the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--attention", default="sdpa", help="or flash_attention_2, flash_attention_4"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="try this script: a tiny model and 8 steps"
    )
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.steps = min(arguments.steps, 8)
        arguments.length = 32
    elif arguments.data is None:
        parser.error("--data FILE is needed, or --tiny")
    elif not arguments.data.is_file():
        parser.error(f"--data {arguments.data} is not a file")
    return arguments


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, so that nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"]
    )
    tokenizer.train_from_iterator(TINY_TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>"
    )


def save_tiny_model(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A Llama of two layers with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_model(name: str, attention: str) -> Any:
    """The model with its weights in 4 bits, and LoRA adapters that train."""
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    device = "cpu"
    if torch.cuda.is_available():
        device = torch.cuda.current_device()
    model = AutoModelForCausalLM.from_pretrained(
        name,
        quantization_config=four_bit,
        attn_implementation=attention,
        dtype=torch.bfloat16,
        device_map={"": device},
    )
    model = prepare_model_for_kbit_training(
        model, gradient_checkpointing_kwargs=CHECKPOINTING
    )
    adapters = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, adapters)


def load_data(arguments: argparse.Namespace, tokenizer: Any) -> Dataset:
    """The texts as tokens."""
    if arguments.tiny:
        data = Dataset.from_dict({"text": TINY_TEXTS * 16})
    else:
        data = load_dataset("json", data_files=str(arguments.data), split="train")

    def tokenize(rows: dict[str, list[str]]) -> Any:
        return tokenizer(rows["text"], truncation=True, max_length=arguments.length)

    return data.map(tokenize, batched=True, remove_columns=data.column_names)


def allow_own_checkpoints() -> None:
    """Lets Trainer resume on torch older than 2.6, which transformers refuses (CVE-2025-32434).

    The checkpoints in --output are this script's own. Never do this for a
    checkpoint from someone else.
    """
    if hasattr(transformers.trainer, "check_torch_load_is_safe"):
        transformers.trainer.check_torch_load_is_safe = lambda: None


def write_manifest(output: Path, environ: dict[str, str]) -> None:
    """What produced this result: every package, the GPU, the driver, the commit.

    `environ`: the variables of the shell, without those that the Trainer has set since.
    """
    program = Path(sys.prefix) / "bin/maximalcai"
    manifest = output / "manifest.json"
    command = [program, "manifest", manifest, "--level", "quick"]
    subprocess.run(command, env=environ, check=True)


def main() -> None:
    environ = dict(os.environ)
    arguments = parse_arguments()
    set_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    name = arguments.model
    if arguments.tiny:
        name = str(arguments.output / "tiny-model")
        if not Path(name).is_dir():
            save_tiny_model(Path(name), make_tiny_tokenizer())
    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    options = TrainingArguments(
        output_dir=str(arguments.output / "checkpoints"),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.rate,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=torch.cuda.is_available(),
        gradient_checkpointing_kwargs=CHECKPOINTING,
        logging_steps=max(arguments.steps // 20, 1),
        save_steps=max(arguments.steps // 4, 1),
        save_total_limit=2,
        seed=arguments.seed,
        report_to="none",
    )
    trainer = Trainer(
        model=load_model(name, arguments.attention),
        args=options,
        train_dataset=load_data(arguments, tokenizer),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    checkpoint = None
    if Path(options.output_dir).is_dir():
        checkpoint = get_last_checkpoint(options.output_dir)
    if checkpoint:
        print(f"going on from {checkpoint}")
        allow_own_checkpoints()
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(arguments.output / "adapter"))
    if trainer.is_world_process_zero():
        write_manifest(arguments.output, environ)
        print(f"the adapter and the manifest are in {arguments.output}")


if __name__ == "__main__":
    main()
