"""Each nuisance alone must be found, and must not be found where it is absent."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pybigtools
import pytest
import torch

from helpers import confounders
from helpers.cds import context_divergence
from helpers.confounders import PassInput
from helpers.sae import BatchTopKSAE, SAEConfig, evaluate, train
from helpers.tissues import read_tissues
from helpers.windows import WindowDataset
from test_cds import LINEAGES, VIVO, make_design, make_world

LOG_RATIO = dict.fromkeys(LINEAGES, np.log(1.6))


# --- Passes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def passes_world(small_world):
    """Model, dictionaries and data set with replicates, small and untrained."""
    tissues = read_tissues(small_world.folder / "tissues")
    dataset = WindowDataset(
        tissues, window_bp=small_world.world.window_bp, replicates=True
    )
    return dataset


@pytest.fixture
def saes(small_study):
    width = small_study.model.config.d_model
    found = {}
    for layer in small_study.blocks:
        sae = BatchTopKSAE(width, 24, 3, random_state=layer)
        sae.threshold.fill_(0.05)
        found[layer] = sae.eval()
    return found


def test_passes_are_what_a_full_forward_pass_gives(small_study, passes_world, saes):
    windows = np.arange(3, 24)  # more than one batch
    passes = [PassInput(2, (2,)), PassInput(1, (0,)), PassInput(1, (0, 1), 1.5)]
    passes += [PassInput(1, (1, 2))]  # a track that was seen, other motif activity
    found = confounders.summarize_passes(
        small_study.model, saes, passes_world, windows, passes
    )
    model, data = small_study.model, passes_world
    for index, given in enumerate(passes):
        track = given.gain * data.track(windows, given.track)
        assert track.max() < 150  # no clip: the gain acts on the input itself
        motif = data.motif_activity[list(given.motif_activity)].mean(axis=0)
        with torch.no_grad():
            x = model.encode_context(
                model.encode_sequence(torch.from_numpy(data.sequence(windows))),
                torch.from_numpy(track).float(),
                torch.from_numpy(motif).expand(len(windows), -1),
            )
            for layer, sae in saes.items():
                x = model.run_blocks(x, layer, layer + 1)
                acts = sae.encode(x.half().float())
                summary = found[layer]
                np.testing.assert_allclose(
                    summary.mean_acts[index], acts.mean(1), rtol=1e-3, atol=1e-5
                )
                np.testing.assert_allclose(
                    summary.squares[index],
                    acts.double().square().sum((0, 1)),
                    rtol=1e-3,
                    atol=1e-6,
                )


def test_factors_rescale_the_stream(small_study, passes_world, saes):
    windows, passes = [4], [PassInput(0, (0,))] * 2
    factors = {layer: np.array([1.0, 3.0]) for layer in saes}
    found = confounders.summarize_passes(
        small_study.model, saes, passes_world, windows, passes, factors=factors
    )
    plain, scaled = found[1].mean_acts
    assert not np.allclose(plain, scaled)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (PassInput(99, (0,)), "biosamples 0 to 7; got PassInput.track=99"),
        (PassInput(0, ()), "got PassInput.track=0, motif_activity=.."),
        (PassInput(0, (0,), 0.0), "gain of a pass must be positive"),
    ],
)
def test_passes_refuse_inputs_that_do_not_exist(
    small_study, passes_world, saes, given, message
):
    with pytest.raises(ValueError, match=message):
        confounders.summarize_passes(
            small_study.model, saes, passes_world, [0], [given]
        )


def test_held_passes_share_the_motif_activity_of_the_pair():
    design = pd.concat([make_design(2), make_design(2)], ignore_index=True)
    design["biosample"] += np.where(design.index >= 4, "_r1", "")
    passes = confounders.held_passes(design)
    assert passes[0] == PassInput(0, (0, 1)) and passes[1] == PassInput(1, (0, 1))
    assert passes[7] == PassInput(7, (2, 3))
    with pytest.raises(ValueError, match="must have exactly one.*got 1 and 0"):
        confounders.held_passes(design[design["context"] == "in_vitro"])
    mislabelled = design.replace({"context": {"in_vivo": "vivo"}})
    with pytest.raises(ValueError, match="context must be one of.*got 'vivo'"):
        confounders.held_passes(mislabelled)
    repeated = design.assign(biosample=design["biosample"].iloc[0])
    with pytest.raises(ValueError, match="is repeated"):
        confounders.held_passes(repeated)


# --- Depth ----------------------------------------------------------------------------


def write_cuts(path, counts):
    """Write counts per base of one chromosome, as runs of equal counts."""
    edges = np.flatnonzero(np.diff(counts)) + 1
    starts, ends = np.r_[0, edges], np.r_[edges, len(counts)]
    runs = [
        ("chr1", int(a), int(b), float(counts[a]))
        for a, b in zip(starts, ends, strict=True)
        if counts[a]
    ]
    pybigtools.open(str(path), "w").write({"chr1": len(counts)}, iter(runs))


def test_thin_signal_keeps_cuts_with_the_given_chance(tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, size=20_000).astype(float)
    write_cuts(tmp_path / "deep.bw", counts)
    output = confounders.thin_signal(
        tmp_path / "deep.bw", tmp_path / "thin.bw", 0.4, random_state=1
    )
    with output.open("rb") as file:
        thin = pybigtools.open(file).values("chr1", 0, 20_000, fillna=0.0)
    assert (thin <= counts).all() and (thin == np.rint(thin)).all()
    expected, sd = 0.4 * counts.sum(), np.sqrt(0.24 * counts.sum())
    assert abs(thin.sum() - expected) < 4 * sd
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["deep.bw", "thin.bw"]


def test_thin_signal_refuses_coverage(tmp_path):
    write_cuts(tmp_path / "coverage.bw", np.array([0.0, 1.5, 2.0]))
    with pytest.raises(ValueError, match="coverage.bw: thinning needs.*1.5 on chr1"):
        confounders.thin_signal(
            tmp_path / "coverage.bw", tmp_path / "x.bw", 0.5, random_state=0
        )
    with pytest.raises(ValueError, match="share must lie in .0, 1.; got 0"):
        confounders.thin_signal("a.bw", "b.bw", 0, random_state=0)


def test_equal_depth_gives_all_biosamples_the_cuts_of_the_shallowest(
    small_world, tmp_path
):
    tissues = read_tissues(small_world.folder / "tissues")

    def cuts(tissues):
        found = []
        for sample in [s for tissue in tissues for s in tissue.biosamples]:
            with sample.signal.open("rb") as file:
                found.append(pybigtools.open(file).info()["summary"]["sum"])
        return np.array(found)

    equal = confounders.equal_depth(tissues, tmp_path / "thin")
    before, after = cuts(tissues), cuts(equal)
    assert before.max() > 1.5 * before.min()
    assert after.max() < 1.05 * after.min()
    scales = {s.scale for tissue in equal for s in tissue.biosamples}
    assert len(scales) == 1
    samples = [s for tissue in tissues for s in tissue.biosamples]
    assert scales.pop() == pytest.approx(samples[before.argmin()].scale, rel=0.05)
    coverage = replace(tissues[0].pair[1], signal_kind="coverage")
    with pytest.raises(ValueError, match="'blood_in_vivo': only cut sites"):
        confounders.equal_depth(
            [replace(tissues[0], pair=(tissues[0].pair[0], coverage))], tmp_path
        )


def test_thin_signal_thins_peaks_by_a_share_of_their_own(tmp_path):
    counts = np.full(8000, 2.0)
    write_cuts(tmp_path / "deep.bw", counts)
    peaks = pd.DataFrame(
        [
            ("chr1", 3000, 4000),
            ("chr1", 1000, 2000),
            ("chr1", 1100, 1200),  # nested
            ("chr1", 1500, 2500),
        ],
        columns=["chrom", "start", "end"],
    )
    output = confounders.thin_signal(
        tmp_path / "deep.bw",
        tmp_path / "thin.bw",
        0.1,
        random_state=0,
        peaks=peaks,
        share_in_peaks=1.0,
    )
    with output.open("rb") as file:
        thin = pybigtools.open(file).values("chr1", 0, 8000, fillna=0.0)
    inside = np.zeros(8000, dtype=bool)
    inside[1000:2500] = inside[3000:4000] = True
    np.testing.assert_array_equal(thin[inside], 2)
    assert 0.05 < thin[~inside].mean() / 2 < 0.15
    with pytest.raises(ValueError, match="share_in_peaks must lie in .0, 1.; got 2"):
        confounders.thin_signal("a.bw", "b.bw", 1, random_state=0, share_in_peaks=2)


def test_equal_depth_can_make_the_fraction_in_peaks_equal(small_world, tmp_path):
    tissues = read_tissues(small_world.folder / "tissues")
    before = confounders.cuts_in_peaks(tissues)
    assert list(before["biosample"][:2]) == ["blood_in_vitro", "blood_in_vivo"]
    assert before["frip"].max() > 1.05 * before["frip"].min()
    by_depth = confounders.cuts_in_peaks(
        confounders.equal_depth(tissues, tmp_path / "depth")
    )
    spread = np.corrcoef(before["frip"], by_depth["frip"])[0, 1]
    assert spread > 0.95  # thinning evenly leaves it as it was
    equal = confounders.equal_depth(tissues, tmp_path / "frip", frip=True)
    after = confounders.cuts_in_peaks(equal)
    for column in ("inside", "outside"):
        low = before[column].min()
        assert (np.abs(after[column] - low) < 5 * np.sqrt(low)).all()
    # What was lost is made up for: the height of a track stays what it was.
    total = after[["inside", "outside"]].sum(axis=1).mean()
    shallow = before[["inside", "outside"]].sum(axis=1)
    samples = [s for tissue in tissues for s in tissue.biosamples]
    scale = samples[shallow.argmin()].scale
    assert equal[0].pair[0].scale == pytest.approx(scale * shallow.min() / total)


def depth_world(gains=(1.0,), seed=30):
    """Features that answer to log signal; tissue tracks are 1.6 times as high."""
    rng = np.random.default_rng(seed)
    n_features, n_blocks, per_block = 200, 40, 6
    blocks = np.repeat(np.arange(n_blocks), per_block)
    level = rng.normal(0, 0.7, size=(6, len(blocks)))  # of the track, as in cells
    level[VIVO] += np.log(1.6)
    sequence = rng.normal(2, 0.5, size=(len(blocks), n_features))
    noise = 0.3 * rng.normal(size=(6, len(blocks), n_features))
    answer = np.r_[np.full(100, 0.4), np.zeros(100)]
    features = [
        sequence + answer * (level[..., None] + np.log(g)) + noise for g in gains
    ]
    return np.array(features), make_design(), blocks, level


def test_depth_alone_is_called_before_but_not_after_adjustment():
    gains = (0.5, 0.71, 1.0, 1.41, 2.0)
    features, design, blocks, level = depth_world(gains)
    plain = context_divergence(features[2], design, blocks)
    assert (plain["p_bonferroni"].iloc[:100] < 0.05).mean() > 0.9

    scale = confounders.scale_attribution(
        features, gains, design, blocks, log_ratios=LOG_RATIO
    )
    np.testing.assert_allclose(scale["sensitivity"].iloc[:100], 0.4, atol=1e-6)
    assert scale["flag"].iloc[:100].mean() > 0.9
    assert not scale["flag"].iloc[100:].any()
    assert scale["share"].iloc[:100].median() == pytest.approx(1, abs=0.15)
    assert (scale["p_adjusted"] < 0.05).mean() < 0.1

    partial = confounders.partial_divergence(features[2], design, blocks, level)
    assert 0.02 <= (partial["p_partial"] < 0.05).mean() <= 0.09
    assert not partial["called"].any()
    assert partial["share_explained"].iloc[:100].median() == pytest.approx(1, abs=0.2)


def test_partial_divergence_keeps_what_the_signal_does_not_explain():
    features, design, blocks, level = depth_world()
    features = features[0]
    features[VIVO, :, 150:] += 0.3
    table = confounders.partial_divergence(features, design, blocks, level)
    assert table["called"].iloc[150:].mean() > 0.9
    np.testing.assert_allclose(table["delta_partial"].iloc[150:].mean(), 0.3, atol=0.02)
    assert not table["called"].iloc[:150].any()


def test_partial_divergence_equals_least_squares_with_window_effects():
    features, design, blocks, level = depth_world()
    features, design, level = features[0][:2, :, :3], make_design(1), level[:2]
    table = confounders.partial_divergence(
        features, design, blocks, level, n_knots=2
    )  # two knots: a line
    n = len(blocks)
    window = np.tile(np.eye(n), (2, 1))
    context = np.repeat([0.0, 1.0], n)
    X = np.column_stack([context, level.ravel(), window])
    first = np.linalg.lstsq(X, features.reshape(2 * n, 3))[0][0]
    # Pseudo-values have the jackknife's second-order correction of bias.
    np.testing.assert_allclose(table["delta_partial"], first, atol=2e-3)


def test_track_height_checks_refuse_bad_input():
    gains = (0.5, 1.0)
    features, design, blocks, level = depth_world(gains)

    def scale(**changed):
        given = {"gains": gains, "log_ratios": LOG_RATIO} | changed
        return confounders.scale_attribution(
            features, design=design, blocks=blocks, **given
        )

    with pytest.raises(ValueError, match="positive and distinct"):
        scale(gains=(0.0, 1.0))
    with pytest.raises(ValueError, match="must include 1"):
        scale(gains=(0.5, 2.0))
    with pytest.raises(ValueError, match=r"every lineage; \['lymph'\] missing"):
        scale(log_ratios={"blood": 0.0, "liver": 0.0})
    constant = np.zeros_like(level)
    constant[VIVO] = np.log(1.6)
    with pytest.raises(ValueError, match="'blood' the contexts differ by a constant"):
        confounders.partial_divergence(features[1], design, blocks, constant)
    with pytest.raises(ValueError, match="log_signal must be finite, of shape"):
        confounders.partial_divergence(features[1], design, blocks, level[:2])


# --- Input swap -----------------------------------------------------------------------


def swap_world(track=0.0, motif=0.0, interaction=0.0, seed=31):
    """Four passes per lineage, with effects of either input on half of the features."""
    rng = np.random.default_rng(seed)
    n_features, blocks = 60, np.repeat(np.arange(40), 4)
    sequence = rng.normal(5, 1, size=(len(blocks), n_features))
    passes = []
    for _ in LINEAGES:
        noise = 0.2 * rng.normal(size=(2, len(blocks), n_features))  # of the tracks
        for c, m in confounders.SWAP:
            shift = track * c + motif * m + interaction * c * m
            passes.append(sequence + noise[c] + shift * (np.arange(n_features) < 30))
    return np.stack(passes), make_design(), blocks


def test_input_swap_assigns_a_motif_effect_to_the_motif_channel():
    table = confounders.input_swap(*swap_world(motif=0.4))
    own = table.iloc[:30]
    assert own["motif_share"].min() > 0.8
    attributed = own["delta_motif"].abs().sum() / (
        own["delta_motif"].abs().sum() + own["delta_track"].abs().sum()
    )
    assert attributed >= 0.95
    assert (own["driver"] == "motif").all()
    assert not table["called"].any()  # the track, which is what blocks replicate


def test_input_swap_effects_sum_to_the_total():
    table = confounders.input_swap(*swap_world(track=0.3, motif=0.4, interaction=0.2))
    np.testing.assert_allclose(
        table["delta_track"] + table["delta_motif"], table["delta_total"]
    )
    own = table.iloc[:30]
    assert own["called"].all()
    np.testing.assert_allclose(own["delta_interaction"], 0.2, atol=1e-9)
    np.testing.assert_allclose(own["delta_track"].mean(), 0.3 + 0.1, atol=0.02)


def test_input_swap_wants_four_passes_per_lineage():
    features, design, blocks = swap_world()
    with pytest.raises(ValueError, match="4 passes for each of 3 lineages.*got 11"):
        confounders.input_swap(features[:-1], design, blocks)
    passes = confounders.swap_passes(design)
    assert passes[:4] == [
        PassInput(0, (0,)),
        PassInput(0, (1,)),
        PassInput(1, (0,)),
        PassInput(1, (1,)),
    ]


# --- Norm -----------------------------------------------------------------------------


def test_norm_guard_is_raised_by_a_world_that_differs_in_norm_alone():
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(32, 16, generator=generator)
    acts = torch.rand(4000, 32, generator=generator)
    acts = acts * (acts > 0.9)
    x = acts @ directions + 0.05 * torch.randn(4000, 16, generator=generator)
    sae, _ = train(x, SAEConfig(d_sae=32, k=3, n_epochs=4, batch_size=256))
    names = np.repeat(["a_line", "a_tissue"], 2000)
    design = pd.DataFrame(
        {
            "biosample": ["a_line", "a_tissue"],
            "lineage": "a",
            "context": ["in_vitro", "in_vivo"],
        }
    )
    alike = pd.concat({3: evaluate(sae, x, groups=names).table})
    assert not confounders.norm_guard(alike, design)["flag"].any()
    x[2000:] *= 1.3
    with pytest.warns(UserWarning, match="L0 differs"):
        cards = pd.concat({3: evaluate(sae, x, groups=names).table})
    with pytest.warns(UserWarning, match="1 of 1 pairs; the widest is L0 in 'a'"):
        guard = confounders.norm_guard(cards, design)
    assert guard.loc[0, "norm_ratio"] == pytest.approx(1.3, rel=0.05)
    assert guard.loc[0, "l0_ratio"] > 1.1
    factors = confounders.norm_factors(cards, design)[3]
    assert factors[0] / factors[1] == pytest.approx(guard.loc[0, "norm_ratio"])
    with pytest.raises(ValueError, match=r"no line for biosamples \['b'\]"):
        confounders.norm_guard(cards, design.assign(biosample=["a_line", "b"]))


# --- Training and lineage -------------------------------------------------------------


def test_seen_and_unseen_finds_effects_of_seen_pairs_only():
    features, design, blocks = make_world(n_features=60, seed=32)
    features[VIVO, :, :20] += 0.4  # everywhere
    features[[1, 3], :, 20:40] += 0.4  # seen pairs only
    seen = [True, True, True, True, True, False]  # lymph: the tissue was not
    table = confounders.seen_and_unseen(features, design, blocks, seen)
    assert (table["p_unseen"].iloc[:20] < 0.05).mean() > 0.9
    assert (table["p_difference"].iloc[20:40] < 0.05).mean() > 0.9
    assert (table["p_difference"].iloc[:20] < 0.05).mean() < 0.2
    assert (table["p_difference"].iloc[40:] < 0.05).mean() < 0.2
    with pytest.raises(ValueError, match="has seen all of"):
        confounders.seen_and_unseen(features, design, blocks, [True] * 6)
    with pytest.raises(ValueError, match="True or False for each of 6"):
        confounders.seen_and_unseen(features, design, blocks, ["yes"] * 6)


def test_lineage_and_context_are_told_apart():
    features, design, blocks = make_world(n_features=90, seed=33)
    features[VIVO, :, :30] += 0.6
    features[2:4, :, 30:60] += 0.9  # liver, in both contexts
    table = confounders.lineage_and_context(features, design, blocks)
    assert table["context_share"].iloc[:30].min() > 0.7
    assert table["context_share"].iloc[30:60].max() < 0.2
    total = table[["context", "lineage", "interaction"]].sum(axis=1)
    np.testing.assert_allclose(
        table["context"].iloc[:30].mean(), 3 / 2 * 0.6**2, rtol=0.2
    )
    assert total.iloc[60:].mean() < 0.1 * total.iloc[:60].mean()
    with pytest.raises(ValueError, match="there is only 1"):
        confounders.lineage_and_context(features[:2], make_design(1), blocks)
