"""The Sphinx extension that keeps the pages of the book off the network."""

import importlib.util
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sphinx")
nodes = pytest.importorskip("docutils.nodes")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def extension():
    path = ROOT / "book" / "_ext" / "offline_pages.py"
    spec = importlib.util.spec_from_file_location("offline_pages", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page_context(body, scripts=()):
    return {"body": body, "script_files": list(scripts)}


def test_a_changed_script_stops_the_build(extension, tmp_path, monkeypatch):
    (tmp_path / "tex-svg.js").write_text("something else")
    package = SimpleNamespace(locate_file=lambda name: tmp_path / "tex-svg.js")
    monkeypatch.setattr(extension, "distribution", lambda name: package)
    with pytest.raises(extension.ExtensionError, match="expected SHA-256 d4295dc"):
        extension.read_script()


def test_a_missing_package_stops_the_build(extension, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extension, "distribution", absent)
    with pytest.raises(extension.ExtensionError, match="pip install"):
        extension.setup(None)


def test_badges_become_links_and_other_pictures_stay(extension):
    badge = nodes.image(uri="https://elsewhere.org/badge.svg", alt="Open in Colab")
    link = nodes.reference("", "", badge, refuri="https://elsewhere.org/page")
    figure = nodes.image(uri="_images/figure.png", alt="a figure")
    document = nodes.container("", link, figure)
    extension.replace_badges(None, document)
    assert list(document.findall(nodes.image)) == [figure]
    assert link.astext() == "Open in Colab"
    assert link["refuri"] == "https://elsewhere.org/page"


@pytest.mark.parametrize(
    ("body", "noticed"), [('<span class="math x">', True), ("<p>words</p>", False)]
)
def test_pages_with_formulas_say_what_happens_without_scripts(extension, body, noticed):
    context = page_context(body)
    extension.finish_page(None, "page", "page.html", context, None)
    assert ("<noscript>" in context["body"]) == noticed
    assert context["body"].endswith(body)


def test_scripts_of_thebe_are_left_out(extension):
    inline = SimpleNamespace(filename=None, attributes={"body": "const THEBE_JS_URL"})
    file = SimpleNamespace(filename="_static/sphinx-thebe.js", attributes={})
    needed = SimpleNamespace(filename="_static/doctools.js", attributes={})
    context = page_context("", [inline, file, needed, "_static/plain.js"])
    extension.finish_page(None, "page", "page.html", context, None)
    assert context["script_files"] == [needed, "_static/plain.js"]
