"""The variables and files of the machine that the installing tools read, and what
the set-up does with each.

The tools are pip, uv, micromamba, curl and Python. Whatever would steer them away from the lock is
cleared before they start; where files come from (indexes, proxies, certificates) is kept. Sources:
docs.astral.sh/uv/reference/environment, pip.pypa.io/en/stable/topics/configuration,
docs.conda.io/projects/conda/en/latest/user-guide/configuration, mamba's
libmamba/src/api/configuration.cpp, curl.se/docs/manpage.html#ENVIRONMENT,
docs.python.org/3/using/cmdline.html#environment-variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Treatment(Enum):
    """What the set-up does with a variable before it starts a tool."""

    CLEARED = "cleared"
    KEPT = "kept"
    SET = "set"
    REFUSED = "refused"


@dataclass(frozen=True)
class Rule:
    """`pattern`: a variable's name, or the beginning of names, ended by a star.

    `readers`: who reads it.
    """

    pattern: str
    readers: str
    treatment: Treatment
    why: str

    def matches(self, name: str) -> bool:
        if self.pattern.endswith("*"):
            return name.startswith(self.pattern[:-1])
        return name == self.pattern


CLEARED = Treatment.CLEARED
KEPT = Treatment.KEPT
SET = Treatment.SET
REFUSED = Treatment.REFUSED

# triton starts these programs, and reads this library, in place of its own: triton/knobs.py, and
# backends/nvidia/compiler.py before triton 3.3.
TRITON_TOOLS = (
    "TRITON_PTXAS_PATH",
    "TRITON_PTXAS_BLACKWELL_PATH",
    "TRITON_CUOBJDUMP_PATH",
    "TRITON_NVDISASM_PATH",
    "TRITON_LIBDEVICE_PATH",
)


@dataclass(frozen=True)
class Switch:
    """A variable whose value decides how a locked package works.

    `values`: capitals; the package does not care about upper and lower case. `inverted`: every
    other value is the one that misleads, the empty one too. `effect`: what it then does.
    """

    name: str
    readers: str
    values: frozenset[str]
    effect: str
    inverted: bool = False

    def misleads(self, environ: Mapping[str, str]) -> bool:
        value = environ.get(self.name)
        if value is None:
            return False
        return (value.upper() in self.values) is not self.inverted


# transformers/utils/import_utils.py (before transformers 5) and datasets/config.py.
ENABLED = frozenset({"1", "ON", "YES", "TRUE"})
# triton/knobs.py; before triton 3.3 it was "1" alone.
ENABLED_FOR_TRITON = ENABLED | {"Y"}
# Not here, because the locked packages work alike with them: TRITON_ALWAYS_COMPILE, which compiles
# what the cache has; USE_TORCH_XLA, USE_JAX and USE_FLAX, which ask for packages that no lock has.
SWITCHES = (
    Switch(
        "TRITON_INTERPRET",
        "triton",
        ENABLED_FOR_TRITON,
        "triton interprets kernels in Python, and compiles none",
    ),
    Switch(
        "TRITON_KERNEL_OVERRIDE",
        "triton",
        ENABLED_FOR_TRITON,
        "triton takes kernels from TRITON_OVERRIDE_DIR in place of those that it compiles",
    ),
    Switch(
        "USE_TORCH",
        "transformers, datasets",
        ENABLED | {"AUTO"},
        "transformers and datasets work without torch",
        inverted=True,
    ),
    Switch(
        "USE_TF",
        "transformers, datasets",
        ENABLED,
        "transformers and datasets work without torch",
    ),
    Switch(
        "FORCE_TF_AVAILABLE",
        "transformers",
        ENABLED,
        "transformers imports TensorFlow, which is not locked",
    ),
)
HANDED_ON = (
    "MAXIMALCAI_"  # before the names of the variables that the shell scripts hand on
)
# The first rule that matches a name decides: an exception stands above its family.
RULES = (
    # uv
    Rule(
        "UV_INDEX_STRATEGY",
        "uv",
        SET,
        "unsafe-best-match, as pip has it: the hash says which file",
    ),
    Rule("UV_LINK_MODE", "uv", SET, "hard links, or copies where the disk has none"),
    Rule(
        "UV_CACHE_DIR", "uv", SET, "the set-up's own cache, on the disk of the prefix"
    ),
    Rule(
        "UV_PYTHON_INSTALL_DIR",
        "uv",
        SET,
        "a Python that is fetched lies in the set-up's cache",
    ),
    Rule(
        "UV_PYTHON_CACHE_DIR",
        "uv",
        SET,
        "the archives of Python that a mirror or a folder gave",
    ),
    Rule("UV_NO_CONFIG", "uv", SET, "no uv.toml and no pyproject.toml is read"),
    Rule("UV_OFFLINE", "uv", SET, "as --offline says"),
    Rule(
        "UV_INDEX*", "uv", KEPT, "where packages come from, and its user and password"
    ),
    Rule("UV_DEFAULT_INDEX", "uv", KEPT, "where packages come from"),
    Rule("UV_EXTRA_INDEX*", "uv", KEPT, "where packages come from"),
    Rule("UV_FIND_LINKS", "uv", KEPT, "where packages come from"),
    Rule("UV_KEYRING*", "uv", KEPT, "who gives the index its password"),
    Rule(
        "UV_INSECURE*",
        "uv",
        KEPT,
        "a host without a valid certificate; every file is hashed",
    ),
    Rule("UV_HTTP*", "uv", KEPT, "time limits for a slow index"),
    Rule("UV_SYSTEM_CERTS", "uv", KEPT, "which authorities are believed"),
    Rule("UV_NATIVE_TLS", "uv", KEPT, "which authorities are believed"),
    Rule(
        "UV_PYTHON_INSTALL_MIRROR",
        "uv",
        KEPT,
        "where a Python comes from; uv knows its hash",
    ),
    Rule(
        "UV_*", "uv", CLEARED, "chooses other packages, another Python or another place"
    ),
    # pip
    Rule("PIP_CONFIG_FILE", "pip", KEPT, "read for the index alone, not passed on"),
    Rule("PIP_INDEX_URL", "pip", KEPT, "where packages come from"),
    Rule("PIP_EXTRA_INDEX_URL", "pip", KEPT, "where packages come from"),
    Rule("PIP_FIND_LINKS", "pip", KEPT, "where packages come from"),
    Rule(
        "PIP_CERT",
        "pip",
        KEPT,
        "the company's certificate authority, for uv and curl too",
    ),
    Rule(
        "PIP_*",
        "pip",
        CLEARED,
        "chooses other packages, another Python or another place",
    ),
    # conda, mamba, micromamba
    Rule(
        "CONDARC",
        "conda, micromamba",
        CLEARED,
        "another configuration; with --no-rc it aborts",
    ),
    Rule(
        "MAMBARC",
        "micromamba",
        CLEARED,
        "another configuration; with --no-rc it aborts",
    ),
    Rule("CONDA_PKGS_DIRS", "conda, micromamba", SET, "the set-up's own cache"),
    Rule(
        "CONDA_*",
        "conda, micromamba",
        CLEARED,
        "channels, platforms and places of the user's",
    ),
    Rule("MAMBA_ROOT_PREFIX", "micromamba", SET, "its notes lie in the set-up's cache"),
    Rule(
        "MAMBA_*", "micromamba", CLEARED, "channels, platforms and places of the user's"
    ),
    Rule("_CE_CONDA", "conda", CLEARED, "how an activated conda starts itself"),
    Rule("_CE_M", "conda", CLEARED, "how an activated conda starts itself"),
    Rule("CIO_TEST", "conda", CLEARED, "another channel"),
    Rule("REAPI_*", "micromamba", CLEARED, "another server"),
    # Python
    Rule(
        "PYTHON*",
        "Python",
        CLEARED,
        "another standard library, other modules, other start-up files",
    ),
    Rule("VIRTUAL_ENV*", "Python, uv", CLEARED, "another environment"),
    Rule("__PYVENV_LAUNCHER__", "Python", CLEARED, "another environment"),
    Rule("SETUPTOOLS_*", "setuptools", CLEARED, "another way to build"),
    Rule("DISTUTILS_*", "setuptools", CLEARED, "another way to build"),
    # Folders and output
    Rule(
        "XDG_CONFIG_*",
        "conda, pip, uv",
        CLEARED,
        "the user's configuration files lie there",
    ),
    Rule("XDG_DATA_*", "uv", CLEARED, "Pythons and tools of uv's"),
    Rule("XDG_BIN_HOME", "uv", CLEARED, "where uv puts programs"),
    Rule(
        "XDG_CACHE_HOME",
        "the set-up, pip",
        KEPT,
        "where the cache is, unless --cache names one",
    ),
    Rule("RUST_LOG", "uv", CLEARED, "more output, which hides the cause of an error"),
    Rule("FORCE_COLOR", "uv, pip", CLEARED, "colours in what is read and redacted"),
    Rule("CLICOLOR_FORCE", "uv", CLEARED, "colours in what is read and redacted"),
    # The network
    Rule(
        "SSL_CERT_FILE",
        "uv, curl, Python",
        KEPT,
        "joined with pip's authorities and the machine's",
    ),
    Rule("SSL_CERT_DIR", "uv, curl, Python", KEPT, "which authorities are believed"),
    Rule("SSL_CLIENT_CERT", "uv", KEPT, "who this machine is, for the index"),
    Rule(
        "REQUESTS_CA_BUNDLE",
        "pip",
        KEPT,
        "joined with SSL_CERT_FILE, for uv and curl too",
    ),
    Rule("CURL_CA_BUNDLE", "curl, pip", KEPT, "joined with SSL_CERT_FILE, for uv too"),
    Rule("NETRC", "uv, curl", KEPT, "passwords of indexes and mirrors"),
    Rule("HTTP_PROXY", "pip, uv", KEPT, "the way to the network"),
    Rule("http_proxy", "pip, uv, curl, micromamba", KEPT, "the way to the network"),
    Rule("HTTPS_PROXY", "pip, uv, curl, micromamba", KEPT, "the way to the network"),
    Rule("https_proxy", "pip, uv, curl, micromamba", KEPT, "the way to the network"),
    Rule(
        "ALL_PROXY",
        "pip, uv, curl",
        KEPT,
        "the way to the network; pip needs PySocks for socks://",
    ),
    Rule(
        "all_proxy",
        "pip, uv, curl",
        KEPT,
        "the way to the network; pip needs PySocks for socks://",
    ),
    Rule("NO_PROXY", "pip, uv, curl", KEPT, "the way to the network"),
    Rule("no_proxy", "pip, uv, curl", KEPT, "the way to the network"),
    # What would come before the locked libraries
    Rule(
        "LD_LIBRARY_PATH",
        "the loader",
        REFUSED,
        "where it holds another nvJitLink or cuDNN",
    ),
    Rule(
        "LD_PRELOAD", "the loader", REFUSED, "a library before every other: warned of"
    ),
    Rule("BNB_CUDA_VERSION", "bitsandbytes", REFUSED, "where it names another CUDA"),
    Rule(
        "TMPDIR", "everything", REFUSED, "where it is no folder that may be written to"
    ),
    *(Rule(name, "triton", REFUSED, "where it names a file") for name in TRITON_TOOLS),
    *(
        Rule(
            switch.name,
            switch.readers,
            REFUSED,
            f"where its value means: {switch.effect}",
        )
        for switch in SWITCHES
    ),
    Rule(
        "RUNPOD_GPU_COUNT",
        "the verifier, the set-up",
        REFUSED,
        "where it is no number of GPUs: warned of",
    ),
    Rule("GCONV_PATH", "the C library", REFUSED, "it loads converters from there"),
    Rule("OPENSSL_*", "OpenSSL", REFUSED, "it may load code from there"),
)


# Files of the machine that the tools read. The options and variables that are named here are in
# backends/uv_program.py, backends/conda.py, backends/index.py, backends/transfer.py
# and prefix/activation.py.
FILES = (
    Rule("~/.config/pip/pip.conf", "pip", KEPT, "the index, find-links and cert alone"),
    Rule("/etc/pip.conf", "pip", KEPT, "the index, find-links and cert alone"),
    Rule(
        "PREFIX/pip.conf",
        "pip",
        SET,
        "the constraints; no target, prefix, root, python or user",
    ),
    Rule(
        "~/.config/uv/uv.toml",
        "uv",
        CLEARED,
        "UV_NO_CONFIG; name its index by UV_DEFAULT_INDEX",
    ),
    Rule(
        "/etc/uv/uv.toml",
        "uv",
        CLEARED,
        "UV_NO_CONFIG; name its index by UV_DEFAULT_INDEX",
    ),
    Rule(
        "pyproject.toml", "uv", CLEARED, "programs start in /, and uv with UV_NO_CONFIG"
    ),
    Rule(
        "~/.condarc",
        "conda, micromamba",
        CLEARED,
        "--no-rc: channels and places of the user's",
    ),
    Rule(
        "~/.mambarc",
        "micromamba",
        CLEARED,
        "--no-rc: channels and places of the user's",
    ),
    Rule("~/.curlrc", "curl", CLEARED, "--disable: options of the user's"),
    Rule("~/.netrc", "uv, pip, curl", KEPT, "passwords of indexes and mirrors"),
    Rule(
        "/etc/ssl/certs/ca-certificates.crt",
        "uv, pip, curl",
        KEPT,
        "joined with those named",
    ),
    Rule(
        "/etc/ld.so.preload",
        "the loader",
        REFUSED,
        "a library before every other: warned of",
    ),
)


def find_misleading_switches(environ: Mapping[str, str]) -> list[Switch]:
    """The switches that are set to a value that misleads."""
    return [switch for switch in SWITCHES if switch.misleads(environ)]


def rule_of(name: str) -> Rule | None:
    """The rule that decides about a variable, or None for one that no tool reads."""
    for rule in RULES:
        if rule.matches(name):
            return rule
    return None


def handed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of Python's that a shell script of ours was called
    with: it starts without them.
    """
    found = {}
    for name, value in environ.items():
        if name.startswith(f"{HANDED_ON}PYTHON"):
            found[name[len(HANDED_ON) :]] = value
    return found


def reaches_tools(name: str) -> bool:
    """Whether a variable of the user's is passed on to pip, micromamba and Python as it is.

    uv's index and pip's are passed on by backends/wheels.py, which translates one into the other.
    """
    rule = rule_of(name)
    if rule is None:
        return True
    if rule.pattern.startswith(("UV_", "PIP_")):
        return False
    return rule.treatment not in (Treatment.CLEARED, Treatment.SET)


def clean(environ: Mapping[str, str], **more: str) -> dict[str, str]:
    """The environment for a tool, without what would steer it, and with `more`."""
    kept = {}
    for name, value in environ.items():
        if reaches_tools(name):
            kept[name] = value
    return {**kept, **more}


def is_index_of_uv(name: str) -> bool:
    """Whether a variable says where uv's packages come from, and is kept for it."""
    rule = rule_of(name)
    return (
        rule is not None and name.startswith("UV_") and rule.treatment is Treatment.KEPT
    )
