"""Arithmetic against the published count and torch's, passes against real runs."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import calibration, causal, costs, dictionaries, fidelity, masked, stages
from helpers.causal import _dose
from helpers.costs import _terms as _cost_terms
from helpers.costs import count_passes, forward_flop, plan
from helpers.epibert import EpiBERT, EpiBERTConfig
from helpers.figures import scaling
from helpers.runs import Run
from helpers.sae import SAEConfig, train

SMALL = EpiBERTConfig(
    input_length=2048,
    n_heads=2,
    n_blocks=3,
    sequence_filters=(8, 12, 12, 16, 16, 24),
    atac_filters=(8, 12),
    n_motifs=20,
    motif_units=8,
    n_random_features=16,
    head_scale=4,
)


def test_forward_flop_is_the_published_count():
    flop = forward_flop(EpiBERTConfig()) / 1e9
    published = {"sequence_stem": 307.6, "sequence_tower": 1734.7, "projection": 9.2}
    for part, count in published.items():
        assert flop[part] == pytest.approx(count, abs=0.05)
    assert flop.sum() == pytest.approx(2673, abs=0.5)


def counted_by_torch(config, *, train):
    """Count the operations of a pass without making one: on tensors without numbers."""
    model = EpiBERT(config).to("meta").train(train)
    inputs = (
        torch.zeros(1, config.input_length, 4, device="meta"),
        torch.zeros(1, config.input_length // 4, device="meta"),
        torch.zeros(1, config.n_motifs, device="meta"),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [SMALL, replace(EpiBERTConfig(), n_blocks=2)])
def test_forward_flop_is_what_torch_counts(config):
    # In training mode nothing is computed in pieces, and nothing twice.
    assert forward_flop(config).sum() == counted_by_torch(config, train=True)


def test_forward_flop_leaves_out_little_that_is_computed_twice():
    config = replace(EpiBERTConfig(), n_blocks=1)
    twice = counted_by_torch(config, train=False) - forward_flop(config).sum()
    assert 0 < twice < 0.005 * forward_flop(EpiBERTConfig()).sum()


def test_training_multiplies_two_dense_matrices_in_bfloat16():
    config = SAEConfig(
        d_sae=64,
        k=4,
        batch_size=32,
        n_epochs=1,
        aux_coefficient=0,
        precision="bfloat16",
    )
    rows = torch.randn(32 * 40, 16, generator=torch.Generator().manual_seed(0))

    def flop(n_rows):
        with FlopCounterMode(display=False) as counter:
            train(rows[:n_rows], config, heldout=rows[:64])
        return counter.get_total_flops()

    more = flop(32 * 40) - flop(32 * 20)
    expected = 4 * 16 * 64 * 32 * 20
    assert expected <= more <= 1.05 * expected  # b_dec is a product of a vector


def test_plan_is_the_sum_of_its_parts_by_hand():
    found = plan(
        SMALL,
        tissues=3,
        windows=96,
        stages=["extraction"],
        peak_tflops=2.0,
        efficiency=0.5,
        disk_gb_per_s=0.001,
    )
    flop = forward_flop(SMALL)
    tower = flop["sequence_stem"] + flop["sequence_tower"]
    passes = 6 * (flop.sum() - tower - flop["head"])
    row = found.table.loc["extraction"]
    assert row["pflop"] == pytest.approx(96 * (tower + passes) / 1e15)
    assert row["device_hours"] == pytest.approx(row["pflop"] * 1e15 / 1e12 / 3600)
    assert row["kept_gb"] == pytest.approx(96 * 6 * 3 * 16 * 24 * 2 / 1e9)
    assert row["wall_hours"] == pytest.approx(row["kept_gb"] / 0.001 / 3600)
    assert found.bottleneck == "extraction: disk"


def test_plan_names_the_bottleneck():
    given = {"tissues": 3, "windows": 96, "disk_gb_per_s": 1e6}
    assert plan(**given).bottleneck == "causal: arithmetic"
    assert plan(**given, devices=9).bottleneck == "causal: too few jobs"
    assert plan(**given, devices=2, seeds=2).bottleneck == "causal: arithmetic"


def test_plan_counts_runs():
    given = {"tissues": 3, "windows": 96}
    one, two = plan(**given), plan(**given, seeds=2)
    once = ["extraction", "hidden tokens"]
    rest = one.table.index.drop(once)
    assert (two.table.loc[once, "pflop"] == one.table.loc[once, "pflop"]).all()
    assert two.table.loc[rest, "pflop"].to_numpy() == pytest.approx(
        2 * one.table.loc[rest, "pflop"].to_numpy()
    )
    wide = plan(**given, widths=[8192, 8192])
    assert wide.totals.to_dict() == pytest.approx(two.totals.to_dict())
    apart = plan(**given, fan_out=True)
    assert apart.table.loc["scores", "jobs"] == 8
    assert apart.table.loc["evidence", "pflop"] > one.table.loc["evidence", "pflop"]
    assert apart.table.loc["scores", "pflop"] == one.table.loc["scores", "pflop"]


def test_plan_without_stored_streams_trades_disk_for_passes():
    given = {"tissues": 100, "windows": 96, "training_tokens": 1e6}
    kept, passed = plan(**given), plan(**given, keep_streams=False)
    assert passed.totals["kept_gb"] < 0.2 * kept.totals["kept_gb"]
    extra = passed.table["pflop"] - kept.table["pflop"]
    assert extra["extraction"] == pytest.approx(
        0.5 * kept.table.loc["extraction", "pflop"]
    )
    assert (extra.drop("extraction") == 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tissues": 0}, "tissues must be a whole number of at least 1; got 0"),
        ({"windows": 2.5}, "windows must be a whole number"),
        ({"biosamples": 1}, "biosamples must be a whole number of at least 2"),
        ({"blocks": 9}, "blocks must be at most the model's 8; got 9"),
        ({"widths": [0]}, "widths must be whole positive"),
        ({"stages": ["steering"]}, "stages must be some of"),
        ({"stages": []}, "stages must be some of"),
        ({"efficiency": 0.0}, "efficiency must be positive; got 0.0"),
    ],
)
def test_plan_refuses(wrong, message):
    with pytest.raises(ValueError, match=message):
        plan(**({"tissues": 3, "windows": 96} | wrong))


# --- Passes of real runs --------------------------------------------------------------


def sizes_of(study, **more):
    """Return the sizes of a study as it is, not as shares of its windows."""
    splits = {s: len(study.dataset.windows_of(s)) for s in ("select", "tune", "test")}
    given = {
        "tissues": len(study.lineages),
        "biosamples": 4,
        "windows": len(study.dataset.windows),
        "blocks": len(study.blocks),
        "n_blocks": study.model.config.n_blocks,
        "n_tokens": study.model.config.n_tokens,
        "d_model": study.model.config.d_model,
        "dictionaries": 1,
        "features": 8 * study.model.config.d_model,
        "training_tokens": np.inf,
        "causal_tissues": len(study.lineages),
        "keep_streams": 1,
        "fan_out": 0,
        "n_epochs": 1,
        "selected": 1,
    }
    return _cost_terms.all_sizes(given | splits | more)


def expected(stage, sizes):
    found = dict.fromkeys(("towers", "inputs", "blocks", "heads"), 0)
    for of, count, factor, names in _cost_terms.TERMS:
        if of == stage and count in found:
            found[count] += _cost_terms.product(factor, names, sizes)
    return found


def work(study, run):
    """Count the passes of a stage whose inputs have been made before."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # or other processes would make some of them
    try:
        with count_passes(study.model) as found:
            run()
    finally:
        torch.set_num_threads(n_threads)
    return dict(found)


@pytest.fixture(scope="module")
def study(small_study, tmp_path_factory):
    return replace(small_study, run=Run(tmp_path_factory.mktemp("costs") / "run"))


def test_extraction_and_hidden_tokens_make_these_passes(study):
    sizes = sizes_of(study)
    found = work(study, lambda: stages.extract(study))
    assert found == expected("extraction", sizes)
    found = work(study, lambda: masked.masked_scores(study))
    assert found == expected("hidden tokens", sizes)


@pytest.mark.parametrize("blocks", [[0, 1], pytest.param([1], marks=pytest.mark.slow)])
def test_stages_with_dictionaries_make_these_passes(study, blocks, tmp_path):
    study = replace(study, run=Run(tmp_path / "run"), streams=study.run, blocks=blocks)
    sizes = sizes_of(study)
    stages.score_context(study)
    found = work(study, lambda: fidelity.loss_recovered(study))
    assert found == expected("dictionaries", sizes)
    found = work(study, lambda: calibration.gather_evidence(study))
    assert found == expected("evidence", sizes)
    # Of the last block: as sequenced, thinned in two ways, the untrained model.
    held = work(study, lambda: calibration.held_means(study, max(blocks)))
    total = expected("calibration", sizes)
    assert {k: 4 * n for k, n in held.items()} == total


@pytest.mark.slow
def test_controls_make_these_passes(study, tmp_path):
    study = replace(study, run=Run(tmp_path / "run"), streams=study.run, blocks=[1])
    stages.train_saes(study)
    found = work(study, lambda: dictionaries.controls(study))
    sizes = sizes_of(study)
    untrained = expected("extraction", sizes)  # by a model of its own
    total = expected("controls", sizes)
    assert {k: found[k] + untrained[k] for k in found} == total


@pytest.mark.slow
def test_causal_tests_make_these_passes(study, tmp_path):
    study = replace(study, run=Run(tmp_path / "run"), streams=study.run, blocks=[0])
    features = causal.context_features(study)[0]
    pools = len(features.pools)
    assert pools == 2
    found = work(
        study,
        lambda: (
            causal.register(study),
            causal.steering(study),
            causal.ablation(study),
            causal.headline_over_seeds(study),
            causal.other_sets(study),
            causal.dose_response(study),
            causal.forward_selection(study),
        ),
    )
    sizes = sizes_of(study, after=1, after_last=1, selected=len(features.selected))
    total = expected("causal", sizes)
    # The plan counts what can come at most: here features are too few for some sets,
    # and those of one lineage were left out.
    n_significant = len(features.significant)
    absent = sum(n >= n_significant for n in _dose.SET_SIZES) + 1 + sizes["tissues"]
    absent *= sizes["grown_windows"] * sizes["tissues"]
    for part in ("blocks", "heads"):
        found[part] += absent
    assert found == total


def test_calculator_exports_what_plan_multiplies():
    exported = costs.calculator(SMALL)
    names = set(exported["constants"]) | set(exported["derived"])
    inputs = {"tissues", "windows", "biosamples", "blocks", "dictionaries", "features"}
    inputs |= {"training_tokens", "causal_tissues", "keep_streams", "fan_out", "shards"}
    used = {name for term in exported["terms"] for name in term[3]}
    assert used <= names | inputs
    assert {term[0] for term in exported["terms"]} == set(exported["stages"])


STUDIES = [
    {"tissues": 3, "windows": 96},
    {"tissues": 5000, "windows": 96, "keep_streams": False, "training_tokens": 1e7},
    {"tissues": 40, "windows": 1000, "biosamples": 5, "blocks": 3, "seeds": 3},
    {"tissues": 7, "windows": 10, "widths": [4096, 16384], "fan_out": True},
    {"tissues": 7, "windows": 10, "causal_tissues": 2, "devices": 64, "shards": 8},
    {"tissues": 1, "windows": 50, "stages": ["extraction", "scores"], "devices": 3},
    {"tissues": 9, "windows": 50, "peak_tflops": 0.3, "disk_gb_per_s": 0.001},
]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_calculator_of_the_page_agrees_with_plan():
    folder = resources.files("helpers") / "resources"
    script = (folder / "calculator.js").read_text(encoding="utf-8")
    model = costs.calculator()
    model |= {"counts": list(costs.COUNTS), "columns": list(scaling.COLUMNS)}
    studies = []
    for study in STUDIES:
        widths, seeds = study.get("widths", [8192]), study.get("seeds", 1)
        studies.append(
            {
                "tissues": study["tissues"],
                "windows": study["windows"],
                "biosamples": study.get("biosamples", 2),
                "blocks": study.get("blocks", 8),
                "dictionaries": seeds * len(widths),
                "features": seeds * sum(widths),
                "d_sae": max(widths),
                "training_tokens": study.get("training_tokens", 1e300),
                "causal_tissues": study.get("causal_tissues", study["tissues"]),
                "keep_streams": int(study.get("keep_streams", True)),
                "fan_out": int(study.get("fan_out", False)),
                "shards": study.get("shards", 1),
                "devices": study.get("devices", 1),
                "rate": study.get("peak_tflops", 312) * 1e12 * 0.3,
                "disk": study.get("disk_gb_per_s", 1) * 1e9,
                "stages": study.get("stages", list(costs.STAGES)),
            }
        )
    script += f"const model = {json.dumps(model)};"
    script += f"const studies = {json.dumps(studies)};"
    script += "console.log(JSON.stringify(studies.map((x) => planStudy(model, x))))"
    answer = subprocess.run(
        ["node"], input=script, capture_output=True, text=True, check=True
    )
    for study, found in zip(STUDIES, json.loads(answer.stdout), strict=True):
        expected = plan(**study)
        assert found["bottleneck"] == expected.bottleneck
        for row in found["rows"]:
            of_stage = expected.table.loc[row["stage"]]
            for name in scaling.COLUMNS:
                assert row[name] == pytest.approx(of_stage[name], rel=1e-12)
        for name in scaling.COLUMNS:
            total = expected.totals[name]
            assert found["totals"][name] == pytest.approx(total, rel=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_calculator_answers_in_a_browser_offline(tmp_path):
    page = tmp_path / "page.html"
    fill = """<script>
        const form = document.querySelector("form");
        form.elements.tissues.value = "40";
        form.elements.widths.value = "4096, 8192";
        form.elements.training_tokens.value = "1000000";
        form.elements.causal.checked = false;
        form.dispatchEvent(new Event("input"));
    </script>"""
    page.write_text(f"<!doctype html><body>{scaling.calculator()}{fill}")
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
    browser += [f"--user-data-dir={tmp_path}/profile", "--dump-dom", page.as_uri()]
    found = subprocess.run(browser, capture_output=True, text=True, timeout=120)
    expected = plan(
        tissues=40,
        windows=96,
        widths=[4096, 8192],
        training_tokens=1_000_000,
        stages=[stage for stage in costs.STAGES if stage != "causal"],
    )
    assert "<form hidden" not in found.stdout
    body = found.stdout.partition("<tbody>")[2].partition("</tbody>")[0]
    last = re.findall(r"<td>([^<]*)</td>", body)[-len(scaling.COLUMNS) :]
    shown = dict(zip(scaling.COLUMNS, last, strict=True))
    assert shown["jobs"] == f"{expected.totals['jobs']:.0f}"
    assert shown["pflop"] == f"{expected.totals['pflop']:.0f}"
    assert shown["kept_gb"] == f"{expected.totals['kept_gb']:.0f}"
    assert f"Slowest: {expected.bottleneck}." in found.stdout


def test_figures_show_what_they_are_given():
    plans = {"one": plan(tissues=1, windows=8), "three": plan(tissues=3, windows=8)}
    ax = scaling.stage_hours(plans)
    of_three = ax.lines[1].get_xdata()
    assert list(of_three) == list(plans["three"].table["device_hours"])
    figure, panels = plt.subplots(1, 3)
    scaling.plan_ladder(plans, panels)
    wall = [found.totals["wall_hours"] for found in plans.values()]
    assert list(panels[0].lines[0].get_xdata()) == wall
    points = pd.DataFrame(
        {
            "task": ["a"] * 6,
            "clock": ["wall", "cpu"] * 3,
            "efficiency": [0.5, 0.9, 0.7, 0.9, 0.6, 1.0],
        }
    )
    ax = scaling.weak_scaling(points)
    medians = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
    assert medians == [0.6, 0.9]
    plt.close("all")


def test_calculator_page_holds_all_it_needs():
    page = scaling.calculator()
    assert "http" not in page and "src=" not in page and "import " not in page
    fields = set(re.findall(r'name="(\w[\w ]*)"', page))
    read = set(re.findall(r'(?:value|checked|orAll)\("(\w+)"', page))
    assert read <= fields
    assert set(costs.STAGES) <= fields
    assert page.count("<label>") == len(re.findall("<input", page))
    assert "<form hidden>" in page  # and without scripts, the table of one plan
    pflop = plan(tissues=3, windows=96).table.loc["causal", "pflop"]
    assert f">{pflop:.0f}<" in page
