"""The tiny models that the checks and the certificate train. Nothing is downloaded.

torch and transformers are imported only when a model is made, in the prefix's interpreter.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 256
POSITIONS = 64


def tiny_llama() -> Any:
    """A Llama of 100,000 random parameters, always the same ones."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def batch(device: str) -> Any:
    """Four sequences of 32 random tokens, always the same ones, on a device."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCABULARY, (4, 32), generator=generator).to(device)


def qlora_model(base: Any, device: str) -> Any:
    """The base model in 4 bit with LoRA adapters on its attention, ready to train.

    The base is saved into the current folder on its way, as `base`.
    """
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    place: Any = "cpu" if device == "cpu" else torch.cuda.current_device()
    base.save_pretrained("base", safe_serialization=True)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    quantized = LlamaForCausalLM.from_pretrained(
        "base", quantization_config=four_bit, device_map={"": place}
    )
    adapters = LoraConfig(
        r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(prepare_model_for_kbit_training(quantized), adapters)
