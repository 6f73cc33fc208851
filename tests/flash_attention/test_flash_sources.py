"""Which source of flash-attn is asked, in which order, and what becomes of a wheel that is wrong."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
from fixtures.commands import ROOT
from fixtures.fault_server import FaultServer
from fixtures.listener import Listener
from flash_stand_ins import PREBUILT, TORCH, make_gpus, make_wheel
from lockedenv.errors import Stop
from lockedenv.install.flash_attention import provide, sources
from lockedenv.install.flash_attention.built_wheels import (
    FOLDER,
    keep_built_wheel,
    make_key,
)
from lockedenv.install.flash_attention.decide import (
    FlashAction,
    FlashPlan,
    decide,
    plan_flash_attention,
)
from lockedenv.install.flash_attention.installed import (
    InstalledWheel,
    WheelOrigin,
    read_installed_wheel,
    write_installed_wheel,
)
from lockedenv.install.flash_attention.proof import Proof, Prover
from lockedenv.install.flash_attention.sources import (
    SOURCES,
    BroughtWheel,
    GivenWheel,
    Wanted,
    find_prebuilt_misfit,
)
from lockedenv.install.flash_attention.target import GLIBC
from lockedenv.install.request import FlashRequest, Installation
from lockedenv.prefix.place import Prefix
from lockedenv.spec.environment import Environment
from lockedenv.spec.gpu_target import GpuTarget
from lockedenv.spec.layers import BackendName

DEFAULT = Environment(ROOT)
CURRENT = Environment(ROOT / "environments/current")
H100 = make_gpus("9.0")
WRONG_VALUES = Proof("cuda: out error 1.0e+00, bound 1.0e-02", wheel_at_fault=True)


def make_job(
    folder: Path, environment: Environment = DEFAULT, **flash: Any
) -> Installation:
    return Installation(
        environment=environment,
        prefix=Prefix(folder / "env"),
        cache=folder / "cache",
        flash=FlashRequest(**flash),
    )


def carry_out(job: Installation, reporter: Listener, prover: Prover) -> None:
    """Decides for an H100, and does what was decided."""
    plan = decide(job, BackendName.CONDA, H100)
    provide.install(plan, job, Path("uv"), reporter, prover)


def test_the_order_of_the_sources() -> None:
    assert [source.origin for source in SOURCES] == [
        WheelOrigin.GIVEN,
        WheelOrigin.CACHED,
        WheelOrigin.PREBUILT,
        WheelOrigin.BUILT,
    ]


# The plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment, flash, gpus, said",
    [
        (DEFAULT, {"mode": "none"}, H100, "left out, as asked"),
        (DEFAULT, {}, [], "skipped: no GPU. Use --arch 90 to build for an H100 anyway"),
        (DEFAULT, {}, H100, f"the prebuilt wheel {PREBUILT}"),
        (DEFAULT, {"mode": "wheel"}, [], f"the prebuilt wheel {PREBUILT}"),
        (DEFAULT, {"arch": "90"}, [], f"the prebuilt wheel {PREBUILT}"),
        (DEFAULT, {}, make_gpus("7.0"), "cannot be built for compute capability 7.0"),
        (
            DEFAULT,
            {"mode": "build"},
            H100,
            "built for sm_90 with the lock's nvcc and g++, ",
        ),
        (
            CURRENT,
            {},
            H100,
            "flash-attn-4 4.0.0b36, a wheel of the lock: no wheel is built, its common kernels are "
            "compiled for sm_90",
        ),
        (
            CURRENT,
            {},
            [],
            "flash-attn-4 4.0.0b36, a wheel of the lock: no wheel is built, its kernels are "
            "compiled at first use: no GPU is here, and no --arch given",
        ),
        (
            CURRENT,
            {"mode": "build"},
            H100,
            "built for sm_90 with the lock's nvcc and g++, ",
        ),
    ],
)
def test_the_plan_names_the_source(
    environment: Environment,
    flash: dict[str, Any],
    gpus: Any,
    said: str,
    tmp_path: Path,
) -> None:
    job = make_job(tmp_path, environment, **flash)
    text = plan_flash_attention(job, BackendName.CONDA, gpus).text
    assert said in text, text
    assert not text.startswith(","), text


def test_the_plan_hides_the_secrets_of_a_given_address(tmp_path: Path) -> None:
    """The password and the signature of --wheel were printed, also in --dry-run --json."""
    address = f"https://me:hunter2@h.example/{PREBUILT}?X-Amz-Signature=abcdef#access_token=ghi"
    job = make_job(tmp_path, wheel=address, sha256="0" * 64)
    text = plan_flash_attention(job, BackendName.CONDA, H100).text
    assert text == f"https://***@h.example/{PREBUILT}?***, as given"


@pytest.mark.parametrize(
    "environment, flash, gpus, action, archs",
    [
        (DEFAULT, {"mode": "none"}, H100, FlashAction.LEAVE_OUT, ()),
        (DEFAULT, {}, [], FlashAction.LEAVE_OUT, ()),
        (DEFAULT, {}, make_gpus("9.0", "8.6"), FlashAction.INSTALL_WHEEL, ("80", "90")),
        (DEFAULT, {"arch": "90"}, [], FlashAction.INSTALL_WHEEL, ("90",)),
        (DEFAULT, {"wheel": "a.whl"}, [], FlashAction.INSTALL_WHEEL, ()),
        (DEFAULT, {}, make_gpus("7.0"), FlashAction.REFUSE, ()),
        (CURRENT, {}, H100, FlashAction.COMPILE_KERNELS, ()),
        (CURRENT, {"mode": "build"}, H100, FlashAction.INSTALL_WHEEL, ("90",)),
    ],
)
def test_the_decision_is_data(
    environment: Environment,
    flash: dict[str, Any],
    gpus: Any,
    action: FlashAction,
    archs: tuple[str, ...],
    tmp_path: Path,
) -> None:
    plan = decide(make_job(tmp_path, environment, **flash), BackendName.CONDA, gpus)
    assert (plan.action, plan.archs) == (action, archs)


def test_what_was_decided_is_done_whatever_is_here_now(
    tmp_path: Path, without_processes: list[list[str]]
) -> None:
    listener = Listener()
    plan = FlashPlan(FlashAction.LEAVE_OUT, "skipped, says the plan")
    provide.install(plan, make_job(tmp_path), Path("uv"), listener)
    assert listener.lines == ["skipped, says the plan"]
    with pytest.raises(Stop, match="refused, says the plan"):
        plan = FlashPlan(FlashAction.REFUSE, "refused, says the plan")
        provide.install(plan, make_job(tmp_path), Path("uv"), listener)
    assert not without_processes


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, None),
        ({"glibc": "99.1"}, "it needs glibc 99.1, this machine has 2.36"),
        ({"archs": ["80", "100"]}, "it has no code for sm_90"),
        (
            {"url": f"https://x/{PREBUILT.replace('torch2.5', 'torch2.6')}"},
            "torch 2.6, the environment has 2.5",
        ),
        (
            {"url": f"https://x/{PREBUILT.replace('FALSE', 'TRUE')}"},
            "C++ ABI TRUE, the environment has FALSE",
        ),
    ],
)
def test_whether_the_prebuilt_wheel_fits(
    changes: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    wheel = DEFAULT.flash_wheel()
    assert wheel
    wanted = Wanted(make_job(tmp_path), TORCH, ("90",), glibc="2.36")
    misfit = find_prebuilt_misfit(replace(wheel, **changes), wanted)
    if said is None:
        assert misfit is None
    else:
        assert said in str(misfit)
    assert CURRENT.flash_wheel() is None


# A given wheel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, sha256, said",
    [
        (PREBUILT, "0" * 64, f"not {'0' * 64}: it is not installed"),
        (
            PREBUILT.replace("cp311", "cp310"),
            "0" * 64,
            "Python cp310, the environment has cp311",
        ),
        (
            PREBUILT.replace("linux_x86_64", "linux_aarch64"),
            "0" * 64,
            "platform linux_aarch64",
        ),
        (f"missing/{PREBUILT}", "0" * 64, "is not a file"),
    ],
)
def test_a_given_wheel_is_refused_by_name_and_hash(
    name: str, sha256: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / PREBUILT).write_bytes(b"not hashed")
    job = make_job(tmp_path, wheel=str(tmp_path / name), sha256=sha256)
    with pytest.raises(Stop, match=said):
        GivenWheel().bring(Wanted(job, TORCH, ()), Listener())


def test_a_given_wheel_is_fetched_by_its_hash_and_ends_at_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXIMALCAI_RETRY_SECONDS", "0.01")
    name = PREBUILT.replace("linux_x", "manylinux_2_28_x")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name.replace("+", "%2B")).write_bytes(b"a wheel")
    sha256 = hashlib.sha256(b"a wheel").hexdigest()
    with FaultServer(tmp_path / "site") as server:
        address = f"{server.address}/{name.replace('+', '%2B')}?signature=s3cret"
        job = make_job(tmp_path, wheel=address, sha256=sha256)
        wheel = GivenWheel().bring(Wanted(job, TORCH, ()), Listener())
        assert wheel == BroughtWheel(
            job.cache / "wheels" / name, sha256, WheelOrigin.GIVEN
        )
        job = make_job(tmp_path / "other", wheel=address, sha256="0" * 64)
        with pytest.raises(Stop) as error:
            GivenWheel().bring(Wanted(job, TORCH, ()), Listener())
    assert "s3cret" not in str(error.value)


# What becomes of a wheel -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def without_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """No uv and no interpreter: what would be run is listed. The import of every wheel is right."""
    commands: list[list[str]] = []
    (tmp_path / "env").mkdir()
    monkeypatch.setattr(
        provide, "run", lambda command, *a, **k: commands.append(command)
    )
    monkeypatch.setattr(provide.uv_program, "uv_environment", lambda *a: {})
    monkeypatch.setattr(provide, "probe_torch", lambda prefix: TORCH)
    monkeypatch.setattr(provide, "prove_import", lambda *a: Proof())
    monkeypatch.setattr(provide, "read_record_hash", lambda prefix: "installed")
    return commands


Installing = Callable[[Proof], str]


@pytest.fixture
def install_cached(tmp_path: Path, without_processes: list[list[str]]) -> Installing:
    """Installs a cached wheel that a GPU proves with a result; gives what is said, and what becomes of the wheel."""
    pin = DEFAULT.flash_attn()
    assert pin
    key = make_key(pin, TORCH, ("90",))
    wheel = make_wheel(
        tmp_path / f"flash_attn-{pin.version}-cp311-cp311-linux_x86_64.whl", {}
    )

    def install(proof: Proof) -> str:
        job = make_job(tmp_path)
        (job.cache / FOLDER).mkdir(parents=True, exist_ok=True)
        full_key = f"{key}-nvcc12.4-gcc12.2-glibc{GLIBC}"
        kept = keep_built_wheel(wheel, job.cache / FOLDER, full_key, {})
        listener = Listener()
        try:
            carry_out(job, listener, lambda *a: proof)
        except Stop as error:
            listener.note(str(error))
        listener.note("kept" if kept.path.exists() else "deleted")
        return listener.text

    return install


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: CUDA out of memory",
        "no answer within 120 s; stopped",
        "no kernel image is available",
    ],
)
def test_a_gpu_that_cannot_prove_a_wheel_is_not_the_wheels_fault(
    said: str, install_cached: Installing
) -> None:
    """Any failure deleted the shared wheel, two hours of work."""
    text = install_cached(Proof(said))
    assert f"is installed, and its proof could not run: {said}" in text
    assert text.endswith("kept"), text


def test_wrong_values_are_the_wheels_fault(
    install_cached: Installing, without_processes: list[list[str]]
) -> None:
    text = install_cached(WRONG_VALUES)
    said = "is not right, so it was removed again, from the cache too: cuda: out error"
    assert said in text
    assert text.endswith("deleted")
    assert "uninstall" in without_processes[-1]


def test_a_prebuilt_wheel_of_an_earlier_lock_is_replaced(
    install_cached: Installing, tmp_path: Path
) -> None:
    """It stayed, "as --wheel gave it", and was verified."""
    earlier = PREBUILT.replace("2.8.3", "2.8.2")
    noted = InstalledWheel(
        earlier, "0" * 64, WheelOrigin.PREBUILT, record_sha256="installed"
    )
    write_installed_wheel(tmp_path / "env", noted)
    text = install_cached(Proof())
    assert "as --wheel gave it" not in text, text
    assert "from the cache" in text, text
    installed = read_installed_wheel(tmp_path / "env")
    assert installed
    assert installed.origin is WheelOrigin.CACHED
    assert installed.version == "2.8.3"


def test_what_is_there_is_not_installed_again(
    install_cached: Installing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_cached(Proof())
    monkeypatch.setattr(provide, "is_as_installed", lambda *a: True)
    monkeypatch.setattr(provide, "put_wheel", lambda *a: pytest.fail("installed again"))
    text = install_cached(Proof())
    assert "-nvcc12.4-gcc12.2-glibc" in text, text
    assert ") is installed" in text, text


def test_a_prebuilt_wheel_that_computes_wrongly_gives_way_to_the_build(
    tmp_path: Path, without_processes: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prebuilt = make_wheel(tmp_path / PREBUILT, {})
    built = make_wheel(
        tmp_path / "built/flash_attn-2.8.3-cp311-cp311-linux_x86_64.whl", {}
    )
    key = make_key(DEFAULT.flash_attn(), TORCH, ("90",))  # type: ignore[arg-type]
    brought = {
        sources.LockedPrebuilt: BroughtWheel(prebuilt, "0" * 64, WheelOrigin.PREBUILT),
        sources.BuiltFromSource: BroughtWheel(
            built, "1" * 64, WheelOrigin.BUILT, f"{key}-x"
        ),
    }
    for kind, wheel in brought.items():
        monkeypatch.setattr(kind, "bring", lambda self, *a, wheel=wheel: wheel)

    def prover(prefix: Path, version: str, gpu: bool) -> Proof:
        last = without_processes[-1][-1]
        return WRONG_VALUES if last == prebuilt else Proof()

    listener = Listener()
    carry_out(make_job(tmp_path), listener, prover)
    said = "the prebuilt wheel is not taken: flash-attn was installed and is not right, so it was"
    assert f"{said} removed again: cuda: out" in listener.text
    assert f"{built.name} is installed" in listener.text
    assert (
        prebuilt.exists()
    ), "the file is as its hash says; the next GPU may be a sound one"
    with pytest.raises(Stop, match="is not right, so it was removed again"):
        job = make_job(tmp_path, mode="wheel")
        carry_out(job, listener, prover)


# FlashAttention 4 shares the folder ------------------------------------------------------------------------------


def test_in_current_nothing_is_built_unless_asked_for(
    tmp_path: Path, without_processes: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(
        provide,
        "compile_common_kernels",
        lambda job, targets, *a: compiled.extend(targets),
    )
    listener = Listener()
    carry_out(make_job(tmp_path, CURRENT), listener, lambda *a: Proof())
    said = plan_flash_attention(
        make_job(tmp_path, CURRENT), BackendName.CONDA, H100
    ).text
    assert listener.lines == [said], "what the plan says"
    assert compiled == [GpuTarget(90)]
    assert not without_processes


def add_dist(prefix: Path, name: str, version: str, files: list[str]) -> None:
    site = prefix / "lib/python3.11/site-packages"
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("uv")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_a_wheel_that_would_overwrite_flash_attn_4_is_refused(
    tmp_path: Path, without_processes: list[list[str]]
) -> None:
    """2.8.3 has a flash_attn/cute of its own: one would be made of the files of both."""
    add_dist(
        tmp_path / "env", "flash_attn_4", "4.0.0b36", ["flash_attn/cute/__init__.py"]
    )
    files = {"flash_attn/__init__.py": "", "flash_attn/cute/__init__.py": ""}
    wheel = BroughtWheel(
        make_wheel(tmp_path / PREBUILT, files), "0" * 64, WheelOrigin.GIVEN
    )
    job = make_job(tmp_path)
    said = "both have flash_attn/cute/__init__.py: they cannot be installed together; use --flash-"
    with pytest.raises(Stop, match=said):
        provide.put_wheel(wheel, job, Path("uv"), False, Listener(), lambda *a: Proof())
    assert not without_processes
    del files["flash_attn/cute/__init__.py"]
    wheel = replace(wheel, path=make_wheel(tmp_path / PREBUILT, files))
    provide.put_wheel(wheel, job, Path("uv"), False, Listener(), lambda *a: Proof())
    assert "install" in without_processes[0]
