"""What is installed is not what the locks name: each fault is seen and named."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from breaking import (
    SITE,
    Fault,
    assert_seen,
    both,
    dist,
    editable,
    lock,
    meta,
    record,
    removed,
    undist,
    uv,
    write_info,
)
from fixtures.conda_environment import CondaEnvironment

FAULTS = [
    Fault(
        "conda package removed",
        "conda-layer",
        "tqdm: missing",
        both(removed("tqdm"), undist("tqdm")),
    ),
    Fault(
        "conda package of another version",
        "conda-layer",
        "tqdm: version is 4.0, locked is",
        record("tqdm", version="4.0"),
    ),
    Fault(
        "another build",
        "conda-layer",
        "libcublas: build is 1, locked is 0",
        record("libcublas", build="1"),
    ),
    Fault(
        "another channel",
        "conda-layer",
        "libcublas: channel is defaults, locked is nvidia",
        record("libcublas", channel="https://repo.example/pkgs/defaults", url=""),
    ),
    Fault(
        "another archive (sha256)",
        "conda-layer",
        "mkl: archive sha256 is 00",
        record("mkl", sha256="0" * 64),
    ),
    Fault(
        "another archive (md5)",
        "conda-layer",
        "mkl: archive md5 is 00",
        record("mkl", md5="0" * 32),
    ),
    Fault(
        "no hash recorded",
        "conda-layer",
        "mkl: its conda record has no hash",
        record("mkl", sha256="", md5=""),
    ),
    Fault(
        "two conda records",
        "conda-layer",
        "mkl: has 2 conda records",
        lambda env: shutil.copy(
            meta(env, "mkl"), env.prefix / "conda-meta/mkl-2022.1.0-again.json"
        ),
    ),
    Fault(
        "a record that is no JSON",
        "conda-layer",
        "is not a conda record",
        lambda env: meta(env, "tqdm").write_text("{"),
    ),
    Fault(
        "pip reinstalled a conda package",
        "conda-layer",
        "tqdm: pip put",
        uv("install", "--reinstall", "--no-deps", "tqdm==4.70.0"),
    ),
    Fault(
        "pip put another version over conda's",
        "conda-layer",
        "packaging: pip put 24.2 over conda's",
        uv("install", "--no-deps", "packaging==24.2"),
    ),
    Fault(
        "installed by pip, not by conda",
        "conda-layer",
        "tqdm: installed by pip",
        both(uv("uninstall", "tqdm"), removed("tqdm"), dist("tqdm", "4.70.0")),
    ),
    Fault(
        "a conda package's dist-info is gone",
        "conda-layer",
        "tqdm: its dist-info is gone",
        undist("tqdm"),
    ),
    Fault(
        "wheel removed",
        "pip-layer",
        "idna: missing, locked is",
        uv("uninstall", "idna"),
    ),
    Fault(
        "wheel downgraded",
        "pip-layer",
        "idna: version is 3.7, locked is",
        uv("install", "--no-deps", "idna==3.7"),
    ),
    Fault(
        "wheel installed twice",
        "pip-layer",
        "idna: installed 2 times",
        dist("idna", "3.1"),
    ),
    Fault(
        "wheel put there by conda",
        "pip-layer",
        "idna: installed by conda, locked from PyPI",
        lambda env: (env.prefix / "conda-meta/idna-1-0.json").write_text(
            json.dumps(
                {
                    "name": "idna",
                    "version": "1",
                    "build": "0",
                    "channel": "conda-forge",
                    "paths_data": {
                        "paths": [
                            {
                                "_path": str(
                                    next(
                                        (env.prefix / SITE).glob("idna-*.dist-info")
                                    ).relative_to(env.prefix)
                                )
                                + "/METADATA"
                            }
                        ]
                    },
                }
            )
        ),
    ),
    Fault(
        "a package of no lock, twice",
        "pip-layer",
        "trl: installed 2 times",
        both(dist("trl", "1.0"), dist("trl", "2.0")),
    ),
    Fault(
        "METADATA missing",
        "pip-layer",
        "has no readable METADATA; reinstall idna",
        lambda env: next(
            (env.prefix / SITE).glob("idna-*.dist-info/METADATA")
        ).unlink(),
    ),
    Fault(
        "a wheel's RECORD emptied",
        "pip-layer",
        "RECORD lists no files",
        write_info("idna", "RECORD", lambda c: b""),
    ),
    Fault(
        "a wheel's RECORD shortened",
        "pip-layer",
        "its RECORD is not the locked wheel's",
        write_info("idna", "RECORD", lambda c: b"\n".join(c.splitlines()[:-2])),
    ),
    Fault(
        "a wheel from elsewhere, of the locked version",
        "pip-layer",
        "idna: installed from file://",
        editable("idna"),
    ),
    Fault(
        "a conda record edited with its file",
        "conda-layer",
        "tqdm: its conda record is not the one that",
        record("tqdm", paths_data={"paths": []}),
    ),
    Fault(
        "another wheel of the same version is locked",
        "pip-layer",
        "idna: was installed from another wheel than the one that is locked now",
        lock(
            "locks/pip.txt",
            lambda t: re.sub(
                r"(idna==.* --hash=sha256:)\w{64}", r"\g<1>" + "0f" * 32, t
            ),
        ),
    ),
    Fault(
        "a conda record that is a list",
        "conda-layer",
        "is not a conda record",
        lambda env: meta(env, "tqdm").write_text("[]"),
    ),
    Fault(
        "a conda record that is null",
        "conda-layer",
        "is not a conda record",
        lambda env: meta(env, "tqdm").write_text("null"),
    ),
    Fault(
        "a conda record without paths",
        "conda-layer",
        "is not a conda record",
        record("tqdm", paths_data=None),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_seen_and_named_by_its_check_alone(
    fault: Fault, broken: CondaEnvironment
) -> None:
    assert_seen(fault, broken)
