"""Whether compiled kernels from the Hub are in use is said, with what turns them off."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lockedenv.spec.hub_kernels import SWITCHED_OFF, find_hub_kernels
from lockedenv.verify.checks import hub_kernels


def run_check(version: str | None, environ: dict[str, str]) -> Any:
    installed = SimpleNamespace(version=lambda name: version, prefix=Path("/env"))
    return hub_kernels.hub_kernels(
        SimpleNamespace(installed=installed, environ=environ)
    )


def test_without_the_package_nothing_is_fetched(tmp_path: Path) -> None:
    assert not find_hub_kernels("", {"USE_HUB_KERNELS": "1"}, tmp_path).possible
    result = run_check(None, {})
    assert result.verdict == "pass"
    assert "not installed" in result.summary


def test_what_would_be_fetched_and_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".cache/huggingface/hub/kernels--kernels-community--flash-attn2").mkdir(
        parents=True
    )
    (tmp_path / ".cache/huggingface/hub/models--gpt2").mkdir()
    result = run_check("0.18.2", {"LOCAL_KERNELS": "/home/me/kernel"})
    assert result.verdict == "warn"
    assert result.remedy == "/env/bin/python -m pip uninstall -y kernels"
    text = "\n".join(result.details)
    assert "layers of models would be replaced" in text
    assert "flash-attn2 where" in text
    assert "LOCAL_KERNELS=/home/me/kernel" in text
    assert "was fetched: kernels--kernels-community--flash-attn2" in text
    assert "gpt2" not in text


def test_the_switches_that_activate_sets_leave_what_is_asked_for_by_name(
    tmp_path: Path,
) -> None:
    """An attention implementation is still fetched: only without the network it is not."""
    found = find_hub_kernels("0.18.2", SWITCHED_OFF, tmp_path)
    assert not found.layers
    assert found.fetching
    assert found.possible
    assert not find_hub_kernels("0.18.2", {"HF_HUB_OFFLINE": "1"}, tmp_path).fetching
    assert find_hub_kernels("0.18.2", {"DISABLE_KERNEL_MAPPING": "0"}, tmp_path).layers


@pytest.mark.parametrize("variable", ["KERNELS_CACHE", "HF_HUB_CACHE"])
def test_kernels_lie_where_the_variables_say(variable: str, tmp_path: Path) -> None:
    (tmp_path / "kernels--a--b").mkdir()
    found = find_hub_kernels("0.18.2", {variable: str(tmp_path)}, Path("/nowhere"))
    assert found.fetched == ("kernels--a--b",)
