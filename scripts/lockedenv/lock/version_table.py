"""The table of versions in docs/TECHNICAL_SETUP.md, made from the locks, so that no hand has to follow them."""

from __future__ import annotations

from lockedenv import ROOT
from lockedenv.errors import Stop
from lockedenv.spec.environment import Environment
from lockedenv.spec.vulnerabilities import find_vulnerabilities

DOCUMENT = ROOT / "docs/TECHNICAL_SETUP.md"
BEGIN = "<!-- The table below is written by scripts/lock.sh. -->\n\n"
END = "\n<!-- End of the table that scripts/lock.sh writes. -->\n"
PACKAGES = (
    "torch",
    "transformers",
    "huggingface-hub",
    "accelerate",
    "peft",
    "bitsandbytes",
    "datasets",
    "hf-transfer",
    "numpy",
    "scipy",
    "statsmodels",
    "flash-attn",
    "flash-attn-4",
)


def version_table(environments: list[Environment]) -> str:
    """The Markdown table: a row a package, a column an environment."""
    columns = [_column(environment) for environment in environments]
    titles = []
    for environment in environments:
        default = environment.name == "default"
        titles.append("default" if default else f"`--environment {environment.name}`")
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    for row in columns[0]:
        lines.append(f"| {row} | {' | '.join(column[row] for column in columns)} |")
    return "\n".join(lines) + "\n"


def _column(environment: Environment) -> dict[str, str]:
    """Title of a row -> the cell of an environment."""
    versions = {pin.name: pin.version for pin in environment.wheels("pip")}
    source = environment.flash_attn()
    if source and "flash-attn-4" not in versions:  # beside it, built only where it is asked for
        versions[source.name] = source.version
    cells = {"CUDA": _cuda(environment), "python": environment.python}
    for name in PACKAGES:
        cells[name] = versions.get(name, "none")
    archives = len(environment.conda())
    over = len(environment.wheels("conda"))
    both = len(environment.wheels("pip"))
    cells["packages in all, each by its sha256"] = (
        f"{archives} conda archives and {over} wheels, or {both} wheels"
    )
    cells["known vulnerabilities"] = str(len(find_vulnerabilities(versions.get)))
    return cells


def _cuda(environment: Environment) -> str:
    conda = environment.cuda("conda")
    pip = environment.cuda("pip")
    if conda == pip:
        return pip or "none"
    return f"{conda} from conda, {pip} from PyPI"


def current_table() -> str:
    """The table of the document. Raises Stop where its marks are gone."""
    _, begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    table, end, _ = rest.partition(END)
    if not begin or not end:
        raise Stop(
            f"{DOCUMENT}: the marks around the table of versions are gone; restore them with "
            f"`git checkout -- {DOCUMENT}`"
        )
    return table


def write_table(table: str) -> None:
    """Puts the table between the marks of the document. Raises Stop."""
    before = current_table()
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(text.replace(BEGIN + before + END, BEGIN + table + END), encoding="utf-8")
