"""The code of docs/RUNPOD_H100_SESSION.md runs, on the CPU and on a tiny model."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest
from lockedenv.spec import environment
from lockedenv.spec.tiny_models import tiny_llama
from lockedenv.verify.checks import training

SESSION = (Path(__file__).parents[2] / "docs/RUNPOD_H100_SESSION.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", SESSION, re.S)]
# What the document names, and what stands for it here: a tiny model, SDPA in place of flash-attn.
REPLACED = {
    '"meta-llama/Llama-3.1-8B"': '"tiny"',
    '"flash_attention_2"': '"sdpa"',
    '{"": 0}': '{"": "cpu"}',
    '"cuda"': '"cpu"',
    '"/workspace/results/adapter"': '"adapter"',
}


def test_the_session_documents_qlora_run_trains() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0}
    for word in "The locked environment is the verified one .".split():
        words[word] = len(words)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained("tiny")
    tiny_llama().save_pretrained("tiny", safe_serialization=True)
    code = BLOCKS[0]
    for theirs, ours in REPLACED.items():
        assert theirs in code
        code = code.replace(theirs, ours)
    losses: list[float] = []
    scope = {"print": lambda *printed: losses.append(float(printed[-1]))}
    exec(compile(code, "RUNPOD_H100_SESSION.md", "exec"), scope)
    assert Path("adapter/adapter_model.safetensors").exists()
    assert len(losses) == 10 and losses[-1] < losses[0]


def test_the_session_documents_way_to_resume_a_trainer_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers.trainer

    if environment.find_by_prefix(Path(sys.prefix)).name == "current":
        assert training.trainer_resume("cpu").verdict == "pass", "there is nothing to get round"
        return
    assert training.trainer_resume("cpu").verdict == "warn"
    # Put back afterwards.
    monkeypatch.setattr(transformers.trainer, "check_torch_load_is_safe", None)
    exec(BLOCKS[1])
    assert training.trainer_resume("cpu").verdict == "pass"
