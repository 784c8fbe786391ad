"""Options of the command: each once, and one line for what is wrong with them."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, and refuses an option that is given twice, where one value would be lost."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.register("action", None, StoreOnce)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help.\n")


class StoreOnce(argparse.Action):
    """Stores a value, the first time."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Refuse the second time."""
        given: Sequence[str] = getattr(namespace, "_given", ())
        if option is not None and self.dest in given:
            parser.error(f"{option} is given twice; give it once")
        namespace._given = [*given, self.dest]
        setattr(namespace, self.dest, values)
