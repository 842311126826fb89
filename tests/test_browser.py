"""The rendered book in a real browser: what a reader sees, clicks and waits for.

`make test-browser` runs these on the book that `make book` rendered, or on the folder
that ``CHROMATIN_BOOK`` names, with the Chromium of the system.
"""

import functools
import http.server
import io
import json
import os
import shutil
import threading
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOK = Path(os.environ.get("CHROMATIN_BOOK", ROOT / "_build" / "html")).resolve()
BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
SCREENS = {"wide": (1280, 900), "phone": (390, 844)}
MAX_PAGE_MB = 3.0
BY_SPHINX = {"genindex.html", "index.html", "search.html"}


def pages_of(book):
    """List the pages, as paths inside the book."""
    pages = sorted(path.relative_to(book) for path in book.rglob("*.html"))
    return [
        page
        for page in pages
        if str(page) not in BY_SPHINX and "webpack" not in page.name
    ]


def ends_of_folders(pages):
    """Keep every page of the book, and the first and last of a folder of like pages."""
    folders = {}
    for page in pages:
        folders.setdefault(page.parent, []).append(page)
    kept = [
        pages
        if folder in (Path("book"), Path("notebooks"))
        else list(dict.fromkeys([pages[0], pages[-1]]))
        for folder, pages in folders.items()
    ]
    return sum(kept, [])


PAGES = pages_of(BOOK) if BOOK.is_dir() else []
OPENED = ends_of_folders(PAGES)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not PAGES, reason=f"no rendered book in {BOOK}: `make book`"),
]


# --- The browser ----------------------------------------------------------------------


class Visit(NamedTuple):
    """A page that is open, and everything it complained about or asked for."""

    path: Path
    page: object
    complaints: list
    elsewhere: list


@pytest.fixture(scope="module")
def address():
    """The book on a local server, since browsers forbid much to pages from a file."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=BOOK)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium here; on Debian or Ubuntu: apt install chromium")
    # Chromium's own sandbox refuses root, as which containers run.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def new_visit(browser):
    """Open an address; afterwards close what was opened."""
    contexts = []

    def visit(address, path=None):
        width, height = SCREENS["wide"]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="light"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        origin = urlsplit(address)[:2]
        complaints, elsewhere = [], []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if urlsplit(request.url)[:2] == origin
                or request.url.startswith(("data:", "blob:"))
                else elsewhere.append(request.url)
            ),
        )
        page.goto(address)
        settle(page)
        return Visit(path, page, complaints, elsewhere)

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture(scope="module", params=OPENED, ids=str)
def visit(request, address, new_visit):
    opened = new_visit(f"{address}/{request.param}", request.param)
    yield opened
    opened.page.close()


def settle(page):
    """Wait until formulas are drawn and the layout has followed."""
    page.evaluate(
        """async () => {
            await window.MathJax?.startup?.promise;
            const pause = ms => new Promise(done => setTimeout(done, ms));
            await pause(50); // sidebars begin to slide
            const moves = document.getAnimations().map(move => move.finished);
            await Promise.race([Promise.allSettled(moves), pause(1000)]);
            await pause(50);
            await new Promise(requestAnimationFrame);
        }"""
    )


def set_screen(page, screen):
    width, height = SCREENS[screen]
    page.set_viewport_size({"width": width, "height": height})
    settle(page)


def set_theme(page, theme):
    # Pages of features have no switch: they follow the reader's system.
    page.emulate_media(color_scheme=theme)
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    settle(page)


# --- Every page -----------------------------------------------------------------------


def test_page_loads_without_complaint(visit):
    assert not visit.complaints


def test_page_asks_nothing_of_other_servers(visit):
    assert not visit.elsewhere


def test_pictures_load_and_are_described(visit):
    pictures = visit.page.evaluate(
        """async () => {
            const images = [...document.querySelectorAll("img")];
            images.forEach(image => { image.loading = "eager"; });
            await Promise.all(images.map(image => image.decode().catch(() => null)));
            return images.map(image => ({
                source: image.src.slice(0, 80),
                width: image.naturalWidth,
                alt: image.getAttribute("alt"),
                figure: image.closest(".bd-article") !== null,
            }));
        }"""
    )
    for picture in pictures:
        assert picture["width"] > 0, picture
        assert picture["alt"] is not None, picture
        if picture["figure"]:
            assert len(picture["alt"]) > 20, picture
            assert not picture["alt"].startswith(("http", "../", "_images")), picture


def test_formulas_are_drawn(visit):
    counted = visit.page.evaluate(
        """() => ({
            formulas: document.querySelectorAll(".bd-article .math").length,
            drawn: document.querySelectorAll(".math mjx-container svg path").length,
            raw: [...document.querySelectorAll(".math:not(:has(mjx-container svg))")]
                .map(formula => formula.textContent),
            wrong: [...document.querySelectorAll("[data-mjx-error]")]
                .map(formula => formula.dataset.mjxError),
        })"""
    )
    assert not counted["raw"]
    assert not counted["wrong"]
    assert (counted["drawn"] > 0) == (counted["formulas"] > 0)


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_is_wider_than_the_screen(visit, screen):
    set_screen(visit.page, screen)
    # What scrolls in a place of its own may be wide; all else must end inside.
    wide = visit.page.evaluate(
        """() => {
            const scrolls = element => {
                for (let e = element.parentElement; e; e = e.parentElement)
                    if (e !== document.body && e !== document.documentElement
                        && !e.matches(".bd-article-container")
                        && getComputedStyle(e).overflowX !== "visible") return true;
                return false;
            };
            const article = document.querySelector(".bd-article") ?? document.body;
            const inside = [...article.querySelectorAll("*")]
                .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
                .filter(e => getComputedStyle(e).visibility !== "hidden")
                .filter(e => !scrolls(e))
                .map(e => e.outerHTML.slice(0, 120));
            const page = document.scrollingElement;
            return page.scrollWidth > innerWidth ? ["the page", ...inside] : inside;
        }"""
    )
    set_screen(visit.page, "wide")
    assert not wide


@pytest.mark.parametrize(
    ("screen", "theme"),
    [("wide", "light"), ("phone", "dark")],
    ids=["wide-light", "phone-dark"],
)
def test_page_is_accessible(visit, screen, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    set_screen(visit.page, screen)
    set_theme(visit.page, theme)
    found = axe.Axe().run(
        visit.page,
        context={"exclude": [["mjx-container > *"]]},  # thousands of paths
        options={"resultTypes": ["violations"], "preload": False},
    )
    set_theme(visit.page, "light")
    set_screen(visit.page, "wide")
    serious = [
        (violation["id"], node["target"], node["failureSummary"])
        for violation in found.response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert not serious, json.dumps(serious, indent=1)


def test_figures_can_be_read_in_the_dark(visit):
    image = pytest.importorskip("PIL.Image")
    set_theme(visit.page, "dark")
    try:
        background = luminance_of(visit.page.evaluate(BACKGROUND))
        assert background < 0.2, "the page is not dark"
        for picture in visit.page.locator(".bd-article img:visible").all():
            picture.scroll_into_view_if_needed()
            pixels = np.asarray(image.open(io.BytesIO(picture.screenshot())))
            gray = pixels[..., :3].mean(axis=-1) / 255
            low, high = np.quantile(gray, [0.005, 0.995])
            assert high - low > 0.4, picture.get_attribute("alt")
    finally:
        set_theme(visit.page, "light")


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def luminance_of(color):
    """Return the mean channel of a CSS color such as ``rgb(18, 18, 18)``."""
    channels = color.partition("(")[2].rstrip(")").split(",")[:3]
    return np.mean([float(channel) for channel in channels]) / 255


# --- What can be operated -------------------------------------------------------------

# An element with this attribute holds controls and the pictures they choose from.
INTERACTIVE = "[data-interactive]"
PICTURES = """box => [...box.querySelectorAll("img, svg, canvas, table, iframe")]
    .filter(picture => picture.checkVisibility())
    .map(picture => picture.src || picture.outerHTML).join()"""


def pictures_change(page, box, act):
    """Tell whether other pictures are shown soon after something was done."""
    before = box.evaluate(PICTURES)
    assert before, "no picture is shown"
    act()
    for _ in range(20):
        if box.evaluate(PICTURES) != before:
            return True
        page.wait_for_timeout(50)
    return False


def choose_other(page, box, control):
    """Tell whether an option of a list changes the pictures; choose the first again."""
    first = control.evaluate("element => element.selectedIndex")
    others = [k for k in range(control.locator("option").count()) if k != first]
    changed = any(
        pictures_change(page, box, lambda k=k: control.select_option(index=k))
        for k in others
    )
    control.select_option(index=first)
    return changed


def test_every_control_changes_its_picture(visit):
    page = visit.page
    for box in page.locator(INTERACTIVE).all():
        controls = box.locator("input[type=range], select, button:enabled").all()
        assert controls, "nothing to operate"
        for control in controls:
            name = control.evaluate("element => element.outerHTML.slice(0, 120)")
            assert control.is_visible(), name
            match control.evaluate("element => element.tagName"):
                case "SELECT":
                    assert choose_other(page, box, control), name
                case "BUTTON":
                    assert pictures_change(page, box, control.click), name
                case _:
                    control.focus()
                    control.press("Home")
                    assert pictures_change(page, box, lambda c=control: c.press("End"))


def test_theme_button_turns_the_page_dark(address, new_visit):
    page = new_visit(f"{address}/{PAGES[0]}").page
    button = page.locator(".theme-switch-button:visible").first
    for _ in range(3):  # it goes round: system, light, dark
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
        button.click()
    assert luminance_of(page.evaluate(BACKGROUND)) < 0.2


def test_search_finds_the_score(address, new_visit):
    page = new_visit(f"{address}/search.html?q=CDS").page
    results = page.locator("#search-results ul.search li")
    results.first.wait_for()
    assert results.count() > 3
    assert "Context Divergence Score" in " ".join(results.all_text_contents())


# --- Away from any network ------------------------------------------------------------


def test_book_works_from_a_folder(new_visit):
    """Formulas, controls and search of pages that are opened as files."""
    with_formulas = [
        page for page in OPENED if 'class="math' in (BOOK / page).read_text()
    ]
    interactive = [
        page for page in OPENED if "data-interactive" in (BOOK / page).read_text()
    ]
    for path in dict.fromkeys(with_formulas[:1] + interactive[:1]):
        opened = new_visit((BOOK / path).as_uri(), path)
        test_page_asks_nothing_of_other_servers(opened)
        test_formulas_are_drawn(opened)
        test_every_control_changes_its_picture(opened)

    page = new_visit(f"{(BOOK / 'search.html').as_uri()}?q=CDS").page
    page.locator("#search-results ul.search li").first.wait_for()


# --- Files alone, no browser ----------------------------------------------------------


@functools.cache
def parsed(page):
    bs4 = pytest.importorskip("bs4")
    return bs4.BeautifulSoup((BOOK / page).read_text(), "html.parser")


@functools.cache
def anchors(page):
    return {tag["id"] for tag in parsed(page).find_all(id=True)} | {"", "top"}


def links(page):
    """Yield (link, file, fragment) of everything a page refers to inside the book."""
    for tag in parsed(page).find_all(["a", "img", "script", "link", "iframe"]):
        link = tag.get("href") or tag.get("src")
        if not link or urlsplit(link).scheme:
            continue
        target = urlsplit(link)
        here = (BOOK / page).parent
        file = (here / unquote(target.path)).resolve() if target.path else BOOK / page
        yield link, file, unquote(target.fragment)


def test_links_inside_the_book_lead_somewhere():
    broken = []
    for page in PAGES:
        for link, file, fragment in links(page):
            if not file.is_relative_to(BOOK) or not file.exists():
                broken.append((str(page), link))
            elif file.suffix == ".html" and file.name not in BY_SPHINX:
                if fragment not in anchors(file.relative_to(BOOK)):
                    broken.append((str(page), link))
    assert not broken


def test_pages_need_no_widget_manager():
    # Widgets of a notebook would be blank here; their cells carry pictures instead.
    for page in PAGES:
        assert "application/vnd.jupyter.widget" not in (BOOK / page).read_text(), page


def test_pages_show_no_progress_or_warnings():
    for page in PAGES:
        assert not parsed(page).select(".output.stderr"), page


def test_pages_are_light(capsys):
    """Weigh each page with its pictures; print the weights."""
    weights = {}
    for page in PAGES:
        files = {file for _, file, _ in links(page) if file.parent.name == "_images"}
        weights[page] = sum(map(os.path.getsize, {BOOK / page, *files})) / 1e6
    with capsys.disabled():
        print("\n\npage weights in MB, with pictures, without scripts and styles")
        for page in sorted(OPENED, key=weights.get, reverse=True):
            print(f"  {weights[page]:5.2f}  {page}")
    assert max(weights.values()) < MAX_PAGE_MB
