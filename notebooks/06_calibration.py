# %% [markdown]
# # Compared with what? Calibration of the score
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/06_calibration.ipynb)
#
# How many features would be called if cell lines and tissues did not differ?
# This page runs the score on worlds without any context effect, on replicates in place of contexts, and with one input at a time held fixed, and hands on what is left of the calls of page 03.
#
# **Objectives**
#
# - Name the three questions a contrast can answer, and what replicates each.
# - Count false calls by unit of replication in worlds without effect.
# - Split the calls of the study by the input they come through.
# - Compare contexts with replicates, and with the variation between biosamples.
# - Follow the counts along the model, beside curves that need no dictionary and a model that was never trained.
#
# **Needs** `sae/block<i>/`, `cds.parquet` (made if absent).
# **Produces** `passes/`, `random_weights/`.

# %% tags=["hide-input"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("helpers") is None:  # a fresh runtime, such as Colab
    source = "git+https://github.com/OWNER/chromatin-context@main"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])
    importlib.invalidate_caches()

# %% [markdown]
# Change these and run all; papermill sets them from outside.

# %% tags=["parameters"]
run: str = "_build/runs/simulated"  # folder of artefacts
data: str = "simulated"  # or "encode", or a folder of tissue files
tissues: list = []  # which of them; all if empty
blocks: list = []  # transformer blocks; all if empty
seed: int = 0  # of everything random after the model
device: str = "cpu"  # torch device
model: str = ""  # folder or checkpoint; the one that goes with the data if empty
precision: str = "float32"  # or "bfloat16", where the hardware has it
n_draws: int = 200  # draws of each world without effect
n_contrasts: int = 20  # placebo contrasts

# %% tags=["remove-stderr"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from helpers import calibration, cds, confounders, figures, stages, truth
from helpers.calibration import SummaryWorld

figures.set_style()
study = stages.open_study(
    run,
    data=data,
    tissues=tissues,
    blocks=blocks,
    seed=seed,
    device=device,
    model=model,
    precision=precision,
)
print(f"run {run} | data {data} | seed {seed} | device {device}")
print(f"blocks {study.blocks} | model {study.model_hash}")
print(study.description)
last = max(study.blocks)
replicated = any(tissue.replicates for tissue in study.dataset.tissues)

# %% [markdown]
# ## Three questions
#
# A difference between a cell line and a tissue can be meant in three ways, and each has its own replicates.

# %% tags=["remove-stderr"]
scores = stages.score_context(study)
windows = study.dataset.windows_of("select")
genomic = study.dataset.windows["block"].to_numpy()[windows]
acts = stages.summaries(study)[last].mean_acts[:, windows]
table = cds.context_divergence(acts, study.design, genomic)
for name, text in table.attrs["estimands"].items():
    print(f"{name}: {text}\n")

# %% [markdown]
# E1 and E2 are about these tracks; E3 is what readers take away.
# Asking for E3 with too few pairs is refused, whatever the data.

# %%
try:
    cds.context_divergence(acts, study.design, genomic, population=True)
except ValueError as refusal:
    print(f"refused: {str(refusal)[:92]} ...")

# %% [markdown]
# ## False calls by unit of replication
#
# The first worlds are drawn: sparse, rectified activations that are alike in neighboring tokens, follow the sequence of their window, and share noise within genomic blocks.
# Nothing differs between the contexts, except in what the name of the world says.
# A test that holds its level has $P(p < 0.05) = 0.05$.

# %%
base = SummaryWorld(n_lineages=1, n_features=40)
worlds = {
    "no effect": base,
    "noise of biosamples": SummaryWorld(
        n_lineages=1, n_features=40, biosample_sd=0.3, n_tokens=8
    ),
    "depth": SummaryWorld("depth-only", n_lineages=1, n_features=40, n_tokens=8),
    "motif vector": SummaryWorld(
        "motif-vector-only", n_lineages=1, n_features=40, n_tokens=8
    ),
    "composition": SummaryWorld(
        "composition-only", n_lineages=2, n_features=40, n_tokens=8
    ),
}
draws = {
    name: calibration.null_draws(
        world, n_draws=n_draws if world is base else n_draws // 4, n_flips=199
    )
    for name, world in worlds.items()
}
draws = pd.concat(draws, names=["world"]).reset_index("world")
share = draws.pivot_table("share", "unit", "world", sort=False)
share.round(3)

# %%
null = draws[draws["world"] == "no effect"].groupby("unit", sort=False)
family = null["n_called"].agg(lambda n: (n > 0).mean())
print("at least one false call in a world without effect (Bonferroni, or max-T):")
print(family.round(3).to_string())

# %% mystnb={"figure": {"caption": "Share of p-values below 0.05 by unit of replication in drawn worlds without any context effect (left; dashed: 0.05), and p-values of the world without effect against the uniform distribution (right).", "name": "fig-null-units"}, "image": {"alt": "Only biosamples hold 0.05 when biosamples vary; tokens reject half of all true null hypotheses. Left, dots by unit and world; right, quantile plot of p-values for window, block and biosample tests."}}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
markers = ["o", "s", "^", "D", "v"]
units = share.drop(index="block, max-T")
for (name, values), marker in zip(units.items(), markers, strict=True):
    axes[0].plot(values.to_numpy(), np.arange(len(units)), marker, label=name)
axes[0].axvline(0.05, color="0.4", ls="--", lw=1)
axes[0].set(xlim=(0, 1), xlabel="share of p < 0.05", yticks=range(len(units)))
axes[0].set_yticklabels(units.index)
axes[0].invert_yaxis()
axes[0].legend(fontsize=8, loc="lower right")
drawn = calibration.draw_summaries(SummaryWorld(n_features=300, n_tokens=8), seed)
rows = calibration.study_rows(drawn.samples)
null_table = cds.context_divergence(
    drawn.features[rows], drawn.samples.iloc[rows], drawn.blocks
)
by_biosample = calibration.replicate_divergence(
    drawn.features, drawn.samples, drawn.blocks
)
for label, p in {
    "window, Welch": null_table["p_naive"],
    "block": null_table["p"],
    "biosample": by_biosample["p"],
}.items():
    axes[1].plot((np.arange(len(p)) + 0.5) / len(p), np.sort(p), label=label)
axes[1].plot([0, 1], [0, 1], color="0.4", ls="--", lw=1)
axes[1].set(xlabel="expected p", ylabel="observed p")
axes[1].legend()
figures.panel_labels(axes)
plt.show()

# %% [markdown]
# Blocks hold their level as long as nothing but the genome varies.
# As soon as biosamples have noise of their own, every unit below the biosample calls it a difference, which for these two tracks it is.

# %% [markdown]
# ## What a design can find
#
# The price of honest units is power.
# $d_z$ is the mean difference over blocks in units of its standard deviation between blocks.

# %%
sizes = (22, 40, len(set(genomic)), 100, 280, 570)
n_tests = 4096
detectable = pd.Series(
    {b: calibration.detectable_effect(b, n_tests=n_tests) for b in sorted(set(sizes))},
    name=f"d_z found with 80 % power, Bonferroni over {n_tests}",
)
detectable.rename_axis("genomic blocks").round(2).to_frame()

# %% mystnb={"figure": {"caption": "Power of the paired block test after Bonferroni over 4,096 features, by standardized effect, for several numbers of genomic blocks.", "name": "fig-power"}, "image": {"alt": "Power curves rise from 0 to 1; more blocks shift them to smaller effects."}}
effects = np.linspace(0, 1.8, 181)
axes = figures.new_axes(None, 5.5, 3.4)
for n_blocks in detectable.index:
    curve = calibration.power(effects, n_blocks, n_tests=n_tests)
    axes.plot(effects, curve, label=f"{n_blocks} blocks")
axes.axhline(0.8, color="0.4", ls="--", lw=1)
axes.set(xlabel="paired effect $d_z$", ylabel="power")
axes.legend()
plt.show()

# %% [markdown]
# ## The same through the model
#
# Now the worlds are genomes with files, and pass through the model and its dictionaries like any data.
# Each has three biosamples per lineage and context.
# The motif activity enters the model as one vector per biosample: it moves a feature alike in every window, so that windows and blocks repeat one and the same observation.
# *Motifs held* gives all biosamples of a lineage the same vector; *equal depth* thins the tracks, cut by cut, to the depth of the shallowest; *equal signal* compares windows at equal signal, by a spline (partial CDS).

# %% tags=["remove-stderr"]
kinds = ["no-effect", "depth-only", "motif-vector-only", "composition-only"]
through_model = {}
if study.truth is not None:
    through_model = {k: calibration.null_calls(study, k, last) for k in kinds}
    called = pd.DataFrame({k: v.table["n_called"] for k, v in through_model.items()})
    display(called.reindex(through_model["depth-only"].table.index).astype("Int64"))

# %%
if through_model:
    rates = pd.DataFrame({k: v.table["share"] for k, v in through_model.items()})
    display(rates.reindex(through_model["depth-only"].table.index).round(3))
    for kind, found in through_model.items():
        print(f"{kind}: {found.motif_share:.1%} of the effect of called features")
        print("   comes through the motif activity")

# %% [markdown]
# Read the columns one by one.
#
# - *No effect*: the block test calls features although nothing differs, because peaks are noisy and the motif activity with them. With the vector held it is calibrated; so are biosamples.
# - *Depth*: tissue tracks are 1.6 times as deep in every replicate, so that no replicate can tell depth from context. Thinning removes the difference, and so does adjusting for the signal of the window.
# - *Motif vector*: the attribution finds the channel, and holding it removes the calls.
# - *Composition*: tissues that hold another lineage differ from the cell line, in all replicates. That is a property of tissues as they are sampled; no test on these data makes it go away, and only sorted cells would.

# %% [markdown]
# ## Depth: why rescaling is not enough
#
# Multiplying a track by a constant asks how a feature answers to height, $S_j = \partial a_j / \partial \log g$.
# The part of a difference that it explains is $S_j \, \Delta \log g$.

# %% tags=["remove-stderr"]
gains = (0.5, 0.71, 1.0, 1.41, 2.0)
n_samples = len(study.design)
scaled = [confounders.PassInput(b, (b,), g) for g in gains for b in range(n_samples)]
height = calibration.pass_summaries(
    study, "gains", study.dataset, windows, scaled, layers=[last]
)[last].mean_acts.reshape(len(gains), n_samples, len(windows), -1)
signal = np.stack(
    [study.dataset.track(windows, b).sum(axis=1) for b in range(n_samples)]
)
log_ratios = {
    lineage: float(np.log(signal[vivo].sum() / signal[vitro].sum()))
    for lineage in study.lineages
    for vitro, vivo in [study.pair(lineage)]
}
by_scale = confounders.scale_attribution(
    height, gains, study.design, genomic, log_ratios=log_ratios
)
by_scale["flag"] &= by_scale["p"].notna()
print("log ratio of track heights:", {k: round(v, 3) for k, v in log_ratios.items()})
print(f"median share of a difference explained: {by_scale['share'].abs().median():.1%}")
print(f"features whose call depends on height: {by_scale['flag'].sum()}")

# %% tags=["remove-stderr"]
partial = confounders.partial_divergence(
    acts, study.design, genomic, np.log(signal + 1)
)
guard = confounders.norm_guard(stages.read_cards(study), study.design)
n_called = int((table["p_bonferroni"] <= 0.05).sum())
print(f"called at block {last}: {n_called}; at equal signal: {partial['called'].sum()}")
print(
    f"norm or L0 differ by more than 20 % in {guard['flag'].sum()} of {len(guard)} pairs"
)
guard[guard["layer"] == last].round(3)

# %% [markdown]
# The norm of the stream and the number of active features are compared because a threshold turns a difference in norm into one in every feature.
#
# Biosamples differ by lineage more than by anything else; the table says how the variation between the biosamples of this study splits.

# %%
split = confounders.lineage_and_context(acts, study.design, genomic)
if len(study.lineages) > 1:
    parts = split[["context", "lineage", "interaction"]].sum()
    print((parts / parts.sum()).round(3).to_string())

# %% [markdown]
# ### Seen and unseen in training
#
# A model may know the biosamples it was trained on.
# The simulated world has a pair that no model has seen.

# %% tags=["remove-stderr"]
if study.truth is not None:
    seen_and_not = stages.open_study(
        run,
        data=data,
        tissues=[*study.lineages, "kidney"],
        blocks=[last],
        device=device,
    ).dataset
    passes = [
        confounders.PassInput(b, (b,)) for b in range(len(seen_and_not.biosamples))
    ]
    with_unseen = calibration.pass_summaries(
        study, "unseen", seen_and_not, windows, passes, layers=[last]
    )[last]
    compared = confounders.seen_and_unseen(
        with_unseen.mean_acts,
        calibration.samples_of(seen_and_not),
        genomic,
        seen_and_not.biosamples["seen_in_training"].to_numpy(dtype=bool),
    )
    agree = compared[["delta_seen", "delta_unseen"]].corr(method="spearman").iloc[0, 1]
    print(f"rank correlation of effects in seen and unseen pairs: {agree:.2f}")

# %% [markdown]
# ## The study, objection by objection
#
# The input swap runs each window with the track of one context and the motif activity of the other, four passes in all:
#
# $$\Delta_{\mathrm{track}} = \tfrac12\bigl[a(1,0) - a(0,0) + a(1,1) - a(0,1)\bigr], \qquad \Delta_{\mathrm{motif}} = \tfrac12\bigl[a(0,1) - a(0,0) + a(1,1) - a(1,0)\bigr],$$
#
# which add up to the whole difference.
# *Placebo* contrasts two replicates of one context in every lineage by the very rule of the study.
# *E3* compares the contexts with the variation between biosamples of one lineage and context:
#
# $$t_{\ell j} = \frac{\bar a_{1\ell j} - \bar a_{0\ell j}}{\tilde\tau_j \sqrt{1/n_{1\ell} + 1/n_{0\ell}}} .$$

# %% tags=["remove-stderr"]
evidence = None
if replicated:
    evidence = calibration.gather_evidence(study, n_contrasts=n_contrasts)
    display(evidence.counts.round(2))
else:
    print("the tissue files name no replicates: placebo and E3 need them")

# %% mystnb={"figure": {"caption": "Features called at each block of the model: by the track contrast, with the motif activity held, by the same rule between replicates, and against the variation of biosamples.", "name": "fig-objections"}, "image": {"alt": "Most calls of the track contrast vanish with the motif activity held; placebo contrasts call about as many as are left."}}
if evidence is not None:
    shown = ["E1", "E1, held", "placebo, held", "E3, held"]
    evidence.counts[shown].plot.bar(figsize=(7, 3.6), rot=0)
    plt.gca().set(xlabel="block of the model", ylabel="features called")
    plt.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()

# %% [markdown]
# Features whose difference comes through the motif activity are listed apart: their evidence is two vectors, not many windows.

# %%
if evidence is not None:
    swap = evidence.swaps[last]
    driven = swap[swap["driver"] == "motif"].sort_values("motif_share")
    columns = [
        "delta_total",
        "delta_track",
        "delta_motif",
        "delta_interaction",
        "motif_share",
    ]
    order = driven["delta_total"].abs().sort_values(ascending=False).index
    display(driven.loc[order, columns].head(8).round(4))

# %% [markdown]
# What carries the differences that are left?
# In the simulated world the sites of every planted factor are known, and least squares over all tokens says how much the sites of each add to a feature's difference between the contexts.
# A *shift* is what no site explains.
# Roles without context effect (`lineage`, `invariant`) should carry next to nothing.

# %%
decoys = ("lineage", "invariant")
if evidence is not None and len(evidence.carried):
    carried = evidence.carried
    display(pd.crosstab(carried["role"], carried["layer"], margins=True))
    decoy_share = carried["role"].isin(decoys).mean()
    print(f"{decoy_share:.1%} of {len(carried)} called features speak for a decoy")
    found = set(carried.loc[carried["role"].isin(truth.CONTEXT_ROLES), "factor"])
    print(
        "factors with a context effect behind called features:",
        ", ".join(sorted(found)),
    )

# %% [markdown]
# ## Planted classes and placebo rates, in drawn worlds
#
# Through the model nobody knows which features are null.
# In drawn worlds it is known, so that power, classes and false discovery rates can be checked.

# %%
planted = SummaryWorld(
    "planted", biosample_sd=0.15, n_features=200, n_tokens=4, windows_per_block=5
)
rows, rates = [], []
for draw in range(max(4, n_draws // 10)):
    drawn = calibration.draw_summaries(planted, [seed, draw])
    pairs = calibration.study_rows(drawn.samples)
    tracks = cds.context_divergence(
        drawn.features[pairs], drawn.samples.iloc[pairs], drawn.blocks
    )
    biosamples = calibration.replicate_divergence(
        drawn.features, drawn.samples, drawn.blocks
    )
    for name, scored in {"E1 blocks": tracks, "E3 biosamples": biosamples}.items():
        right = pd.Series(scored["class"].to_numpy() == drawn.truth)
        decoy_calls = int((~right)[drawn.truth == "none"].sum())
        by_class = right.groupby(drawn.truth).mean().to_dict()
        rows.append({"test": name, **by_class, "any decoy called": decoy_calls > 0})
    placebo = calibration.placebo_contrasts(drawn.samples, n_contrasts=n_contrasts)
    decoy_scores = [
        cds.context_divergence(drawn.features[c.rows], c.design, drawn.blocks)["cds"]
        for c in placebo
    ]
    q = calibration.placebo_fdr(tracks["cds"].to_numpy(), decoy_scores)
    for level in (0.05, 0.1, 0.2):
        mine = q <= level
        false = np.mean(drawn.truth[mine] == "none") if mine.any() else 0.0
        rates.append(
            {"level": level, "estimated": q[mine].max(initial=0), "true": false}
        )
classes = pd.DataFrame(rows).groupby("test").mean()
placebo_rates = pd.DataFrame(rates).groupby("level").mean()
display(classes.round(3), placebo_rates.round(3))

# %% [markdown]
# The table gives the share of planted features that were called *and* put in the right class, by class; the column `none` is the share of decoys left alone.

# %% [markdown]
# ## Along the depth of the model
#
# All blocks get equally many tests, on their most active features.
# Two curves need no dictionary: a linear probe for the context, judged on other chromosomes and on a lineage it has not seen, and the length of the mean difference of the streams (DiffMean), with what sign flips leave of it.

# %% tags=["remove-stderr"]
streams = calibration.stream_means(study)
curve = None
if len(study.blocks) > 1:
    features = {b: s.mean_acts[:, windows] for b, s in stages.summaries(study).items()}
    curve = cds.layer_curve(features, study.design, genomic)
    ratio = curve.ratio
    print(f"last over first: {ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
    display(curve.table.round(2))
lengths = cds.diffmean_curve(
    {b: x[:, windows] for b, x in streams.items()}, study.design, genomic
)
display(lengths.round(2))

# %%
if len(study.lineages) > 1:
    test_windows = study.dataset.windows_of("test")
    probes = cds.probe_curve(streams, study.design, train=windows, test=test_windows)
    display(probes.pivot_table("auc", "layer", "held_out").round(3))

# %% [markdown]
# A probe that is perfect from the first block on needs no chromatin: the motif activity of the biosample is written into every token, and reading it back takes one direction.
#
# ### A model that was never trained
#
# Everything again, from streams to dictionary to score, with random weights.
# Only what the trained model has beyond this may be credited to training.

# %% tags=["remove-stderr"]
untrained = stages.score_context(calibration.random_weights(study, layers=[last]))
both = {"trained": scores[scores["layer"] == last], "random weights": untrained}
against_random = pd.DataFrame(
    {
        name: {
            "tested": (t["class"] != "untested").sum(),
            "called": len(stages.called_features(t)),
        }
        for name, t in both.items()
    }
).T
against_random.assign(share=lambda t: t["called"] / t["tested"]).round(2)

# %% [markdown]
# ## Sanity checks
#
# The error rates this page promises, asserted on what was computed above.

# %%
nominal, slack = 0.05, 2 * np.sqrt(0.05 * 0.95 / n_draws)
assert 0.03 <= share.loc["block", "no effect"] <= 0.07
assert share.loc["token", "no effect"] >= 10 * nominal
assert family["block, max-T"] <= max(0.07, nominal + slack)
assert 0.03 <= share.loc["biosample", "noise of biosamples"] <= 0.07
shared_right = classes.loc["E3 biosamples", ["shared-vitro", "shared-vivo"]]
assert shared_right.min() >= 0.8
assert classes.loc["E3 biosamples", "any decoy called"] <= nominal + 0.1
quotient = placebo_rates["estimated"] / placebo_rates["true"]
assert quotient.between(0.5, 2).all(), quotient
if through_model:
    depth = through_model["depth-only"].table
    unadjusted = depth.loc["block", "n_called"]
    for adjusted in (
        "block, equal depth",
        "biosample, equal depth",
        "block, equal signal",
    ):
        assert depth.loc[adjusted, "n_called"] <= nominal * unadjusted
    assert through_model["motif-vector-only"].motif_share >= 0.95
    held = through_model["no-effect"].table.loc["block, motifs held", "share"]
    assert 0.02 <= held <= 0.08
if evidence is not None and len(evidence.carried):
    assert decoy_share <= nominal
print("all hold")

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
lines = [
    f"- Without any effect, tests over tokens reject {share.loc['token', 'no effect']:.0%} of true null hypotheses at 5 %, tests over genomic blocks {share.loc['block', 'no effect']:.1%}; once biosamples vary, blocks reject {share.loc['block', 'noise of biosamples']:.0%} and biosamples {share.loc['biosample', 'noise of biosamples']:.1%}."
]
if evidence is not None:
    total = evidence.counts.sum()
    lines += [
        f"- Of {total['E1']:.0f} features called over all blocks, {total['motif-driven']:.0f} are driven by the motif activity, of which each biosample has one vector; with it held, {total['E1, held']:.0f} are called, and {total['placebo, held']:.0f} between replicates of one context.",
        f"- Against the variation between biosamples, {total['E3, held']:.0f} remain.",
    ]
if evidence is not None and len(evidence.carried):
    lines += [
        f"- Of these, {decoy_share:.1%} speak for a factor without context effect."
    ]
share_random = against_random["called"] / against_random["tested"]
lines += [
    f"- The last block of a model with random weights has {share_random['random weights']:.0%} of its testable features called, the trained one {share_random['trained']:.0%}."
]
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Limits
#
# - What goes with the context in every biosample, such as the purity of tissues, is in no placebo and in no variance between replicates.
# - E3 is about the lineages sampled; other lineages would need pairs of their own.
# - The variance between biosamples is pooled over lines and tissues: it assumes that a line regrown varies like another donor.
# - Thinning needs cut sites; coverage tracks can only be compared at equal signal.
#
# ## Exercises
#
# 1. Why does a test over biosamples call features in the depth-only world, although it is calibrated?
# 2. A colleague adds windows until every feature is significant. Which row of the first table do they climb?
#
# <details><summary>Answers</summary>
#
# 1. Every tissue replicate is 1.6 times as deep: the difference is real and replicated, only its cause is not the context.
# 2. None: more windows make blocks more numerous, so the row of blocks gets more power for whatever these two tracks differ in; the row of biosamples stays as it is.
#
# </details>
