"""What is printed or written shows no secret, and hides nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from lockedenv.redaction import SHAPES, redact, redact_document

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4"

HIDDEN = [
    ("https://user:hunter2@mirror.example/x", "https://***@mirror.example/x"),
    ("https://user:p@ss@w@rd@mirror.example/x", "https://***@mirror.example/x"),
    (
        "https://mirror.example/t/ab-123/conda-forge/x",
        "https://mirror.example/t/***/conda-forge/x",
    ),
    ("conda.example/t/ab-123/main", "conda.example/t/***/main"),
    (
        "mirror:8081/t/ab-123/main GET /t/ab-123/main",
        "mirror:8081/t/***/main GET /t/***/main",
    ),
    (
        "GET https://mirror.example/x?token=abc failed",
        "GET https://mirror.example/x?*** failed",
    ),
    ("https://s3.example/w.whl?X-Amz-Signature=ab&e=1", "https://s3.example/w.whl?***"),
    (
        "https://h.example/w.whl#access_token=abc",
        "https://h.example/w.whl#access_token=***",
    ),
    ("https://h.example/w.whl;token=abc", "https://h.example/w.whl;token=***"),
    (
        "https://h.example/w.whl#sha256=00&token=abc;key=b",
        "https://h.example/w.whl#sha256=00&token=***;key=***",
    ),
    ("h.example/w.whl;session=abc", "h.example/w.whl;session=***"),
    ("login me:hunter2@index.example failed", "login ***@index.example failed"),
    ("using github_pat_11ABCDEFG0123456789_abc", "using ***"),
    ("ghp_abcdefghij gho_abcdefghij ghs_abcdefghij", "*** *** ***"),
    ("key sk-proj-abcd1234efgh", "key ***"),
    ("key sk-ant-api03-abcdEFGH", "key ***"),
    ("glpat-abcdefgh12345", "***"),
    ("AKIAIOSFODNN7EXAMPLE", "***"),
    ("ASIAIOSFODNN7EXAMPLE,", "***,"),
    ("hf_abcdefghijk and hf_oauth_abcdefgh", "*** and ***"),
    ("xoxb-1234-abcdefgh xapp-1-abcdefgh", "*** ***"),
    (f"found {JWT} here", "found *** here"),
    ("rpa_ABCDEFGHIJKLMNOPQRST", "***"),
    ("pypi-AgEIcHlwaS5vcmcCJGNjY", "***"),
    ("Cookie: session=abc; other=def", "Cookie: ***"),
    ("set-cookie: session=abc; Path=/", "set-cookie: ***"),
    (
        "curl -H 'Cookie: a=b; c=d' https://x.example",
        "curl -H 'Cookie: ***' https://x.example",
    ),
    ("Authorization: Basic abcdefg", "Authorization: ***"),
    ('"Authorization": "Bearer abc.def"', '"Authorization": ***'),
    ("Proxy-Authorization: Basic abc", "Proxy-Authorization: ***"),
    ("PGPASS=p4ss psql", "PGPASS=*** psql"),
    ("PGPASSWORD=p4ss MYSQL_PASS='p 4'", "PGPASSWORD=*** MYSQL_PASS=***"),
    ("HF_TOKEN=abcdef WANDB_API_KEY=123", "HF_TOKEN=*** WANDB_API_KEY=***"),
    ("AWS_SECRET_ACCESS_KEY=abc/def+g", "AWS_SECRET_ACCESS_KEY=***"),
    ("password = p4ss", "password = ***"),
    ('{"token": "abc def", "name": "x"}', '{"token": ***, "name": "x"}'),
    ("--token abcdefg --quiet", "--token *** --quiet"),
    ("--hf-token=abcdefg", "--hf-token=***"),
    (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----\nend",
        "***\nend",
    ),
]

SHOWN = [
    "tokenizers==0.22.2 --hash=sha256:" + "ab" * 32,
    "tokenizers: 0.22.2, hf_transfer 0.1.9 and hf_xet",
    "https://pypi.example/simple/torch/torch-2.5.1-cp311-cp311-linux_x86_64.whl#sha256="
    + "0" * 64,
    "mine @ git+https://github.example/me/mine@0123456789abcdef#subdirectory=python/mine",
    "git@github.com:org/repo.git",
    "image:tag@sha256:" + "0" * 64,
    "PASS  tokenizers       3 of 3",
    "bypass: 5 checks, pass: 3",
    "risk-based and task-oriented-work, disk-usage",
    "scripts/setup_runpod_environment.sh --wheel flash_attn-2.8.3+cu12torch2.5cxx11abiFALSE-cp311.whl",
    "requires-dist = 'x ; python_version==\"3.11\"'",
    "the tokenizer's own tokens",
]


@pytest.mark.parametrize("text, shown", HIDDEN, ids=[text[:30] for text, _ in HIDDEN])
def test_secrets_are_never_shown(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown, "a redacted text is not changed any more"


@pytest.mark.parametrize("text", SHOWN, ids=[text[:30] for text in SHOWN])
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redact(text) == text


def test_every_shape_of_the_table_has_an_example_here() -> None:
    for shape in SHAPES:
        found = [text for text, _ in HIDDEN if shape.pattern.search(text)]
        assert found or shape.kind in ("Google key", "npm token"), shape.kind


def test_the_path_of_a_folder_named_t_is_shown(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    text = f"'{tmp_path}/t/env/bin': no such file, from file://{tmp_path}/t/wheels"
    assert redact(text) == text


def test_a_document_keeps_its_shape_and_loses_its_secrets() -> None:
    document = {
        "size": 5,
        "none": None,
        "flash_attention": "https://me:pw@h.example/w.whl?sig=1, as given",
        "variables": {"HF_TOKEN": "x y", "HF_HOME": "/x", "PGPASS": "z"},
        "mirrors": ["https://me:pw@h.example/conda"],
    }
    assert redact_document(document) == {
        "size": 5,
        "none": None,
        "flash_attention": "https://***@h.example/w.whl?*** as given",
        "variables": {"HF_TOKEN": "***", "HF_HOME": "/x", "PGPASS": "***"},
        "mirrors": ["https://***@h.example/conda"],
    }
