"""YAML files for people: what is wrong with one is said all at once, line by line."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path

import yaml

__all__ = ["YamlFile"]

_MAX_BYTES = 2**20  # nobody writes a tissue by hand that is larger


class YamlFile:
    """A mapping read from YAML, and the problems found in it.

    Parameters
    ----------
    path : Path
        The file.
    expected : sequence of str
        Keys to name if the file holds no mapping.

    Attributes
    ----------
    content : dict
        What the file holds, in plain Python types.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds no YAML, or no mapping.
    """

    def __init__(self, path: Path, expected: Sequence[str]) -> None:
        self.path = path
        self._lines: dict[tuple, int] = {}
        self._problems: list[tuple[int, str]] = []
        if not path.is_file():
            raise FileNotFoundError(f"tissue file not found: {path}")
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(
                f"{path}: expected a file of at most {_MAX_BYTES} bytes; it has "
                f"{path.stat().st_size}"
            )
        try:
            text = path.read_text(encoding="utf-8")
            _refuse_aliases(text)
            root = yaml.compose(text, yaml.SafeLoader)
            self.content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(self.content, dict):
            raise ValueError(
                f"{path}: expected the keys {list(expected)}; found {self.content!r}"
            )
        self._locate(root, ())

    def complain(self, problem: str, *at: str | int) -> None:
        """Note a problem of the entry that these keys and positions lead to."""
        while at and at not in self._lines:
            at = at[:-1]  # what is missing is missing from the entry around it
        self._problems.append((self._lines.get(at, 1), problem))

    def check_keys(
        self,
        entry: dict,
        at: tuple,
        *,
        known: Collection[str],
        required: Sequence[str],
        text: Sequence[str],
    ) -> None:
        """Note unknown and missing keys, and values that should be text and are not."""
        where = _name(at)
        for key in entry:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = (
                    f"did you mean {close[0]!r}?"
                    if close
                    else f"known: {sorted(known)}"
                )
                self.complain(f"{where}unknown key {key!r} ({hint})", *at, key)
        for key in required:
            if entry.get(key) is None:
                self.complain(f"{where}key {key!r} is missing", *at)
        for key in text:
            if not isinstance(entry.get(key, ""), str | None):
                found = f"{where}key {key!r} must be text; got {entry[key]!r}"
                self.complain(found, *at, key)

    def raise_if_wrong(self) -> None:
        """Raise ValueError that lists the problems by line, if there are any."""
        lines = [f"line {line}: {text}" for line, text in sorted(self._problems)]
        if len(lines) == 1:
            raise ValueError(f"{self.path}: {lines[0]}")
        if lines:
            listed = "\n  ".join(lines)
            raise ValueError(f"{self.path}: {len(lines)} problems\n  {listed}")

    def _locate(self, node: yaml.Node, at: tuple) -> None:
        """Remember the lines of entries; keys given twice are a problem."""
        self._lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            for position, child in enumerate(node.value):
                self._locate(child, (*at, position))
        elif isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                line = key.start_mark.line + 1
                inner = (*at, key.value)
                if inner in self._lines:
                    first = self._lines[inner]
                    twice = f"{_name(at)}key {key.value!r} stands on line {first} too"
                    self._problems.append((line, twice))
                self._lines[inner] = line
                self._locate(child, inner)


def _refuse_aliases(text: str) -> None:
    """Refuse references: nobody needs them here, and nested ones fill the memory."""
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            raise ValueError(f"line {line}: references (*{event.anchor}) are not read")


def _name(at: tuple) -> str:
    """Return how a message names an entry, such as ``replicates[0]: ``."""
    if not at:
        return ""
    inner = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in at[1:])
    return f"{at[0]}{inner}: "
