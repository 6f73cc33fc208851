"""The checks of training and data see what does not train and what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lockedenv.verify.checks import data, training


def test_training_checks_see_what_does_not_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: None)
        result = training.qlora("cpu")
        assert result.verdict == "fail"
        assert "expected the adapters alone" in result.summary
    with monkeypatch.context() as patch:
        from accelerate import Accelerator

        patch.setattr(Accelerator, "load_state", lambda self, path: None)
        result = training.accelerate_resume("cpu")
        assert "difference of the losses after load_state" in result.summary
    from transformers import LlamaForCausalLM

    load = LlamaForCausalLM.from_pretrained

    def load_damaged(path: str, **options: Any) -> Any:
        model = load(path, **options)
        model.lm_head.weight.data[0] += 1
        return model

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", load_damaged)
    result = training.transformers_model("cpu")
    assert "the logits differ after saving and loading" in result.summary


def test_training_checks_see_bfloat16_that_is_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import LlamaForCausalLM

    assert training.transformers_model("cpu").verdict == "pass"
    convert = LlamaForCausalLM.to

    def ignore_type(model: Any, place: Any) -> Any:
        if place == torch.bfloat16:
            return model
        return convert(model, place)

    monkeypatch.setattr(LlamaForCausalLM, "to", ignore_type)
    result = training.transformers_model("cpu")
    assert result.verdict == "fail"
    assert "asked for bfloat16" in result.summary


def test_data_checks_see_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from scipy import stats

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_from_disk", lambda path: {"square": [0]})
        assert data.datasets_roundtrip("cpu").verdict == "fail"
    monkeypatch.setattr(stats, "false_discovery_control", lambda p: p)
    result = data.statistics("cpu")
    assert result.verdict == "fail"
    assert "Benjamini-Hochberg" in result.summary


def test_hub_check_sees_that_every_fast_way_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_ENABLE_HF_TRANSFER", False, raising=False)
    assert data.hub("cpu").verdict == "pass"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    result = data.hub("cpu")
    assert result.verdict == "warn"
    assert result.remedy == "unset HF_HUB_DISABLE_XET"
