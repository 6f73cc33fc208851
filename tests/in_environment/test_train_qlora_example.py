"""examples/train_qlora.py trains, goes on from its checkpoint, and leaves an adapter and a manifest: on the CPU, a tiny model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from lockedenv.spec import environment
from lockedenv.verify.checks import training

EXAMPLE = Path(__file__).parents[2] / "examples/train_qlora.py"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_qlora", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_trains_and_goes_on_from_its_checkpoint(
    example: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The tests' own, which the verifier would refuse.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if hasattr(example.transformers.trainer, "check_torch_load_is_safe"):
        allowed = example.transformers.trainer.check_torch_load_is_safe
        monkeypatch.setattr(
            example.transformers.trainer, "check_torch_load_is_safe", allowed
        )
    for steps in ("4", "8"):
        words = [str(EXAMPLE), "--tiny", "--output", "out", "--steps", steps]
        monkeypatch.setattr(sys, "argv", words)
        example.main()
    said = capsys.readouterr().out
    assert "going on from out/checkpoints/checkpoint-4" in said
    assert "is not the locked one" not in said
    assert (folder / "out/adapter/adapter_model.safetensors").exists()
    assert json.loads((folder / "out/manifest.json").read_text())["packages"]
    state = json.loads(
        (folder / "out/checkpoints/checkpoint-8/trainer_state.json").read_text()
    )
    losses = [row["loss"] for row in state["log_history"] if "loss" in row]
    assert len(losses) == 8
    assert losses[-1] < losses[0]


def test_the_examples_way_to_resume_works(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment.find_by_prefix(Path(sys.prefix)).name == "current":
        assert (
            training.trainer_resume("cpu").verdict == "pass"
        ), "there is nothing to get round"
        return
    assert training.trainer_resume("cpu").verdict == "warn"
    # Put back afterwards.
    monkeypatch.setattr(example.transformers.trainer, "check_torch_load_is_safe", None)
    example.allow_own_checkpoints()
    assert training.trainer_resume("cpu").verdict == "pass"


def test_the_example_refuses_to_start_without_data(
    example: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--output", "out"])
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert "--data FILE is needed, or --tiny" in capsys.readouterr().err
