"""Pages that ask the network for nothing.

MathJax comes from the installed package sphinx-mathjax-offline, which carries version
3.2.2 (Apache-2.0) as its authors publish it. Of its 24 MB the book needs one file,
which draws formulas as SVG and so needs no fonts; it is copied where `mathjax_path` in
``_config.yml`` says. The badge that notebooks show in Colab and on GitHub is a picture
from elsewhere; in the book its text takes its place.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

PACKAGE = "sphinx-mathjax-offline"
SOURCE = "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
SHA256 = "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"
TARGET = "mathjax/tex-svg.js"
NOTICE = (
    '<noscript><p class="needs-scripts">Formulas on this page are drawn by a script. '
    "With scripts off they are shown as TeX.</p></noscript>"
)


def read_script() -> bytes:
    """Return MathJax as the installed package has it.

    Raises
    ------
    ExtensionError
        If the package is missing or its file is not the one that was reviewed.
    """
    try:
        path = Path(str(distribution(PACKAGE).locate_file(SOURCE)))
    except PackageNotFoundError as error:
        raise ExtensionError(
            f"formulas need the package {PACKAGE}: pip install -e '.[book]'"
        ) from error
    script = path.read_bytes()
    found = hashlib.sha256(script).hexdigest()
    if found != SHA256:
        raise ExtensionError(f"{path}: expected SHA-256 {SHA256}, found {found}")
    return script


def copy_script(app: Sphinx, exception: Exception | None) -> None:
    """Put MathJax among the static files of a finished HTML build."""
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir) / "_static" / TARGET
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_script())


def replace_badges(app: Sphinx, doctree: nodes.document) -> None:
    """Turn badges, linked pictures from elsewhere, into links with their text."""
    for image in list(doctree.findall(nodes.image)):
        if "://" in image["uri"] and isinstance(image.parent, nodes.reference):
            image.parent["classes"].append("badge-link")
            image.parent.replace(image, nodes.Text(image["alt"]))


def finish_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Say what a reader without scripts sees; leave out what is never used.

    Sphinx calls the bibliography a list, but its entries have a role that screen
    readers do not count as items of one.
    """
    body = context.get("body", "")
    if 'class="math' in body:
        body = NOTICE + body
    context["body"] = body.replace('<div role="list" class="cit', '<div class="cit')
    context["script_files"] = [
        script for script in context["script_files"] if not of_thebe(script)
    ]


def of_thebe(script: Any) -> bool:
    """Tell scripts that run cells on a server elsewhere; nothing here starts them."""
    inline = getattr(script, "attributes", {}).get("body") or ""
    return "thebe" in f"{getattr(script, 'filename', script)} {inline}".lower()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx; a missing package stops the build before any page."""
    read_script()
    app.connect("doctree-read", replace_badges)
    app.connect("html-page-context", finish_page, priority=900)  # after all others
    app.connect("build-finished", copy_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
