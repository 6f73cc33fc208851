"""The tables of versions in documents, made from the locks, so that no hand has to follow them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from lockedenv import ROOT
from lockedenv.errors import Stop
from lockedenv.spec.cuda import find_cuda
from lockedenv.spec.environment import Environment
from lockedenv.spec.layers import BackendName
from lockedenv.spec.vulnerabilities import find_vulnerabilities

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
PURPOSES = {
    "default": "published results, code for torch 2.5",
    "current": "today's models, Blackwell",
}


@dataclass(frozen=True)
class Table:
    """A table between two marks of a document, and what makes its text."""

    document: Path
    make: Callable[[list[Environment]], str]

    def read(self) -> str:
        """The table as it is there. Raises Stop where its marks are gone."""
        _, begin, rest = self.document.read_text(encoding="utf-8").partition(BEGIN)
        table, end, _ = rest.partition(END)
        if not begin or not end:
            raise Stop(
                f"{self.document}: the marks around the table of versions are gone; restore them "
                f"with `git checkout -- {self.document}`"
            )
        return table

    def write(self, table: str) -> None:
        """Puts a table between the marks. Raises Stop."""
        before = self.read()
        text = self.document.read_text(encoding="utf-8")
        text = text.replace(BEGIN + before + END, BEGIN + table + END)
        self.document.write_text(text, encoding="utf-8")


def find_stale_tables(environments: list[Environment]) -> list[Path]:
    """The documents whose table is not that of the locks. Raises Stop."""
    stale = []
    for table in TABLES:
        if table.read() != table.make(environments):
            stale.append(table.document)
    return stale


def write_tables(environments: list[Environment]) -> None:
    """Writes the tables of all documents. Raises Stop."""
    for table in TABLES:
        table.write(table.make(environments))


def make_overview(environments: list[Environment]) -> str:
    """The README's table: a row an environment."""
    lines = [
        "| | for | torch, CUDA | driver | known vulnerabilities |",
        "|---|---|---|---|---|",
    ]
    for environment in environments:
        cuda = environment.cuda(BackendName.PIP)
        cells = [
            _title(environment),
            PURPOSES.get(environment.name, ""),
            f"{environment.torch(BackendName.PIP)}, {cuda}",
            find_cuda(cuda).driver,
            _known_vulnerabilities(environment),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _title(environment: Environment) -> str:
    if environment.name == "default":
        return "default"
    return f"`--environment {environment.name}`"


def _known_vulnerabilities(environment: Environment) -> str:
    versions = {pin.name: pin.version for pin in environment.wheels(BackendName.PIP)}
    number = len(find_vulnerabilities(versions.get))
    if not number:
        return "none"
    return f"{number}: load only models that you trust"


def version_table(environments: list[Environment]) -> str:
    """The Markdown table: a row a package, a column an environment."""
    columns = [_column(environment) for environment in environments]
    titles = [_title(environment) for environment in environments]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    for row in columns[0]:
        cells = [column[row] for column in columns]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _column(environment: Environment) -> dict[str, str]:
    """Title of a row -> the cell of an environment."""
    versions = {pin.name: pin.version for pin in environment.wheels(BackendName.PIP)}
    source = environment.flash_attn()
    if (
        source and "flash-attn-4" not in versions
    ):  # beside it, built only where it is asked for
        versions[source.name] = source.version
    cells = {"CUDA": _cuda(environment), "python": environment.python}
    for name in PACKAGES:
        cells[name] = versions.get(name, "none")
    archives = len(environment.conda())
    over = len(environment.wheels(BackendName.CONDA))
    both = len(environment.wheels(BackendName.PIP))
    cells["packages in all, each by its sha256"] = (
        f"{archives} conda archives and {over} wheels, or {both} wheels"
    )
    cells["known vulnerabilities"] = str(len(find_vulnerabilities(versions.get)))
    return cells


def _cuda(environment: Environment) -> str:
    conda = environment.cuda(BackendName.CONDA)
    pip = environment.cuda(BackendName.PIP)
    if conda == pip:
        return pip or "none"
    return f"{conda} from conda, {pip} from PyPI"


TABLES = (
    Table(ROOT / "docs/TECHNICAL_SETUP.md", version_table),
    Table(ROOT / "README.md", make_overview),
)
