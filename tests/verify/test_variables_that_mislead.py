"""Variables of the machine that change what runs: a failure by name if they replace what is locked."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from fixtures.commands import ROOT, clean_environ, sh
from lockedenv.verify.checks import Check, Result, compilers, surroundings, training
from lockedenv.verify.search_path import find_taken
from lockedenv.verify.variables import judge_preloaded, misleading, preloaded
from small_prefix import SITE, SmallPrefix, elf


@pytest.fixture
def small(tmp_path: Path) -> SmallPrefix:
    return SmallPrefix(
        tmp_path, {"../../../x86_64-conda-linux-gnu/sysroot/lib64/libm.so.6": b""}
    )


def judge(small: SmallPrefix, **environ: str) -> Result:
    context = small.context()
    context.lock_error = "the locks are not the point here"
    context.environ = environ
    return surroundings.variables(context)


@pytest.mark.parametrize(
    "name, verdict",
    [
        ("PYTHONHOME", "fail"),
        ("PYTHONPLATLIBDIR", "fail"),
        ("PYTHONPYCACHEPREFIX", "warn"),
        ("PYTHONOPTIMIZE", "warn"),
        ("PYTHONSTARTUP", "warn"),
    ],
)
def test_what_a_shell_script_hands_on_is_judged_as_the_callers(
    name: str, verdict: str, small: SmallPrefix
) -> None:
    result = judge(small, **{f"MAXIMALCAI_{name}": "/x"})
    assert result.verdict == verdict, result
    assert f"{name}=/x" in result.summary, result


def test_only_the_name_of_the_library_folder_may_be_this_pythons_own(
    small: SmallPrefix,
) -> None:
    usual = sysconfig.get_config_var("PLATLIBDIR")
    assert judge(small, PYTHONPLATLIBDIR=usual).verdict == "pass"
    result = judge(small, PYTHONHOME=usual)
    assert result.verdict == "fail", result
    assert f"PYTHONHOME={usual} replaces the standard library" in result.summary


@pytest.mark.parametrize("script", ["setup_runpod_environment.sh", "post_create.sh"])
def test_the_shell_scripts_hand_on_every_variable_of_pythons(
    script: str, tmp_path: Path
) -> None:
    """They start without them, and what they start saw PYTHONPATH alone."""
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nenv\n")
    python.chmod(0o755)
    given = {
        "PYTHONPATH": "/a b",
        "PYTHONPLATLIBDIR": "foo",
        "PYTHONPYCACHEPREFIX": "/x",
    }
    environ = clean_environ(
        **given,
        PATH=f"{tmp_path}:/usr/bin:/bin",
        MAXIMALCAI_PYTHONHOME="/of/another/run",
    )
    said = sh(ROOT / "scripts" / script, env=environ).stdout.splitlines()
    for name, value in given.items():
        assert f"MAXIMALCAI_{name}={value}" in said
        assert f"{name}={value}" not in said
    assert "MAXIMALCAI_PYTHONHOME" not in "\n".join(said)


@pytest.mark.parametrize(
    "name, value, said",
    [
        (
            "LD_PRELOAD",
            "{folder}/libdemo.so.1",
            "comes in place of the locked libdemo.so.1",
        ),
        (
            "LD_PRELOAD",
            "/a.so:{folder}/libdemo.so.1",
            "in place of the locked libdemo.so.1",
        ),
        ("LD_PRELOAD", "libdemo.so.1", "comes in place of the locked libdemo.so.1"),
        ("PYTHONPLATLIBDIR", "lib64", "replaces the standard library"),
        ("TRITON_PTXAS_PATH", "{folder}/ptxas", "triton takes it in place of its own"),
        (
            "TRITON_LIBDEVICE_PATH",
            "{folder}/ptxas",
            "triton takes it in place of its own",
        ),
    ],
)
def test_what_replaces_something_locked_fails(
    name: str, value: str, said: str, small: SmallPrefix, tmp_path: Path
) -> None:
    for file in ("libdemo.so.1", "ptxas"):
        (tmp_path / file).touch()
    result = judge(small, **{name: value.format(folder=tmp_path)})
    assert result.verdict == "fail", result
    assert said in result.summary
    assert result.remedy == f"unset {name}"


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("TRITON_INTERPRET", "1", "triton interprets kernels in Python"),
        ("TRITON_INTERPRET", "true", "triton interprets kernels in Python"),
        ("TRITON_KERNEL_OVERRIDE", "1", "takes kernels from TRITON_OVERRIDE_DIR"),
        ("USE_TORCH", "0", "work without torch"),
        ("USE_TORCH", "", "work without torch"),
        ("USE_TF", "1", "work without torch"),
        ("FORCE_TF_AVAILABLE", "yes", "imports TensorFlow"),
    ],
)
def test_a_switch_by_which_a_locked_package_works_otherwise_fails(
    name: str, value: str, said: str, small: SmallPrefix
) -> None:
    result = judge(small, **{name: value})
    assert result.verdict == "fail", result
    assert result.summary.startswith(f"{name}={value}: ")
    assert said in result.summary
    assert result.remedy == f"unset {name}"


@pytest.mark.parametrize(
    "name, check",
    [
        ("TRITON_INTERPRET", compilers.triton_kernel),
        ("USE_TF", training.transformers_model),
    ],
)
def test_the_checks_of_triton_and_transformers_name_the_variable(
    name: str, check: Check[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They said that the package has to be installed again."""
    monkeypatch.setenv(name, "1")
    found = check("cpu")
    assert found.verdict == "fail", found
    assert found.summary.startswith(f"{name}=1: ")
    assert found.remedy == f"unset {name}"
    assert "variables" in check.explained_by


@pytest.mark.parametrize(
    "count, said",
    [
        ("9" * 26, f"={'9' * 24}... is more than 9999 GPUs: it counts as one"),
        ("10000", "=10000 is more than 9999 GPUs: it counts as one"),
        ("-1", "=-1 is no number of GPUs: it counts as none"),
        ("1e1", "=1e1 is no number of GPUs"),
        ("²", "=² is no number of GPUs"),
        ("abc", "=abc is no number of GPUs"),
        ("a\nb", r"=a\nb is no number of GPUs"),
    ],
)
def test_a_count_of_gpus_that_is_none_is_named(
    count: str, said: str, small: SmallPrefix
) -> None:
    result = judge(small, RUNPOD_GPU_COUNT=count)
    assert result.verdict == "warn", result
    assert f"RUNPOD_GPU_COUNT{said}" in result.summary
    assert "RUNPOD_GPU_COUNT" in result.remedy


@pytest.mark.parametrize(
    "name, value",
    [
        ("LD_PRELOAD", "/usr/lib/libtcmalloc.so.4"),
        ("LD_PRELOAD", "{prefix}/lib/python3.11/site-packages/demo/lib/libdemo.so.1"),
        ("LD_PRELOAD", "/nowhere/libdemo.so.1"),
        ("LD_PRELOAD", "libm.so.6"),
        ("PYTHONSTARTUP", "/home/me/start.py"),
        ("PYTHONINSPECT", "1"),
        ("PYTHONOPTIMIZE", "2"),
        ("PYTHONPYCACHEPREFIX", "/tmp/bytecode"),
        ("GCONV_PATH", "/nowhere"),
        ("OPENSSL_CONF", "/nowhere/openssl.cnf"),
    ],
)
def test_what_runs_beside_what_is_locked_is_named(
    name: str, value: str, small: SmallPrefix
) -> None:
    result = judge(small, **{name: value.format(prefix=small.path)})
    assert result.verdict == "warn", result
    assert result.summary.startswith(f"{name}=")
    assert result.remedy.startswith(f"unset {name}, if")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"PYTHONPATH": "/nowhere", "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"},
        {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib:/usr/local/nvidia/lib64:"},
        {"TRITON_PTXAS_PATH": "/nowhere/ptxas", "TRITON_CACHE_DIR": "/tmp/triton"},
        {"LD_PRELOAD": " "},
        {"PYTHONPLATLIBDIR": "lib"},
        {"TRITON_INTERPRET": "0", "TRITON_ALWAYS_COMPILE": "1", "USE_TORCH_XLA": "0"},
        {"USE_TORCH": "1", "USE_TF": "0", "USE_JAX": "1", "FORCE_TF_AVAILABLE": ""},
        {"USE_TORCH": "auto", "USE_TF": "AUTO", "RUNPOD_GPU_COUNT": "2"},
        {"RUNPOD_GPU_COUNT": ""},
    ],
)
def test_what_changes_nothing_passes(
    environ: dict[str, str], small: SmallPrefix
) -> None:
    assert judge(small, **environ).verdict == "pass"


def test_what_is_noted_does_not_hide_behind_a_failure(small: SmallPrefix) -> None:
    result = judge(small, LD_AUDIT="/a.so", LD_PRELOAD="/b.so", PYTHONSTARTUP="/c.py")
    assert result.verdict == "fail"
    assert [line.partition("=")[0] for line in result.details] == [
        "LD_PRELOAD",
        "PYTHONSTARTUP",
    ]


def test_the_machines_own_list_of_preloaded_libraries_is_read(tmp_path: Path) -> None:
    file = tmp_path / "ld.so.preload"
    file.write_text("# ours\n/opt/libwatch.so  /opt/libgomp.so.1\n")
    (tmp_path / "libgomp.so.1").touch()
    file.write_text(f"# ours\n/opt/libwatch.so {tmp_path}/libgomp.so.1\n")
    found = preloaded({}, file)
    replacing, others = judge_preloaded(tmp_path / "env", found, {"libgomp.so.1"})
    assert "libgomp.so.1, which comes in place of the locked" in replacing[0].problem
    assert "libwatch.so, which comes before every library" in others[0].problem
    assert list(preloaded({}, tmp_path / "none")) == []


@pytest.mark.parametrize("folder", ["", "glibc-hwcaps/x86-64-v3"])
@pytest.mark.parametrize("separator", [":", ";"])
def test_each_folder_that_the_loader_searches_is_looked_into(
    folder: str, separator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty part of LD_LIBRARY_PATH is the current folder."""
    (tmp_path / "here" / folder).mkdir(parents=True)
    (tmp_path / "here" / folder / "libnvJitLink.so.12").touch()
    (tmp_path / "here" / folder / "libother.so.2").touch()
    monkeypatch.chdir(tmp_path / "here")
    environ = {"LD_LIBRARY_PATH": f"/nowhere{separator}"}
    (wrong,) = misleading(tmp_path / "env", environ, "12.4", "9.1.0")
    assert "whose libnvJitLink.so.12 is found before the locked one" in wrong.problem
    (tmp_path / "env").mkdir()
    (tmp_path / "env/libloader.so").write_bytes(elf("libother.so.2", "$ORIGIN", 29))
    (taken,) = find_taken(tmp_path / "env", ["libloader.so"], [Path(".")])
    assert taken.path.name == "libother.so.2"


def test_what_micromamba_sets_when_it_activates_is_judged_too(
    small: SmallPrefix,
) -> None:
    (small.path / "pyvenv.cfg").unlink()
    small.write("conda-meta/history")
    assert judge(small).verdict == "pass"
    small.write("etc/conda/env_vars.d/later.json", b'{"LD_AUDIT": "/nowhere/audit.so"}')
    small.write(
        "conda-meta/state",
        b'{"env_vars": {"PYTHONSTARTUP": "/x.py", "HF_HOME": "/hf"}}',
    )
    result = judge(small)
    assert result.verdict == "fail"
    assert result.summary.startswith("etc/conda/env_vars.d/later.json sets LD_AUDIT=")
    assert (
        result.remedy == f"remove it from {small.path}/etc/conda/env_vars.d/later.json"
    )
    (line,) = result.details
    assert line.startswith("conda-meta/state sets PYTHONSTARTUP=/x.py")
    small.write("etc/conda/env_vars.d/later.json", b"[1]")
    small.write("conda-meta/state", b'{"env_vars": 3}')
    assert judge(small).verdict == "pass"


# The current folder, and the user's own site folder


@pytest.mark.parametrize("name", ["demo.py", "single/__init__.py", "demo.abi3.so"])
def test_a_module_of_the_current_folder_is_named(
    name: str, small: SmallPrefix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / name).parent.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setattr(surroundings, "site_folders", lambda prefix: [])
    context = small.context()
    (work / "demo").mkdir(exist_ok=True)  # a folder of that name is no module
    (work / "train.py").touch()
    assert surroundings.user_site(context).verdict == "pass"
    (work / name).touch()
    result = surroundings.user_site(context)
    assert result.verdict == "warn", result
    assert (
        "comes before the locked module in a Python that starts here" in result.summary
    )
    context.environ = {"PYTHONPATH": ":/nowhere"}
    result = surroundings.user_site(context)
    assert result.verdict == "fail"
    assert result.remedy == "unset PYTHONPATH"
    context.environ = {"PYTHONSAFEPATH": "1"}
    assert surroundings.user_site(context).verdict == "pass"


@pytest.mark.parametrize(
    "name, verdict",
    [
        ("usercustomize.py", "fail"),
        ("usercustomize.pyc", "fail"),
        ("start.pth", "fail"),
        ("demo.pyc", "fail"),
        ("other.py", "warn"),
    ],
)
def test_what_of_the_users_own_site_folder_comes_first_fails(
    name: str,
    verdict: str,
    small: SmallPrefix,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = tmp_path / "user/site-packages"
    own.mkdir(parents=True)
    (own / name).touch()
    monkeypatch.setattr(
        surroundings, "site_folders", lambda prefix: [own, small.path / SITE]
    )
    result = surroundings.user_site(small.context())
    assert result.verdict == verdict, result


@pytest.mark.parametrize(
    "options, status", [(["--list"], 0), (["--help"], 0), (["--levels"], 2)]
)
def test_the_verifiers_exit_status_is_its_own_with_pythoninspect(
    options: list[str], status: int
) -> None:
    """Python goes on after the script, and ended with 1 and a traceback for each status."""
    command = [sys.executable, ROOT / "scripts/verify_environment.py", *options]
    environ = clean_environ(PYTHONINSPECT="1")
    done = sh(*command, check=False, env=environ, stdin=subprocess.DEVNULL)
    assert done.returncode == status, done.stdout
    assert "Traceback" not in done.stdout
