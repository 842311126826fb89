"""The feature explorer: what it lists, what its pages say, and what its script does."""

import html.parser
import json
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from helpers import explorer
from helpers.explorer import BIOSAMPLES, CLAIMS, HELD, Explorer
from helpers.figures import explorer as drawn
from helpers.figures._feature_view import feature_view, number
from helpers.figures._logo import logo_svg

HOSTILE = "<script>alert(1)</script>&\"'"
LINEAGES = ["blood", "liver"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def toy(n=6):
    """Features of two blocks; the strongest score is not the strongest effect."""
    number_ = np.arange(n)
    table = {
        "layer": number_ % 2,
        "feature": 10 + number_,
        "class": "shared-vivo",
        "behind": ["blood,liver" if k % 3 else "liver" for k in number_],
        "lineage": "liver",
        "context": "in_vivo",
        "cds": 3.0 + number_,
        "cds_blood": 9.0 - number_,
        "cds_liver": 1.0 + number_,
        "d_z": 1.0 / (1 + number_),
        "d_z_low": 0.1,
        "d_z_high": 2.0,
        "d_z_held": -0.1 * number_,
        "d_z_held_low": -1.0,
        "d_z_held_high": 0.5,
        "density": 0.01 * (1 + number_ % 4),
        "ablated": np.where(number_ < 3, 0.2 * number_, np.nan),
        "mean_in_vitro": 0.5,
        "mean_in_vivo": 1.5,
        "log2_fold": 1.58,
        "readout": "both",
        "motif_share": 0.8,
        "driver": "motif",
        "annotated": number_ < 4,
        "motif": ["GATA1", HOSTILE, "", "", "", ""][:n],
        "state": "",
        "process": "",
        "planted": "",
    }
    claims = dict(
        zip(CLAIMS, np.arange(n)[None] < [[6], [3], [4], [0], [2]], strict=True)
    )
    features = pd.DataFrame(table | claims)
    keys = features[["layer", "feature"]]
    effects = [
        keys.assign(lineage=x, split=y, delta=1.0, low=0.5, high=1.5, cds=4.0)
        for x in LINEAGES
        for y in ("select", "test")
    ]
    track = [[0.0, 2.5, 1.0, 0.0]] * n
    tracks = {
        f"{x}_{y}": track for x in ("acts", "signal") for y in ("in_vitro", "in_vivo")
    }
    place = {"rank": 1, "chrom": HOSTILE, "start": 1024, "end": 1536, "peak": 1}
    own = keys[features["annotated"]]
    tested = {"n_regions": 50, "hits": 20, "rate": 0.1, "rate_all": 0.2, "fold": 4.0}
    q = {"log_p": -9.0, "q_value": 1e-3, "q_shift": 1e-3}
    found = pd.concat(
        [
            own.assign(level=x, item=HOSTILE, name=HOSTILE, **tested, **q)
            for x in ("motif", "state", "go")
        ]
    )
    matrix = np.full((3, 4), 0.02) + 0.92 * np.eye(4)[[2, 0, 3]]
    logos = own.assign(source="known", name=HOSTILE, text="MA1")
    logos["probabilities"] = [matrix] * len(own)
    ablated = keys[:2].assign(
        lineage="liver", outcome="vivo-up", effect=0.3, low=-0.1, high=0.7
    )
    facts = {
        "description": f"SIMULATED {HOSTILE}",
        "lineages": LINEAGES,
        "claims": list(CLAIMS),
        "called": n,
        "skipped": {},
    }
    loci = keys.assign(**place, **tracks)
    return Explorer(features, pd.concat(effects), loci, found, logos, ablated, facts)


class Reader(html.parser.HTMLParser):
    """Checks that elements close in order and notes what pages point to."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.links += [attrs[x] for x in ("href", "src") if x in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


@pytest.fixture
def pages(tmp_path):
    data = toy()
    return data, drawn.write_pages(data, tmp_path / "features")


# --- Data -----------------------------------------------------------------------------


def test_claims_of_answers_every_claim_by_its_own_columns():
    features = pd.DataFrame(
        {
            "layer": 0,
            "feature": range(4),
            "class_held": ["none", "shared-vivo", "untested", "discordant"],
            "class_e3_held": ["none", "none", "none", "lineage-only"],
            "q_placebo": [0.01, 0.5, np.nan, 0.05],
            "driver": ["motif", "track", "track", "motif"],
        }
    )
    scores = pd.DataFrame({"class": ["shared-vivo", "shared-vivo", "none", "none"]})
    evidence = SimpleNamespace(features=features)

    found = explorer.claims_of(scores, evidence)
    assert found[list(CLAIMS)].to_numpy().T.tolist() == [
        [True, True, False, False],
        [False, True, False, False],
        [False, True, False, True],
        [True, False, False, True],
        [False, False, False, True],
    ]
    alone = SimpleNamespace(features=features.drop(columns=["q_placebo"]))
    assert [x for x in explorer.claims_of(scores, alone) if x in CLAIMS] == list(
        CLAIMS[:3]
    )


def planted_study(n_windows=40, n_tokens=80):
    """One pair; feature 1 fires in vivo at known tokens, feature 0 never."""
    acts = np.zeros((2, n_windows, n_tokens, 2), np.float32)
    acts[0, 3, 40, 1] = 99  # in vitro: not where it is looked at
    for height, window, token in ((5, 35, 7), (4, 2, 50), (3, 11, 77), (2, 20, 9)):
        acts[1, window, token, 1] = height
    acts[1, 30, 0, 1] = 50  # on a token that the model does not predict
    start = 100_000 * np.arange(n_windows)
    windows = pd.DataFrame(
        {"chrom": "c", "start": start, "end": start + 128 * n_tokens}
    )
    dataset = SimpleNamespace(
        windows=windows,
        n_tokens=n_tokens,
        windows_of=lambda *splits: np.arange(n_windows),
        target=lambda chosen, b: np.full((len(chosen), n_tokens), np.expm1(b + 1.0)),
    )
    model = SimpleNamespace(config=SimpleNamespace(crop=2))
    return acts, SimpleNamespace(
        dataset=dataset, model=model, pair=lambda x: (0, 1), design=[0, 1]
    )


def test_strongest_loci_finds_planted_places_in_order(monkeypatch):
    acts, study = planted_study()
    monkeypatch.setattr(
        explorer, "feature_acts", lambda s, layer, f, w: acts[:, w][..., f]
    )
    features = pd.DataFrame(
        {"layer": 0, "feature": [0, 1], "lineage": "x", "context": "in_vivo"}
    )
    loci = explorer.strongest_loci(study, features)
    assert loci["feature"].tolist() == [1, 1, 1]
    assert [x["start"] // 100_000 for x in loci.to_dict("records")] == [35, 2, 11]
    for row, (height, token) in zip(
        loci.to_dict("records"), ((5, 7), (4, 50), (3, 77)), strict=True
    ):
        assert len(row["acts_in_vivo"]) == explorer.SPAN
        assert row["end"] - row["start"] == 128 * explorer.SPAN
        assert row["acts_in_vivo"][row["peak"]] == height
        assert (row["start"] % 100_000) // 128 + row["peak"] == token
        assert row["signal_in_vivo"] == pytest.approx([2.0] * explorer.SPAN)
        assert row["signal_in_vitro"] == pytest.approx([1.0] * explorer.SPAN)


def test_of_refuses_a_feature_that_is_not_here():
    with pytest.raises(ValueError, match="no context feature 99"):
        toy().of("loci", 0, 99)


def test_budget_keeps_the_strictest_claims(monkeypatch):
    monkeypatch.setattr(explorer, "MAX_FEATURES", 2)
    kept = explorer._within_budget(toy().features)
    assert kept["feature"].tolist() == [10, 11]  # the two that stand E3


# --- Pages ----------------------------------------------------------------------------


def test_write_pages_makes_valid_pages_without_dead_links(pages):
    data, folder = pages
    names = [f"block{k % 2}-{10 + k}" for k in range(6)]
    assert {x.stem for x in folder.glob("*.html")} == {*names, "index"}
    for path in folder.glob("*.html"):
        reader = read(path.read_text())
        for link in reader.links:
            local = link.partition("#")[0]
            assert link.startswith("data:") or not local or (folder / local).is_file()
        assert len(set(reader.ids)) == len(reader.ids)
        levels = [int(x[1]) for x, _ in reader.tags if x in ("h1", "h2", "h3", "h4")]
        assert levels.count(1) == 1 and levels[0] == 1


def test_index_lists_every_feature_and_counts_claims(pages):
    data, folder = pages
    text = (folder / "index.html").read_text()
    assert len([x for x in read(text).ids if x.startswith("block")]) == 6
    for claim in CLAIMS:
        assert f"{claim} ({data.features[claim].sum()})" in text


def test_hostile_names_stay_text(pages):
    _, folder = pages
    for path in [*folder.glob("*.html")]:
        text = path.read_text()
        assert "<script>alert" not in text
        scripts = [x for x, _ in read(text).tags if x == "script"]
        assert len(scripts) == (2 if path.stem == "index" else 0)
    assert "&lt;script&gt;" in (folder / "block1-11.html").read_text()


def test_every_drawing_has_a_name_or_is_hidden():
    reader = read(feature_view(toy(), 0, 10))
    for tag, attrs in reader.tags:
        if tag == "svg":
            assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"


def test_view_says_first_what_does_not_hold():
    held, lost = feature_view(toy(), 1, 11), feature_view(toy(), 1, 15)
    assert "Not called once the motif activity is held fixed" in lost
    assert "80% of it" in lost and "Not annotated" in lost
    assert "Not called once" not in held and "points the other way" in held
    assert "Not measured" in lost and "Not measured" not in held


def test_write_pages_replaces_its_own_and_refuses_other_folders(tmp_path):
    folder = drawn.write_pages(toy(), tmp_path / "features")
    (folder / "old.html").write_text("")
    drawn.write_pages(toy(2), folder)
    assert {x.name for x in (folder / "data").iterdir()} == {
        "block0-10.js",
        "block1-11.js",
    }
    assert not (folder / "old.html").exists()
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="mine holds files"):
        drawn.write_pages(toy(), other)
    assert (other / "thesis.txt").read_text() == "dear"


def test_arrange_sorts_by_size_with_unknown_last():
    data = toy()

    def names(**choice):
        return drawn.arrange(data, **choice)["feature"].tolist()

    assert names(sort="cds") == [15, 14, 13, 12, 11, 10]
    assert names(sort="ablated") == [12, 11, 10, 13, 14, 15]
    assert names(sort="cds", lineage="blood") == [11, 12, 14, 15]
    assert names(block=1, claim=HELD, sort="number") == [11, 13]
    assert names(search="gata1 VIVO") == [10]
    with pytest.raises(ValueError, match="sort must be one of"):
        drawn.arrange(data, sort="beauty")


def test_number_is_short_and_marks_what_is_missing():
    assert [number(x) for x in (1234.5, 0.01234, np.nan)] == ["1,234", "0.0123", "–"]


def test_logo_draws_letters_as_high_as_their_information():
    drawing = logo_svg(np.array([[1, 0, 0, 0], [0.25] * 4]), "one A")
    assert drawing.count('class="A"') == 1  # the uniform position holds nothing
    assert "scale(.42 1.000)" in drawing


def test_page_addresses_point_from_notebooks_to_pages():
    found = drawn.page_addresses(toy().features)
    assert found[0, 10] == "../features/block0-10.html"


# --- Live and script ------------------------------------------------------------------


def test_live_explorer_changes_its_picture():
    box = drawn.live_explorer(toy())
    controls, count, feature, view = box.children
    block, lineage, claim, sort, search = controls.children
    assert claim.value == BIOSAMPLES and count.value == "2 of 6 features"
    assert "Block 1, feature 11" in view.value
    claim.value = ""
    sort.value = "cds"
    assert feature.options[0][1] == (1, 15)
    feature.value = (0, 12)
    assert "Block 0, feature 12" in view.value
    search.value = "nothing like this"
    assert count.value == "0 of 6 features"


def dump(page, script=""):
    """Page as the browser leaves it, after a script that plays the reader."""
    text = page.read_text().replace("</body>", f"<script>{script}</script></body>")
    played = page.with_name("played.html")
    played.write_text(text)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--virtual-time-budget=4000", "--dump-dom", played.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(
    "choice",
    [
        {"claim": "", "sort": "cds"},
        {"claim": "", "sort": "cds", "lineage": "blood"},
        {"claim": "", "sort": "ablated"},
        {"claim": HELD, "sort": "number", "block": 1},
        {"claim": "", "sort": "density", "search": "vivo 1"},
    ],
)
def test_script_chooses_and_sorts_as_python_does(pages, choice):
    data, folder = pages
    set_ = ";".join(
        f'document.querySelector(`[data-cx="{name}"]`).value='
        + json.dumps(str(list(CLAIMS).index(x) if name == "claim" and x else x))
        for name, x in choice.items()
    )
    fire = (
        'document.querySelector(`[data-cx="sort"]`).dispatchEvent(new Event("input"))'
    )
    rows = read_ids(dump(folder / "index.html", f"{set_};{fire}"))
    expected = drawn.arrange(data, **choice)
    assert rows == [
        f"block{a}-{b}" for a, b in expected[["layer", "feature"]].to_numpy()
    ]


def read_ids(text):
    reader = Reader()
    reader.handle_endtag = lambda tag: None  # browsers write other void elements
    reader.feed(text)
    return [x for x in reader.ids if x.startswith("block")]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_script_shows_the_feature_that_is_chosen(pages):
    _, folder = pages
    click = "document.querySelector('#block0-10 a').click()"
    text = dump(folder / "index.html", click)
    assert 'data-name="block0-10"' in text
    assert "Block 0, feature 10</h3>" in text
    assert "Shown: block 0, feature 10" in text
    (folder / "data" / "block0-10.js").unlink()
    assert "is missing" in dump(folder / "index.html", click)
