"""What the machine's variables may say to pip, uv, micromamba, curl and Python."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lockedenv.backends import index, uv_program
from lockedenv.host.process import ask
from lockedenv.pod import rates
from lockedenv.spec.variables import RULES, Treatment, clean, rule_of

CERTIFICATE = "-----BEGIN CERTIFICATE-----\n{0}\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "name",
    [
        "CONDARC",
        "MAMBARC",
        "CONDA_PREFIX",
        "CONDA_CHANNELS",
        "MAMBA_NO_RC",
        "UV_SYSTEM_PYTHON",
        "UV_PYTHON",
        "UV_TARGET",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_CONSTRAINT",
        "PIP_USER",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "PYTHONUSERBASE",
        "VIRTUAL_ENV",
        "XDG_CONFIG_HOME",
        "RUST_LOG",
    ],
)
def test_what_would_steer_a_tool_is_cleared(name: str) -> None:
    """With CONDARC or MAMBARC and --no-rc, micromamba aborts: "Configuration files disabled by 'no_rc'"."""
    assert clean({name: "/elsewhere"}) == {}


@pytest.mark.parametrize(
    "name", ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "NETRC", "HOME", "PATH"]
)
def test_the_way_to_the_network_is_kept(name: str) -> None:
    assert clean({name: "as it is"}) == {name: "as it is"}


def test_each_rule_decides_something_and_says_why() -> None:
    for rule in RULES:
        example = rule.pattern.replace("*", "X")
        assert (
            rule_of(example) is rule
        ), f"{rule.pattern} stands below a rule that takes its names"
        assert rule.readers
        assert rule.why
    assert {rule.treatment for rule in RULES} == set(Treatment)


def test_the_users_index_strategy_does_not_override_ours(tmp_path: Path) -> None:
    theirs = {
        **os.environ,
        "UV_INDEX_STRATEGY": "first-index",
        "UV_DEFAULT_INDEX": "https://mine",
    }
    found = uv_program.uv_environment(tmp_path, tmp_path / "env", theirs)
    assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert found["UV_DEFAULT_INDEX"] == "https://mine"


def test_the_users_time_limit_for_the_index_is_kept(tmp_path: Path) -> None:
    theirs = {**os.environ, "UV_HTTP_TIMEOUT": "600"}
    assert (
        uv_program.uv_environment(tmp_path, tmp_path / "env", theirs)["UV_HTTP_TIMEOUT"]
        == "600"
    )


@pytest.mark.parametrize(
    "variable", ["PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
)
def test_a_companys_authority_that_one_tool_was_told_is_believed_by_all(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip's `cert` lost to the system's SSL_CERT_FILE."""
    monkeypatch.setattr(index, "pip_settings", lambda environ: {})
    company = tmp_path / "company.pem"
    company.write_text(CERTIFICATE.format("the company's"))
    system = tmp_path / "system.pem"
    system.write_text(CERTIFICATE.format("the system's"))
    environ = {"SSL_CERT_FILE": str(system), variable: str(company)}
    if variable == "PIP_CERT":
        monkeypatch.setattr(
            index, "pip_settings", lambda environ: {"cert": str(company)}
        )
    joined = Path(index.index_settings(environ)["SSL_CERT_FILE"])
    assert "the company's" in joined.read_text()
    assert "the system's" in joined.read_text()
    assert (
        joined.parent.stat().st_mode & 0o077 == 0
    ), "nobody else may choose who is believed"
    assert index.index_settings(environ)["SSL_CERT_FILE"] == str(joined)


def test_certificates_that_cannot_be_read_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MACHINE_CERTIFICATES", ())
    os.mkfifo(tmp_path / "pipe")
    environ = {
        "SSL_CERT_FILE": str(tmp_path / "pipe"),
        "REQUESTS_CA_BUNDLE": "/nowhere",
    }
    assert index.certificate_file(environ, "/dev/zero") == ""


def test_the_users_curlrc_and_uv_toml_are_not_read(tmp_path: Path) -> None:
    (tmp_path / ".curlrc").write_text(f'output = "{tmp_path}/by-the-curlrc"\n')
    (tmp_path / "served").write_text("content")
    theirs = {**os.environ, "HOME": str(tmp_path)}
    for command in (index.ASK_INDEX, rates.FETCH_RANGE):
        config = f'url = "{(tmp_path / "served").as_uri()}"\n'
        answer = ask(command, 20, config, env=theirs)
        assert (answer.status, answer.output) == (0, "content")
    assert not (tmp_path / "by-the-curlrc").exists()
    assert (
        uv_program.uv_environment(tmp_path, tmp_path / "env", theirs)["UV_NO_CONFIG"]
        == "1"
    )
