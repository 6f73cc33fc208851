"""What is wrong with the package index is named before what pip and uv say of it."""

from __future__ import annotations

import http.server
import shutil
import ssl
import sys
import threading
from pathlib import Path
from typing import Iterator

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.backends import index, uv_program
from lockedenv.errors import Stop
from lockedenv.host.process import CommandResult

LOGIN = b"<html><body><form action='/login'>Welcome to the hotel</form></body></html>"
CA_SETTINGS = """
[ca]
default_ca = own
[own]
database = {0}/index.txt
serial = {0}/serial
new_certs_dir = {0}
private_key = {0}/key.pem
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = DNS:localhost
basicConstraints = CA:true
"""
NOWHERE = "http://127.0.0.1:9"  # nobody listens there


class LoginPage(http.server.BaseHTTPRequestHandler):
    """Answers everything with a login page; with `status` 401, with a refusal."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(LOGIN)))
        self.end_headers()
        self.wfile.write(LOGIN)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def login_page() -> Iterator[http.server.HTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LoginPage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    LoginPage.status = 200


@pytest.fixture
def address(login_page: http.server.HTTPServer) -> str:
    return f"http://127.0.0.1:{login_page.server_address[1]}/simple"


@pytest.fixture
def inspected(login_page: http.server.HTTPServer, tmp_path: Path) -> str:
    """The same over TLS, with a certificate of an authority that nobody here knows."""
    key = tmp_path / "key.pem"
    certificate = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    sh(*command, "-keyout", key, "-out", certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    login_page.socket = context.wrap_socket(login_page.socket, server_side=True)
    return f"https://localhost:{login_page.server_address[1]}/simple"


@pytest.fixture(autouse=True)
def without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


def problem_of(environ: dict[str, str]) -> str:
    problem = index.index_problem(environ)
    assert problem is not None
    return str(problem)


def test_a_login_page_is_named(address: str) -> None:
    said = problem_of({"UV_DEFAULT_INDEX": address})
    assert "answers with a page that is no package index, as a login page" in said
    assert "export UV_DEFAULT_INDEX=" in said


def test_an_index_that_wants_a_password_is_named(address: str) -> None:
    LoginPage.status = 401
    assert "wants a user and a password (HTTP 401)" in problem_of(
        {"UV_DEFAULT_INDEX": address}
    )


@pytest.mark.skipif(
    not shutil.which("openssl"), reason="no openssl here to make a certificate"
)
def test_tls_inspection_is_named(inspected: str) -> None:
    said = problem_of({"UV_DEFAULT_INDEX": inspected})
    assert "signed by an authority that this machine does not believe" in said
    assert "export SSL_CERT_FILE=/path/to/company-ca.pem" in said


def test_an_index_that_does_not_answer_is_named() -> None:
    said = problem_of({"UV_DEFAULT_INDEX": NOWHERE})
    assert "the package index 127.0.0.1:9 does not answer" in said


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_a_proxy_that_does_not_answer_is_named(
    variable: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said that the index does not answer."""
    monkeypatch.setenv(variable, f"{scheme}://user:s3cr3t@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    if variable == "HTTP_PROXY":
        # curl reads the lower case alone; both are set as a rule.
        monkeypatch.setenv("http_proxy", f"{scheme}://user:s3cr3t@127.0.0.1:9")
    said = problem_of({"UV_DEFAULT_INDEX": "http://index.invalid/simple"})
    assert "does not answer through the proxy" in said, said
    assert "HTTPS_PROXY" in said, said
    assert "s3cr3t" not in said
    monkeypatch.setenv("NO_PROXY", "index.invalid")
    assert "proxy http" not in problem_of(
        {"UV_DEFAULT_INDEX": "http://index.invalid/simple"}
    )


@pytest.mark.parametrize(
    "verified, said",
    [
        ("9", "not valid at the time of this machine's clock"),
        ("10", "not valid at the time of this machine's clock"),
        ("62", "not that of index.invalid"),
        ("19", "signed by an authority that this machine does not believe"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told_apart(
    verified: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock in the past was told as an authority that is not believed."""
    problem = "curl: (60) SSL certificate problem"
    answer = CommandResult(60, f"\n000 {verified}", problem)
    monkeypatch.setattr(index, "ask", lambda *a, **options: answer)
    assert said in problem_of({"UV_DEFAULT_INDEX": "https://index.invalid/simple"})


@pytest.mark.skipif(
    not shutil.which("openssl"), reason="no openssl here to make a certificate"
)
def test_a_certificate_of_tomorrow_means_that_the_clock_is_wrong(
    login_page: http.server.HTTPServer, tmp_path: Path
) -> None:
    (tmp_path / "ca.cnf").write_text(CA_SETTINGS.format(tmp_path))
    (tmp_path / "index.txt").touch()
    (tmp_path / "serial").write_text("01\n")
    request = [
        "openssl",
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=localhost",
    ]
    sh(*request, "-keyout", tmp_path / "key.pem", "-out", tmp_path / "request.pem")
    sign = [
        "openssl",
        "ca",
        "-batch",
        "-selfsign",
        "-notext",
        "-config",
        tmp_path / "ca.cnf",
    ]
    sign += ["-startdate", "20480101000000Z", "-enddate", "20490101000000Z"]
    sh(*sign, "-in", tmp_path / "request.pem", "-out", tmp_path / "certificate.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    login_page.socket = context.wrap_socket(login_page.socket, server_side=True)
    address = f"https://localhost:{login_page.server_address[1]}/simple"
    environ = {
        "UV_DEFAULT_INDEX": address,
        "SSL_CERT_FILE": str(tmp_path / "certificate.pem"),
    }
    said = problem_of(environ)
    assert "not valid at the time of this machine's clock" in said, said


def test_where_no_index_is_set_it_is_pips_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written into our code; pip knows it."""
    monkeypatch.setattr(index, "index_settings", lambda environ: {})
    index.default_index.cache_clear()  # another test may have had no pip
    assert index.index_address({}).startswith("https://")
    assert index.index_address({}).endswith("/simple")
    monkeypatch.setattr(index, "pip_command", lambda: [])
    index.default_index.cache_clear()
    assert index.index_address({}) == ""
    assert index.index_problem({}) is None
    index.default_index.cache_clear()


def test_the_password_of_the_index_is_not_shown() -> None:
    said = problem_of({"UV_DEFAULT_INDEX": "http://user:s3cr3t@127.0.0.1:9/simple"})
    assert "s3cr3t" not in said


def test_a_socks_proxy_without_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ended in "No matching distribution found for uv"."""
    monkeypatch.setattr(index, "pip_command", lambda: [sys.executable, "-m", "pip"])
    said = str(index.socks_problem({"ALL_PROXY": "socks5h://user:s3cr3t@127.0.0.1:9"}))
    assert "pip needs the package PySocks for a SOCKS proxy" in said
    assert "s3cr3t" not in said
    assert index.socks_problem({"HTTPS_PROXY": "http://127.0.0.1:9"}) is None


def test_a_failure_begins_with_its_cause(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", address)
    with pytest.raises(Stop) as stop:
        with uv_program.naming_the_cause():
            raise Stop("No matching distribution found for uv")
    first, second = str(stop.value).splitlines()
    assert "login page" in first
    assert "No matching distribution found for uv" in second


def test_the_set_up_says_the_cause(address: str, tmp_path: Path) -> None:
    command = [ROOT / "scripts/setup_runpod_environment.sh", "--backend", "pip"]
    command += ["--prefix", tmp_path / "env", "--cache", tmp_path / "cache"]
    environ = clean_environ(UV_DEFAULT_INDEX=address, PIP_INDEX_URL=address)
    done = sh(*command, check=False, env=environ)
    assert done.returncode == 1, done.stdout
    assert "as a login page of a network does" in done.stdout, done.stdout
    assert not (tmp_path / "env").exists()
