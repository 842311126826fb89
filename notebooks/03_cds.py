# %% [markdown]
# # The Context Divergence Score
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/03_cds.ipynb)
#
# Which features tell a cell line from a tissue, and which only seem to?
# This page scores every feature of every block with the plain t-statistic of the published work and with a score that respects how the data were sampled, takes the differences apart by the input they come through, and hands on what is left.
#
# Words that are new to you are in the [glossary](../book/glossary.md).
#
# **Objectives**
#
# - See what the naive score would have claimed, and what is left after each objection.
# - Score features by paired differences over genomic blocks, with moderated variance and sign flips.
# - Tell differences of the track from differences of the motif activity.
# - Sort features into shared, lineage-only and discordant, and into turning on and turning up.
# - Follow the counts along the model, beside curves that need no dictionary.
#
# **Needs** `sae/block<i>/` (made if absent).
# **Produces** `cds.parquet`, `cds_test.parquet`, `layer_ratio.parquet`, `evidence_select/`, `recovery.parquet` (simulated data).

# %% tags=["hide-input"]
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("helpers") is None:  # a fresh runtime, such as Colab
    source = "git+https://github.com/OWNER/chromatin-context@main"
    if "/OWNER/" in source:
        raise ValueError("no address yet: write the project's GitHub owner for OWNER")
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])
    importlib.invalidate_caches()

# %% [markdown]
# Change these and run all; papermill sets them from outside.

# %% tags=["parameters"]
run: str = "_build/runs/simulated"  # folder of artifacts
data: str = "simulated"  # or "encode", a tissue file, or a folder of them
tissues: list = []  # which of them; all if empty
blocks: list = []  # transformer blocks; all if empty
seed: int = 0  # of everything random after the model
device: str = "cpu"  # torch device
model: str = ""  # folder or checkpoint; the one that goes with the data if empty
precision: str = "float32"  # or "bfloat16", where the hardware has it
streams: str = ""  # run that keeps the residual streams; itself if empty
saes: str = ""  # run whose dictionaries to use; new ones if empty

# %% tags=["remove-stderr"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import stats

from helpers import calibration, cds, figures, stages, truth
from helpers.figures import divergence, tables
from helpers.figures.explorer import page_addresses

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
    streams=streams,
    saes=saes,
)
print(f"run {run} | data {data} | seed {seed} | device {device}")
print(f"blocks {study.blocks} | model {study.model_hash}")
print(study.description)

# %% [markdown]
# ## What does not hold
#
# Each row of this table counts features of which the same could be said, *they differ between cell line and tissue*, and meets an objection that the rows above it do not.
# Columns `0`, `1`, … are blocks of the model; `replicates` is what the row takes for independent.
#
# - *Naive t*: all windows of tissues against all windows of cell lines.
# - *Paired over blocks*: the same windows compared between the contexts, their differences averaged within genomic blocks; corrected for many tests by Bonferroni, or by sign flips (max-T).
# - *E1*: called in all lineages together or in any of them, and how many of these are *not driven by the motif activity*.
# - *Motif activity held*: scored again with one motif activity for both contexts; *at equal signal too* adjusts for the height of the track besides.
# - *Placebo*: the same rule between replicates of one context, where every call is false; and the features that such replicates match at most 5% of the time.
# - *E3*: contexts against the variation between replicate biosamples.
#
# Counts need not fall from row to row: a stricter question can also have more power.
# The later sections say how each is computed.

# %% tags=["remove-stderr"]
scores = stages.score_context(study, "select")
evidence = calibration.gather_evidence(study)
ladder = calibration.claim_ladder(scores, evidence)
windows = study.dataset.windows_of("select")
genomic = study.dataset.windows["block"].to_numpy()[windows]
n_blocks = len(set(genomic))
print(
    f"{len(windows)} windows in {n_blocks} genomic blocks, {len(study.lineages)} pairs"
)
numbers = ladder.select_dtypes("number").columns
ladder.astype(dict.fromkeys(numbers, float)).round().astype(
    dict.fromkeys(numbers, "Int64")
)

# %% mystnb={"figure": {"caption": "What is left of the naive count, objection by objection, at each block of the model; in brackets, what is counted as independent. Gray: the same rule applied to replicates of one context, where every call is false; as many by the same rule, E1 with the motif activity held, are no evidence of context.", "name": "fig-claims"}, "image": {"alt": "In the simulated default, most calls of the naive and of the paired score disappear once the motif activity is held; what is left is about as much as replicates of one context give. Dots by block of the model for each claim."}}
divergence.claims(ladder)
plt.show()

# %% tags=["hide-input"]
counts, total = evidence.counts, evidence.counts.sum()
lines = [
    f"- Of {total['E1']:.0f} features that the paired score calls over all blocks, **{total['motif-driven']:.0f}** ({total['motif-driven'] / total['E1']:.0%}) owe more than half of their difference to the motif activity: one vector per biosample, the same in every window, so that windows and genomic blocks repeat a single observation.",
    f"- With that vector held fixed, **{total['E1, held']:.0f}** are called.",
]
if "E3" in counts:
    lines += [
        f"- The same rule calls **{total['placebo, held']:.0f}** on average when replicates of one context take the place of the two contexts. A count below that is no evidence that contexts differ.",
        f"- Against the variation between biosamples (E3 within these lineages), **{total['E3, held']:.0f}** remain.",
    ]
else:
    lines += [
        "- The tissue files name no replicates: what two samples of *one* context would give, the placebo, is unknown, and so is E3."
    ]
display(Markdown("\n".join(lines)))

# %% [markdown]
# Asking how cell lines and tissues differ *in general* needs pairs of many lineages; with few, the software refuses:

# %%
last = max(study.blocks)
acts = stages.summaries(study)[last].mean_acts[:, windows]
try:
    cds.context_divergence(acts, study.design, genomic, population=True)
except ValueError as refusal:
    print(f"ValueError: {refusal}")
else:
    print(f"{len(study.lineages)} pairs allow it")

# %% [markdown]
# ## The score
#
# Let $a_{sw}$ be the mean activation of a feature over the tokens of window $w$ in biosample $s$.
# The **naive** score is Welch's $t$ between the windows of all tissues and those of all cell lines, as in the published work {cite}`context2026genbio`.
# It takes windows for independent replicates, which they are not, and ignores that the same windows were measured in both contexts.
#
# The **Context Divergence Score** (CDS) starts from the paired difference $d_{\ell w} = a_{\mathrm{vivo}(\ell) w} - a_{\mathrm{vitro}(\ell) w}$ in lineage $\ell$, in which everything that sequence alone decides cancels.
# Differences are averaged over genomic blocks $b$ to $D_{\ell b}$, and
#
# $$\mathrm{CDS}_\ell = \frac{\bar D_\ell}{\tilde s_\ell / \sqrt{B}}$$
#
# with $B$ blocks and a variance $\tilde s_\ell^2$ moderated across features {cite}`smyth2004linear`.
# The shared score uses the mean of the lineages in place of $D_{\ell b}$.
# Positive means higher *in vivo*.
# The [methods chapter](../book/methods.md) draws how windows become replicates, and page 06 tests the score on worlds without any effect.
#
# What it estimates is named in its result: E1 speaks of these tracks, E2 of all lineages studied, E3 of contexts in general.

# %%
table = cds.context_divergence(acts, study.design, genomic)
print(f"this score: {table.attrs['estimand']}\n")
for name, text in table.attrs["estimands"].items():
    print(f"{name}: {text}\n")

# %% mystnb={"figure": {"caption": "What would usually be reported: effect against evidence for every feature of the last block (a), and the naive score against the paired one (b). The effect $d_z$ is the mean difference over genomic blocks in units of its standard deviation between them. Colors are the classes; dashed lines mark Bonferroni at 0.05.", "name": "fig-volcano"}, "image": {"alt": "In the simulated default, hundreds of features pass the threshold of the paired score, with large effects. Left, volcano plot of standardized paired effect against minus log10 p; right, scatter plot of naive t against the Context Divergence Score; points colored by class."}}
of_last = scores[scores["layer"] == last]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
divergence.volcano(of_last, axes[0])
divergence.naive_against_paired(of_last, axes[1])
figures.panel_labels(axes)
plt.show()

# %% [markdown]
# A volcano like this would be the usual end of the story.
# Ranked by size, the scores show how much of it the motif activity makes:

# %% mystnb={"figure": {"caption": "How much of the scores the motif activity makes: absolute scores of the features of the last block, strongest first, on a log scale; dashed: Bonferroni at 0.05.", "name": "fig-ranks"}, "image": {"alt": "In the simulated default, with the motif activity held, the ranked scores fall by an order of magnitude and few stay above the threshold. Lines for the naive t, the CDS and the CDS with the motif activity held."}}
features = evidence.features
features_last = features[features["layer"] == last]
n_tested = (of_last["class"] != "untested").sum()
divergence.ranks(
    {
        "naive t": of_last["cds_naive"],
        "CDS": of_last["cds"],
        "CDS, motif activity held": features_last["cds_held"],
    },
    limit=stats.norm.isf(0.025 / n_tested),
)
plt.show()

# %% [markdown]
# ## Which input a difference comes through
#
# The model reads three things: sequence, which is the same in both contexts, the track, and the motif activity.
# With $a(c, c')$ for the track of context $c$ and the motif activity of context $c'$, four passes per window give
#
# $$\Delta_{\mathrm{track}} = \tfrac12\bigl[a(1,0) - a(0,0) + a(1,1) - a(0,1)\bigr], \qquad \Delta_{\mathrm{motif}} = \tfrac12\bigl[a(0,1) - a(0,0) + a(1,1) - a(1,0)\bigr],$$
#
# which add up to the whole difference.
# A feature is *motif-driven* if $|\Delta_{\mathrm{motif}}| > |\Delta_{\mathrm{track}}|$, and is listed apart from here on.
# In *motif activity held* all biosamples of a lineage see the mean vector of its two contexts, and the score is computed again.

# %% mystnb={"figure": {"caption": "Which input makes a feature differ between the contexts, all blocks: points near the horizontal axis differ through the motif activity, points near the vertical one through the track; on the dashed lines both count alike. Axes are stretched around zero.", "name": "fig-channels"}, "image": {"alt": "In the simulated default, most called features lie near the axis of the motif activity. Scatter plot of the part of each difference that comes through the motif activity against the part that comes through the track."}}
divergence.input_channels(features)
plt.show()

# %% [markdown]
# ## Classes
#
# A feature is *shared* if every lineage agrees, *lineage-only* if some lineages carry it, *discordant* if lineages contradict each other.
# The rule screens over features first and confirms in every lineage after.
# Lineages that differ in size are found by Cochran's $Q$ and $I^2$, the share of the variation between lineages that is not noise.

# %%
order = ["shared-vitro", "shared-vivo", "lineage-only", "discordant"]
named = {"E1": "class", "E1, motifs held": "class_held"}
named |= {"E3, motifs held": "class_e3_held"} if "E3" in counts else {}
classes = pd.DataFrame({k: features[v].value_counts() for k, v in named.items()})
classes = classes.reindex(order).fillna(0).astype(int)
called = stages.called_features(scores)
mixed = (called["p_heterogeneity"] <= 0.05).mean()
print(f"effects differ in size between lineages in {mixed:.0%} of the called features")
print(f"median I^2 {called['i2'].median():.2f}")
classes

# %% [markdown]
# ## On or up?
#
# A mean can rise because a feature fires on more tokens or because it fires more strongly where it does.
# The two parts are tested apart, on the log odds of firing and on the log intensity given firing, as in the two-part model of MAST {cite}`finak2015mast`.
# Zeros are made by the threshold of the dictionary, so *on* means: above it.

# %% mystnb={"figure": {"caption": "Do features turn on or turn up? Change in how often and in how strongly the called features fire, all blocks; shapes say which part is significant (Holm over the two).", "name": "fig-hurdle"}, "image": {"alt": "In the simulated default, most called features change how often they fire, many in both parts in one direction. Scatter plot of log odds of firing against log intensity."}}
print(called["readout"].value_counts().to_string())
divergence.hurdle(called)
plt.show()

# %% [markdown]
# ## Along the depth of the model
#
# A count that rises with depth may reflect more context, or only more power: later blocks have larger activations and fewer dead features.
# So all blocks get equally many tests (`n_tests`), on their most active features, and the ratio of the last block to the first carries an interval from resampled genomic blocks.
# `n_strong` counts features whose effect exceeds half a standard deviation, whatever its evidence.
# Two curves need no dictionary: a linear probe for the context, judged on other chromosomes and on a lineage it has not seen, and the length of the mean difference of the streams (DiffMean), with what sign flips leave of it.

# %% tags=["remove-stderr"]
ratio = stages.late_early_ratio(study).iloc[0]
acts_of = {b: s.mean_acts[:, windows] for b, s in stages.summaries(study).items()}
streams = calibration.stream_means(study)
curve, probes = None, None
if len(study.blocks) > 1:
    curve = cds.layer_curve(acts_of, study.design, genomic, random_state=study.seed)
    display(curve.table.round(2))
if len(study.lineages) > 1:
    test_windows = study.dataset.windows_of("test")
    probes = cds.probe_curve(streams, study.design, train=windows, test=test_windows)
lengths = cds.diffmean_curve(
    {b: x[:, windows] for b, x in streams.items()}, study.design, genomic
)
print(
    f"last over first block: {ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
)

# %% mystnb={"figure": {"caption": "Does context grow along the model? Features called at equal numbers of tests with 95% intervals, and with the motif activity held (a); AUC of a linear probe, by what was held out from its training (b); length of the mean difference of the streams (c).", "name": "fig-layers"}, "image": {"alt": "In the simulated default, no curve rises with depth, and the probe is perfect from the first block on. Three panels over the blocks of the model."}}
if curve is not None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    divergence.layer_curves(curve.table, counts["E1, held"], probes, lengths, axes)
    figures.panel_labels(axes)
    plt.show()

# %% [markdown]
# Where a probe is perfect from the first block on, it needs no chromatin: the motif activity of the biosample is written into every token, and reading it back takes one direction.

# %% [markdown]
# ## Do the effects repeat?
#
# Features were chosen on `select` chromosomes, so their effects there are too large: the largest of many noisy numbers were picked.
# The same differences on `test` chromosomes have no such bias.
# A motif-driven feature repeats for a poor reason, though: on any chromosome it reads the same two vectors.

# %% tags=["remove-stderr"]
again = stages.score_context(study, "test")
both = called.merge(
    again[["layer", "feature", "cds", "delta", "p"]],
    on=["layer", "feature"],
    suffixes=("", "_test"),
).merge(features[["layer", "feature", "driver", "motif_share"]])
silent = both["delta_test"].isna()
print(f"{silent.sum()} of {len(both)} called features are too rare to test there")
both = both[~silent].copy()
both["same sign"] = np.sign(both["delta"]) == np.sign(both["delta_test"])
repeated = both.groupby("driver")["same sign"].agg(["size", "mean"])
repeated.rename(columns={"size": "features called", "mean": "same sign"}).round(3)

# %% mystnb={"figure": {"caption": "Do effects repeat? Mean difference of the called features on the chromosomes where they were chosen against chromosomes they were not chosen on. Points on the diagonal repeat exactly.", "name": "fig-replication"}, "image": {"alt": "In the simulated default, nearly all called features repeat with the same sign and size. Scatter plot of paired differences on select chromosomes against test chromosomes, colored by class, with the diagonal."}}
divergence.replication(both)
plt.show()

# %% [markdown]
# ## The features that are left
#
# Listed are the strongest features that pass with the motif activity held, and against the variation between biosamples where there are replicates.
# `motif_share` is the part of the difference that came through the motif activity before it was held, `q_placebo` the rate at which replicates of one context reach a score as large.

# %%
final = "class_e3_held" if "E3" in counts else "class_held"
left = features[stages.is_called(features[final])]
left = left.merge(scores.drop(columns=["class", "lineages"]), on=["layer", "feature"])
strongest = left.reindex(left["d_z_held"].abs().sort_values(ascending=False).index)
columns = ["layer", "feature", final, final.replace("class", "lineages"), "cds"]
columns += ["cds_held", "d_z_held", "motif_share"]
columns += ["q_placebo"] if "q_placebo" in left else []
print(f"{len(left)} features are left; the strongest ten:")
shown = strongest[[*columns, "log2_fold"]].head(10)
tables.feature_table(shown, pages=page_addresses(shown))

# %% mystnb={"figure": {"caption": "What holding the motif activity does to the ten strongest features: standardized paired effects as measured and with it held, with 95% intervals over genomic blocks. An effect that changes sign was made by the motif activity.", "name": "fig-effects"}, "image": {"alt": "In the simulated default, effects with the motif activity held are of another size, some of another sign, than as measured. Dots with horizontal intervals, two per feature."}}
if len(strongest):
    divergence.effects(strongest.head(10))
    plt.show()

# %% [markdown]
# ## Against what was planted
#
# In the simulated world it is known which factors act in which context.
# A feature speaks for a factor if the tokens at which it differs most between the contexts are the factor's sites.
# A context factor counts as found if such a feature was called in a lineage where its effect was planted, with the planted sign there.
# `n_matched` counts called features that speak for the factor, `n_right` those of them with the right sign, `layers` the blocks of the latter.
# Factors without context effect, the decoys, should not be called; where they are, composition, noise of single biosamples or features that mix factors are the reason, since E1 answers whether these tracks differ and not why.

# %% tags=["remove-stderr"]
recovery = None
if study.truth is None:
    print("the data are real: nothing was planted")
else:
    recovery = truth.score_recovery(study, scores)
    display(recovery)

# %% tags=["hide-input"]
if recovery is not None:
    planted = recovery[recovery["higher_in"] != ""]
    decoys = recovery[recovery["higher_in"] == ""]
    lines = [
        f"- E1: **{planted['found'].sum()} of {len(planted)}** planted context factors were found; **{decoys['found'].sum()} of {len(decoys)}** factors without context effect have a called feature."
    ]
    if len(evidence.carried):
        wanted = set(planted["factor"])
        carriers = evidence.carried[evidence.carried["factor"] != ""]
        found = wanted & set(carriers["factor"])
        false = carriers["role"].isin(["lineage", "invariant"]).sum()
        lines += [
            f"- E3 with the motif activity held: sites of **{len(found)} of {len(wanted)}** context factors carry a called feature ({', '.join(sorted(found))}); {false} of {len(evidence.carried)} called features are carried by a decoy."
        ]
    display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Sanity checks
#
# Exchanging the labels of the contexts must change every sign and nothing else, and scrambling signs block by block must leave next to nothing.
# The parts of the input swap must add up.

# %%
swapped = study.design.replace(
    {"context": {"in_vitro": "in_vivo", "in_vivo": "in_vitro"}}
)
mirrored = cds.context_divergence(acts, swapped, genomic)
assert np.allclose(-mirrored["cds"], of_last["cds"].to_numpy(), equal_nan=True)
parts = features["delta_track"] + features["delta_motif"]
assert np.allclose(parts, features["delta_total"], atol=1e-5)

rng = np.random.default_rng(seed)
flip = rng.random(n_blocks)[pd.factorize(genomic)[0]] < 0.5
shuffled = acts.copy()
for lineage in study.lineages:
    a, b = study.pair(lineage)
    shuffled[a, flip], shuffled[b, flip] = acts[b, flip], acts[a, flip]
null = cds.context_divergence(shuffled, study.design, genomic)
n_null = int((null["p_bonferroni"] <= 0.05).sum())
n_real = int((of_last["p_bonferroni"] <= 0.05).sum())
print(f"called with scrambled contexts: {n_null}; with the real ones: {n_real}")
assert n_null <= max(2, 0.1 * n_real)

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
share = total["motif-driven"] / total["E1"]
lines = [
    f"- The naive score claims {ladder.loc['naive t, Bonferroni', 'all']:.0f} features over all blocks and the paired one {total['E1']:.0f}, of which {share:.0%} are driven by the motif activity; {total['E1, held']:.0f} are called with it held (*What does not hold*).",
]
if "E3" in counts:
    lines += [
        f"- Replicates of one context give {total['placebo, held']:.0f} by the same rule; {total['E3, held']:.0f} features stand out from the variation between biosamples (*What does not hold*)."
    ]
if curve is not None:
    lines += [
        f"- From the first block to the last the count goes from {ratio['early']:.0f} to {ratio['late']:.0f}, a ratio of {ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}); with the motif activity held, from {counts['E1, held'].iloc[0]:.0f} to {counts['E1, held'].iloc[-1]:.0f} (*Along the depth of the model*)."
    ]
lines += [
    f"- {both['same sign'].mean():.0%} of the called features keep their sign on chromosomes they were not chosen on, which for the motif-driven ones says nothing about contexts (*Do the effects repeat?*)."
]
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Limits
#
# - Each lineage has one biosample per context in E1: noise of a single biosample is part of its contrast, and only replicates take it out.
# - Holding the motif activity asks what the track adds; context that acts through the motif activity alone is not wrong, but with one vector per biosample it cannot be told from any other difference between two vectors.
# - A difference in activation says neither that the model uses the feature nor why it differs; pages 04 and 05 ask these questions.
#
# ## Exercises
#
# 1. Score one lineage alone with `tissues = ["liver"]` and another `run` folder. Why can no feature be called shared?
# 2. Which features does the naive score miss that the paired one finds, and why?
#
# <details><summary>Answers</summary>
#
# 1. Shared means consistent over lineages; one pair cannot show it.
# 2. Those whose activation varies more between windows than between contexts: pairing removes what sequence decides.
#
# </details>
