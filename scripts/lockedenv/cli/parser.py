"""The parser of every command: wrong usage is one line, with the option that was probably
meant, and exit status 2.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, NoReturn, Sequence

from lockedenv.spec.suggest import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser that ends wrong usage with one line and exit status 2."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._refuse_empty_values(sys.argv[1:] if args is None else list(args))
        return super().parse_known_args(args, namespace)

    def _refuse_empty_values(self, words: Sequence[str]) -> None:
        """An empty variable of a script, as in --offline "$DIR", would mean that
        no such option is given.
        """
        names: list[str] = []
        for action in self._actions:
            if action.nargs is None:
                names += action.option_strings
        for number, word in enumerate(words):
            name, equals, value = word.partition("=")
            if not equals:
                value = "".join(words[number + 1 : number + 2])
            is_given = bool(equals) or number + 1 < len(words)
            if name in names and is_given and not value:
                self.error(f"argument {name}: its value is empty")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse drops the error of a full output: a help would be missing, with status 0.
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        # argparse gives its words alone, so the word that was meant is found in them.
        options: list[str] = []
        for action in self._actions:
            options += action.option_strings
        match = re.fullmatch(r"unrecognized arguments: (\S+).*", message)
        if match:
            message += did_you_mean(match[1].partition("=")[0], options)
        match = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if match:
            message += did_you_mean(match[1], re.findall(r"[\w-]+", match[2]))
        self.exit(2, f"{Path(self.prog).name}: {message}; --help lists the options\n")
