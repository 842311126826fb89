"""Begin a tissue file, and check one: ``python -m helpers.new_tissue heart``."""

from __future__ import annotations

import argparse
import os
import re
from importlib import resources
from pathlib import Path

from helpers._yaml_file import YamlFile
from helpers.public_data import is_public, read_public
from helpers.tissues import NOTEBOOK_PARAMETERS, read_tissue

__all__ = ["check", "write_template"]

FOLDER = Path("notebooks") / "tissues"
_RESOURCES = Path(str(resources.files("helpers") / "resources"))


def write_template(name: str, folder: str | Path = FOLDER) -> Path:
    """Write a commented tissue file to fill in.

    Parameters
    ----------
    name : str
        Of the tissue: letters, digits, underscores and hyphens.
    folder : str or Path
        Where the file goes; it is never overwritten.

    Returns
    -------
    Path
        ``<folder>/<name>.yml``.

    Raises
    ------
    ValueError
        If the name would not do as that of a file.
    FileExistsError
        If the file exists.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise ValueError(
            f"name must consist of letters, digits, _ and -, and not begin with _ or "
            f"-; got {name!r}"
        )
    path = Path(folder) / f"{name}.yml"
    schema = os.path.relpath(_RESOURCES / "tissue.schema.json", path.parent)
    text = (_RESOURCES / "tissue_template.yml").read_text(encoding="utf-8")
    for placeholder, value in (
        ("{name}", name),
        ("{path}", path.as_posix()),
        ("{schema}", Path(schema).as_posix()),
    ):
        text = text.replace(placeholder, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    return path


def check(path: str | Path) -> None:
    """Check a tissue file and that the files it names exist.

    A file without a tissue, which takes those of its ``data``, is checked for what it
    then is: parameters of the notebooks.

    Raises
    ------
    FileNotFoundError, ValueError
        Listing every problem with its line.
    """
    file = YamlFile(Path(path), NOTEBOOK_PARAMETERS)
    if "data" in file.content and "tissue" not in file.content:
        file.check_keys(
            file.content,
            (),
            known=NOTEBOOK_PARAMETERS,
            required=("run", "data"),
            text=("run", "data", "streams", "saes", "device", "model", "precision"),
        )
        file.raise_if_wrong()
    elif is_public(path):
        read_public(Path(path))
    else:
        read_tissue(path)


def main() -> None:
    """Write a template, or check files, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="+", help="name of a tissue; files with --check")
    parser.add_argument("--check", action="store_true", help="check tissue files")
    arguments = parser.parse_args()
    try:
        for name in arguments.name:
            if arguments.check:
                check(name)
                print(f"{name}: nothing is wrong with it")
            else:
                print(f"written: {write_template(name)}; fill it in, then check it")
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
