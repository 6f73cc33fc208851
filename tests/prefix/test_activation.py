"""The ways into an environment, in bash and zsh: what they change, clear and give back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.commands import ROOT, sh
from lockedenv.host.places import default_cache
from lockedenv.prefix.activation import (
    find_kernel_folder,
    restore_activate,
    write_activate,
    write_guard,
)
from lockedenv.prefix.inventory import INVENTORY, write_inventory
from lockedenv.prefix.lifecycle import (
    change_mark,
    finish_installation,
    make_successor,
    settle,
)
from lockedenv.prefix.make_inventory import take_inventory
from lockedenv.prefix.mark import RecordedVerdict, read_mark, write_mark
from lockedenv.prefix.place import Prefix, find_prefix
from lockedenv.spec.layers import BackendName
from lockedenv.spec.level import Level
from lockedenv.spec.locks import PipPackage

LOCKED = [PipPackage("numpy", "2.4.6", "a" * 64), PipPackage("hf-xet", "1.0", "b" * 64)]


def make(
    tmp_path: Path, backend: BackendName, name: str = "env", cache: str = ""
) -> Prefix:
    """An environment with nothing but the ways into it."""
    with make_successor(find_prefix(tmp_path / name), backend, "default", print) as new:
        (new.path / "bin").mkdir()
        (new.path / "bin/python").symlink_to(
            shutil.which("python3") or "/usr/bin/python3"
        )
        change_mark(new, cache=cache)
        write_activate(new, backend)
        write_guard(new, LOCKED, backend, True)
        finish_installation(new, "default", "a")
    return new


@pytest.fixture(params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest) -> str:
    if request.param == "zsh":
        return str(request.getfixturevalue("zsh"))
    return "bash"


def run(shell: str, script: str, **environ: str) -> list[str]:
    clean = {"PATH": os.environ["PATH"], "HOME": "/nowhere", **environ}
    return sh(shell, "-c", script, env=clean).stdout.splitlines()


@pytest.mark.parametrize("name", ["env", "my own env"])
@pytest.mark.parametrize("backend", list(BackendName))
def test_it_enters_and_leaves(
    backend: BackendName, name: str, shell: str, tmp_path: Path
) -> None:
    prefix = make(tmp_path, backend, name)
    variable = "CONDA_PREFIX" if backend.has_conda_layer else "VIRTUAL_ENV"
    script = f"""
    before=$PATH
    source "{prefix.public_path}/activate"
    command -v python; echo "${variable}"; echo "$UV_CONSTRAINT"
    export PATH="/added/first:$PATH:/added/last"
    deactivate
    echo "${{{variable}-gone}} ${{UV_CONSTRAINT-gone}} ${{PIP_USER-gone}}"
    [ "$PATH" = "/added/first:$before:/added/last" ] && echo "what was added stays"
    set | grep -i "^_maximalcai" || true
    """
    said = run(shell, script)
    constraints = (prefix.public_path / "maximalcai-constraints.txt").as_uri()
    assert said == [
        f"{prefix.public_path}/bin/python",
        str(prefix.public_path),
        constraints,
        "gone gone gone",
        "what was added stays",
    ]


def test_a_shell_that_may_not_change_its_prompt_enters_and_leaves(
    tmp_path: Path,
) -> None:
    prefix = make(tmp_path, BackendName.PIP)
    script = f"""
    readonly PS1=fixed
    source {prefix.public_path}/activate; command -v python
    deactivate; echo "${{VIRTUAL_ENV-gone}} $PS1"
    """
    assert run("bash", script) == [f"{prefix.public_path}/bin/python", "gone fixed"]


def test_entering_twice_is_entering_once(shell: str, tmp_path: Path) -> None:
    prefix = make(tmp_path, BackendName.PIP)
    script = f"""
    before=$PATH
    source {prefix.public_path}/activate; source {prefix.public_path}/activate; source {prefix.public_path}/bin/activate
    deactivate
    [ "$PATH" = "$before" ] && echo same; typeset -f deactivate || echo none
    """
    assert run(shell, script) == ["same", "none"]


def test_an_environment_that_was_active_before_is_so_again(
    shell: str, tmp_path: Path
) -> None:
    prefix = make(tmp_path, BackendName.PIP)
    sh("python3", "-m", "venv", "--without-pip", tmp_path / "outer")
    script = f"""
    before=$PATH
    source {tmp_path}/outer/bin/activate
    source {prefix.public_path}/activate; echo "$VIRTUAL_ENV"
    deactivate; echo "$VIRTUAL_ENV"; command -v python
    deactivate; echo "${{VIRTUAL_ENV-gone}}"; [ "$PATH" = "$before" ] && echo same
    """
    outer = tmp_path / "outer"
    assert run(shell, script) == [
        str(prefix.public_path),
        str(outer),
        f"{outer}/bin/python",
        "gone",
        "same",
    ]


def test_a_virtual_env_that_an_image_sets_is_given_back(
    shell: str, tmp_path: Path
) -> None:
    prefix = make(tmp_path, BackendName.CONDA)
    script = f'source {prefix.public_path}/activate; echo "${{VIRTUAL_ENV-gone}}"; deactivate; echo "$VIRTUAL_ENV"'
    assert run(shell, script, VIRTUAL_ENV="/opt/venv") == ["gone", "/opt/venv"]


MISLEADING = {
    "UV_SYSTEM_PYTHON": "1",
    "UV_PYTHON": "/usr/bin/python3",
    "PIP_PYTHON": "/usr/bin/python3",
    "PIP_TARGET": "/elsewhere",
    "PIP_PREFIX": "/elsewhere",
    "PIP_USER": "1",
    "PIP_CONFIG_FILE": "/dev/null",
    "PYTHONHOME": "/elsewhere",
    "PYTHONPLATLIBDIR": "elsewhere",
}


@pytest.mark.parametrize("backend", list(BackendName))
def test_what_would_lead_an_installation_elsewhere_is_cleared_and_given_back(
    backend: BackendName, shell: str, tmp_path: Path
) -> None:
    """With UV_SYSTEM_PYTHON=1, which images set, `uv pip install` went to the machine's Python."""
    prefix = make(tmp_path, backend)
    shown = "; ".join(f'echo "{name}=${{{name}-}}"' for name in MISLEADING)
    script = f"source {prefix.public_path}/activate; {shown}; deactivate; {shown}"
    said = run(shell, script, **MISLEADING)
    inside = said[: len(MISLEADING)]
    after = said[len(MISLEADING) :]
    assert inside == [
        f"{name}={'0' if name == 'PIP_USER' else ''}" for name in MISLEADING
    ]
    assert after == [f"{name}={value}" for name, value in MISLEADING.items()]


def test_constraints_that_contradict_the_lock_are_left_out(
    shell: str, tmp_path: Path
) -> None:
    """An NGC image's PIP_CONSTRAINT: every install ended in ResolutionImpossible."""
    prefix = make(tmp_path, BackendName.PIP)
    image = tmp_path / "constraint.txt"
    image.write_text("# of the image\ntorch==2.6.0a0\nHF_Xet==1.1\n")
    fits = tmp_path / "company.txt"
    fits.write_text("numpy==2.4.6\nurllib3==2.0\nhf-xet>=1\n")
    script = f'source {prefix.public_path}/activate; echo "$PIP_CONSTRAINT"; echo "$UV_CONSTRAINT"; deactivate; echo "$PIP_CONSTRAINT"'
    both = f"{image} {fits}"
    ours = (prefix.public_path / "maximalcai-constraints.txt").as_uri()
    said = run(shell, script, PIP_CONSTRAINT=both, UV_CONSTRAINT=str(image))
    assert said == [f"{fits} {ours}", ours, both]


@pytest.mark.parametrize(
    "line, fits",
    [
        ("numpy>=3", False),
        ("numpy<3,>=2", True),
        ("numpy==2.4.6  # the company's", True),
        ("numpy==2.4.6 --hash=sha256:00", True),
        ("numpy==2.*", True),
        ("NumPy~=1.0", False),
        ("numpy @ https://example.com/numpy-2.4.6-py3-none-any.whl", False),
        ('numpy==1.0; python_version < "3"', True),
        ("--index-url https://example.com", True),
        ("urllib3==2.0", True),
    ],
)
def test_every_form_of_a_constraint_is_compared_with_the_lock(
    line: str, fits: bool, tmp_path: Path
) -> None:
    """A range, a marker or a comment was not understood: installs failed, or a file that fits was left out."""
    prefix = make(tmp_path, BackendName.PIP)
    file = tmp_path / "of the image.txt"
    file.write_text(f"{line}\n")
    ours = (prefix.public_path / "maximalcai-constraints.txt").as_uri()
    script = f'source {prefix.public_path}/activate; echo "$UV_CONSTRAINT"; echo "$UV_OVERRIDE"'
    said = run("bash", script, UV_CONSTRAINT=file.as_uri(), UV_OVERRIDE=file.as_uri())
    expected = f"{file.as_uri()} " if fits else ""
    assert said == [f"{expected}{ours}", expected]


def test_a_constraint_that_is_not_there_is_left_to_pip_to_name(tmp_path: Path) -> None:
    prefix = make(tmp_path, BackendName.PIP)
    script = f'source {prefix.public_path}/activate; echo "$PIP_CONSTRAINT"'
    (said,) = run("bash", script, PIP_CONSTRAINT="/nowhere/c.txt")
    assert said.startswith("/nowhere/c.txt file://")


@pytest.mark.parametrize("section", ["global", "install"])
@pytest.mark.parametrize("setting", ["target", "prefix", "root"])
def test_pips_own_file_leads_no_installation_elsewhere(
    section: str, setting: str, tmp_path: Path
) -> None:
    """As PIP_TARGET does, which `activate` clears: a pip.conf of the user's said the same, and was followed."""
    prefix = make(tmp_path, BackendName.PIP)
    (prefix.path / "pyvenv.cfg").write_text(
        f"home = {Path(sys.executable).resolve().parent}\n"
    )
    conf = tmp_path / "home/.config/pip/pip.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(f"[{section}]\n{setting} = {tmp_path}/elsewhere\n")
    command = [prefix.path / "bin/python", "-m", "pip", "config", "list"]
    said = sh(*command, env={"HOME": str(tmp_path / "home")}).stdout
    assert f"{section}.{setting}=''" in said, said
    assert "elsewhere" not in said, said
    assert f"{section}.user='false'" in said, said


def test_hooks_are_sourced_in_conda_prefixes_alone(shell: str, tmp_path: Path) -> None:
    for backend, expected in ((BackendName.PIP, "none"), (BackendName.CONDA, "hook")):
        prefix = make(tmp_path, backend, f"env-{backend}")
        hooks = prefix.path / "etc/conda/activate.d"
        hooks.mkdir(parents=True, exist_ok=True)
        (hooks / "z.sh").write_text("FROM_A_HOOK=hook\n")
        said = run(
            shell, f"source {prefix.public_path}/activate; echo ${{FROM_A_HOOK-none}}"
        )
        assert said == [expected]


def test_micromamba_activate_sets_the_guard_of_uv(shell: str, tmp_path: Path) -> None:
    """It sources the hooks; uv had no guard there."""
    prefix = make(tmp_path, BackendName.CONDA)
    hooks = prefix.public_path / "etc/conda"
    script = f"""
    . {hooks}/activate.d/maximalcai.sh; echo "$UV_CONSTRAINT" "${{UV_SYSTEM_PYTHON-gone}}"
    . {hooks}/deactivate.d/maximalcai.sh; echo "${{UV_CONSTRAINT-gone}}" "${{UV_SYSTEM_PYTHON-gone}}"
    """
    ours = (prefix.public_path / "maximalcai-constraints.txt").as_uri()
    assert run(shell, script, UV_SYSTEM_PYTHON="1") == [f"{ours} gone", "gone 1"]


def test_without_pip_conf_nothing_is_held(shell: str, tmp_path: Path) -> None:
    prefix = make(tmp_path, BackendName.PIP)
    (prefix.path / "pip.conf").unlink()
    assert run(
        shell, f"source {prefix.public_path}/activate; echo ${{UV_CONSTRAINT-none}}"
    ) == ["none"]


def test_a_running_shell_follows_an_exchange(shell: str, tmp_path: Path) -> None:
    old = make(tmp_path, BackendName.PIP)
    (old.path / "bin/program").write_text("#!/bin/sh\necho old\n")
    (old.path / "bin/program").chmod(0o755)
    process = subprocess.Popen(
        [shell, "-c", f"source {old.public_path}/activate; program; read; program"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "old\n"
    new = make(tmp_path, BackendName.PIP)
    (new.path / "bin/program").write_text("#!/bin/sh\necho new\n")
    (new.path / "bin/program").chmod(0o755)
    mark = read_mark(new.path)
    assert mark is not None
    write_mark(new.path, mark.with_verdict(Level.QUICK, RecordedVerdict(True)))
    settle(new, True, True, print)
    assert process.communicate("\n")[0] == "new\n"


def test_one_that_was_moved_says_so(shell: str, tmp_path: Path) -> None:
    prefix = make(tmp_path, BackendName.PIP)
    (tmp_path / "elsewhere").mkdir()
    prefix.public_path.rename(tmp_path / "elsewhere/env")
    (tmp_path / "env.d").rename(tmp_path / "elsewhere/env.d")
    script = f"source {tmp_path}/elsewhere/env/activate; echo ${{VIRTUAL_ENV-none}}"
    said = run(shell, script)
    assert said == [
        f"this environment was made at {prefix.public_path}, and has been moved: move it back",
        "none",
    ]


def test_pip_conf_old_is_never_written_over(tmp_path: Path) -> None:
    prefix = make(tmp_path, BackendName.PIP)
    for number in range(3):
        (prefix.path / "pip.conf").write_text(f"[global]\ntimeout = {number}\n")
        write_guard(prefix, LOCKED, BackendName.PIP, True)
    names = ["pip.conf.old", "pip.conf.old.2", "pip.conf.old.3"]
    texts = [(prefix.path / name).read_text() for name in names]
    assert [text[-2] for text in texts] == ["0", "1", "2"]
    (prefix.path / "pip.conf").write_text("[global]\n")
    write_guard(prefix, LOCKED, BackendName.PIP, ours=False)
    assert (
        prefix.path / "pip.conf"
    ).read_text() == "[global]\n", "an environment that people made"


def test_the_texts_are_good_shell() -> None:
    folder = ROOT / "scripts/lockedenv/prefix/shell"
    assert sorted(path.name for path in folder.iterdir()) == [
        "activate.sh",
        "guard_off.sh",
        "guard_on.sh",
        "hooks.sh",
    ]


@pytest.mark.parametrize("backend", list(BackendName))
def test_compiled_kernels_are_kept_and_none_is_taken_from_the_hub(
    backend: BackendName, shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the set-up has compiled kernels. Who has set these variables has them as they were."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RUNPOD_POD_ID", raising=False)
    prefix = make(tmp_path, backend)
    folder = default_cache() / "flash-attention-kernels"
    show = (
        'echo "${FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED-} ${FLASH_ATTENTION_CUTE_DSL_CACHE_DIR-} '
        '${USE_HUB_KERNELS-} ${DISABLE_KERNEL_MAPPING-}"'
    )
    script = f"{show}; . {prefix.path}/activate; {show}; deactivate; {show}"
    assert run(shell, script) == ["   ", "  NO 1", "   "], "there is no folder"
    folder.mkdir(parents=True)
    assert run(shell, script) == ["   ", f"1 {folder} NO 1", "   "]
    own = {"FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "0", "USE_HUB_KERNELS": "YES"}
    assert run(shell, script, **own) == ["0  YES ", "0  YES 1", "0  YES "]


@pytest.mark.parametrize("backend", list(BackendName))
def test_the_kernels_are_looked_for_in_the_cache_of_the_run_that_made_it(
    backend: BackendName, shell: str, tmp_path: Path
) -> None:
    """They were compiled into the usual cache, and looked for there, whatever --cache said."""
    cache = tmp_path / "a cache"
    prefix = make(tmp_path, backend, cache=str(cache))
    folder = cache / "flash-attention-kernels"
    folder.mkdir(parents=True)
    assert find_kernel_folder(prefix) == folder
    script = f'. {prefix.path}/activate; echo "$FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"'
    assert run(shell, script) == [str(folder)]


def test_an_activate_that_lost_lines_is_written_again_and_the_edited_one_stays(
    tmp_path: Path,
) -> None:
    prefix = make(tmp_path, BackendName.PIP)
    (prefix.path / "lib/python3.11/site-packages").mkdir(parents=True)
    write_inventory(
        prefix.path, take_inventory(prefix.path, [], with_interpreter=False)
    )
    activate = prefix.path / "activate"
    whole = activate.read_text()
    assert restore_activate(prefix, BackendName.PIP) == []
    activate.write_text(f"export FIRST=1\n{whole}")
    assert restore_activate(prefix, BackendName.PIP) == [], "lines that people add stay"
    edited = whole.replace("deactivate() {", "leave() {")
    activate.write_text(edited)
    (prefix.path / "bin/activate").write_text("")
    assert restore_activate(prefix, BackendName.PIP) == ["activate", "bin/activate"]
    assert activate.read_text() == whole
    assert (prefix.path / "activate.old").read_text() == edited
    assert not (prefix.path / "bin/activate.old").exists(), "it was empty"
    activate.unlink()
    assert restore_activate(prefix, BackendName.PIP) == ["activate", "bin/activate"]
    (prefix.path / INVENTORY).unlink()
    activate.write_text(edited)
    assert restore_activate(prefix, BackendName.PIP) == [], "nobody knows whose it is"
