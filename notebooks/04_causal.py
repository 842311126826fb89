# %% [markdown]
# # Ablating and steering context features
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/04_causal.ipynb)
#
# A feature can differ between a cell line and a tissue without the prediction depending on it: does the model use the features that page 03 called?
# This page edits them, compares the result with edits that look alike and with methods that know nothing of features, and hands on both tables.
#
# **Objectives**
#
# - Give context features the activations of the other context and measure what the prediction does.
# - Tell *causal* from *big* by random feature sets that fire as often and write as much.
# - Steer one context towards the other and say which share of the gap is closed, beside baselines that must be beaten.
# - Check edits against planted truth, where there is one.
#
# **Needs** `activations.zarr`, `sae/block<i>/`, `cds.parquet` (made if absent).
# **Produces** `ablation.parquet`, `ablation_random.parquet`, `steering_sweep.parquet`, `steering.parquet`, `factor_specificity.parquet` (simulated data).

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

# %% tags=["remove-stderr"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from helpers import causal, figures, interventions, probe, stages
from helpers.figures import causal as figures_causal

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

# %% [markdown]
# ## What is edited, and where it is looked at
#
# Let $x$ be the stream of a token after a block, $z_j$ the activation of feature $j$ and $w_j$ the direction it writes.
# An edit of the features in $S$ changes
#
# $$x' = x + \sum_{j \in S} (z'_j - z_j)\, w_j$$
#
# and nothing else: what the dictionary fails to explain stays in $x$ {cite}`marks2024sparse`.
# The model then restarts from $x'$.
#
# Features are chosen on `select` chromosomes and doses on `tune` chromosomes; every effect below is from `test` chromosomes.
# The Context Divergence Score (CDS, positive: higher *in vivo*) ranks the features of a block, and the strongest are edited.
# How many is decided without looking at any effect: as many as random sets can match.
# A random set holds a partner for every selected feature, drawn from those nearest to it in firing density and in the mean length they write.

# %% tags=["remove-stderr"]
features = causal.context_features(study)
windows = causal.spread_windows(study, "test", causal.N_WINDOWS)
classes = causal.token_classes(study, windows)
table = pd.DataFrame(
    {
        block: {
            "significant": len(f.significant),
            "selected": len(f.selected),
            **{f"pool: {pool}": len(members) for pool, members in f.pools.items()},
        }
        for block, f in features.items()
    }
).T
table.rename_axis("block")

# %% [markdown]
# Tokens are classed by their *measured* signal, plus one: `vivo-up` in a peak of the tissue and at least threefold higher there, `vitro-up` the reverse, `invariant` in a peak of both and less than 1.5-fold apart, `background` in no peak.
# The track is visible to the model on this page, so most of what it predicts at a token it has also seen there.

# %%
counts = {
    lineage: {name: int((of == name).sum()) for name in causal.CLASSES}
    for lineage, of in classes.items()
}
print(f"tokens per class on {len(windows)} test windows")
pd.DataFrame(counts)

# %% [markdown]
# ## Ablation
#
# The selected features of a *tissue* input take the activations they have on the same window of the *cell line*, and the reverse.
# This `resample` value is one the model could have produced itself; setting features to `zero` is the second look, since the value can change the conclusion {cite}`zhang2024towards`.
# If the model uses the features, the prediction for the tissue falls at `vivo-up` tokens and rises at `vitro-up` tokens.
#
# For $R$ random sets the permutation $p$ is $(1 + \#\{|\Delta_r| \ge |\Delta|\})/(R + 1)$ {cite}`phipson2010permutation`, with $\Delta$ the mean over windows of edited minus unedited.
# Two pools serve as controls.
# *Any other* live feature asks whether the top of the ranking matters more than features that look alike; *not significant* ones would be the cleaner null, but only where they look alike at all.

# %% tags=["remove-stderr"]
effects = causal.ablation(study)
random = causal.ablation_random(study)
quality = effects.groupby(["control", "layer"])[
    ["widened", "density_p", "norm_p", "norm_ratio"]
].first()
quality.round(3)

# %% [markdown]
# Read this table before any $p$.
# `widened` is the largest distance between a feature and its partner in deciles; `density_p` and `norm_p` test whether random sets fire and write alike, and below 0.1 they do not; `norm_ratio` is how much longer the change is than that of a random set.
# Where the pool does not match, a difference from it may be one of size.

# %% tags=["hide-input"]
matched = quality[["density_p", "norm_p"]].min(axis=1) >= 0.1
for pool, fits in matched.groupby("control"):
    print(f"{pool}: random sets match in {fits.sum()} of {len(fits)} blocks")

# %% [markdown]
# Gray are random sets of the *any other* pool, markers the selected features of each lineage, for the tissue input given cell-line activations.
# A marker inside its gray cloud is an effect that any features of that size have.

# %% mystnb={"figure": {"caption": "Change of the prediction at tokens that are higher in vivo (left) and in vitro (right) when features of the tissue input take their cell-line activations, by block. Markers are the context features of a lineage with a 95 % interval over genomic blocks; gray clouds are matched random sets.", "name": "fig-ablation"}, "image": {"alt": "Two panels with violins of random-set effects in gray and markers with error bars for the selected features, four blocks on the horizontal axis, one marker per lineage."}}
shown = {"direction": "vivo-to-vitro", "value": "resample", "control": "any other"}


def rows_of(table: pd.DataFrame, **values: str) -> pd.DataFrame:
    """Keep the rows with these values."""
    keep = [table[column] == value for column, value in values.items()]
    return table[np.logical_and.reduce(keep)]


figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
for ax, outcome in zip(axes, ("vivo-up", "vitro-up"), strict=True):
    chosen = (rows_of(t, **shown, outcome=outcome) for t in (effects, random))
    figures_causal.ablation_effects(*chosen, ax)
    ax.set_title(f"{outcome} tokens", loc="right")
figures.panel_labels(axes)
plt.show()

# %% [markdown]
# All tests of the table, by value, control and outcome: how many have $p \le 0.05$, how many a false discovery rate below 0.05 among all tests of that value and control, and how many still have $p \le 0.05$ when the effect is divided by the length of the change, which separates causal from big.
# The expected number of the first under the null is one in twenty.
# The effect size $d_z$ is paired over windows and so larger than one between independent groups.

# %% tags=["hide-input"]
tests = effects.assign(
    hit=effects["p"] <= 0.05,
    per_norm_hit=effects["p_per_norm"] <= 0.05,
    fdr_hit=effects["q_bh"] <= 0.05,
    size=effects["d_z"].abs(),
)
by = ["value", "control", "outcome"]
summary = tests.groupby(by, sort=False).agg(
    tests=("p", "size"),
    p_05=("hit", "sum"),
    q_05=("fdr_hit", "sum"),
    per_norm_05=("per_norm_hit", "sum"),
    mean_abs_d_z=("size", "mean"),
)
summary.round(2)

# %% [markdown]
# ## Steering
#
# Steering adds one direction to every token, $x' = x + \alpha\,\delta$, to move the prediction $y_b$ from one context's input towards $y_t$, the prediction from the other's.
# The SAE direction is $\delta = \sum_{j \in S} (\bar z^{\,t}_j - \bar z^{\,b}_j)\, w_j$ with means over `select` windows; with all features in $S$ it is DiffMean, the difference of the mean streams {cite}`rimsky2024steering`, up to what the dictionary loses.
#
# With $g = y_t - y_b$ and $v = y_s - y_b$ on the $\log(1 + y)$ scale,
#
# $$\mathrm{GC}_2 = 1 - \frac{\sum \lVert y_s - y_t \rVert^2}{\sum \lVert g \rVert^2} = 2p - p^2 - q^2,$$
#
# where $p = \langle v, g\rangle / \lVert g \rVert^2$ is progress along the gap and $q$ the length moved beside it.
# The endpoint, fixed beforehand: $\mathrm{GC}_2$ over all tokens of `test`, lineages pooled, *in vitro* to *in vivo*, at the block and dose that are best on `tune`.
#
# $\mathrm{GC}_2$ rewards shrinking: two noisy predictions come closer when one of them is merely flattened.
# So an **output rescale**, a straight line through the two predictions without any look inside, must be beaten, and the share of missing correlation gained, $\mathrm{GC}_{\mathrm{corr}}$, to which a line is blind, stands beside it.

# %% tags=["remove-stderr"]
sweep = causal.steering_sweep(study)
steering = causal.steering(study)
pooled = rows_of(steering, lineage="pooled", tokens="all")
directions = list(dict.fromkeys(steering["direction"]))
for direction in directions:
    layer, alpha = causal.best_dose(sweep, "SAE", direction)
    edge = " (the largest tried)" if alpha == sweep["alpha"].max() else ""
    print(f"{direction}: block {layer}, dose {alpha:g}{edge}")

# %% [markdown]
# The whole sweep on `tune` chromosomes: look for a maximum inside the range, for what the dose $-1$ does (backwards should not help), and for how the random line behaves.

# %% mystnb={"figure": {"caption": "Share of the gap closed on tune chromosomes against the dose, each method at its best block; circles mark the dose that is used on test chromosomes. Random features are scaled to the length of the SAE direction.", "name": "fig-doses"}, "image": {"alt": "Two line plots, one per direction, of GC2 against dose for the SAE direction, all significant features, DiffMean and random features."}}
figure, axes = plt.subplots(1, len(directions), figsize=(9.5, 3.8), squeeze=False)
for ax, direction in zip(axes[0], directions, strict=True):
    figures_causal.doses(sweep, direction, ax)
figures.panel_labels(axes[0])
plt.show()

# %% [markdown]
# What did not work comes first: every baseline that the SAE direction does not beat.
# To beat a method, the interval of the difference must lie above 0; to beat a random one, at most one draw in twenty may reach the SAE direction, because the mean of good and bad draws is beaten easily.

# %% tags=["hide-input"]
rivals = ["output rescale", "DiffMean", "random features", "random features, tuned"]
rivals += ["random direction"]
lost, won = [], []
for _, row in pooled[pooled["method"].isin(rivals)].iterrows():
    sae = rows_of(pooled, direction=row["direction"], method="SAE").iloc[0]
    text = (
        f"{row['direction']}: SAE closes {sae['gc2']:.1%}, {row['method']} {row['gc2']:.1%} "
        f"(difference {row['difference']:+.1%}, "
        f"{row['difference_low']:+.1%} to {row['difference_high']:+.1%})"
    )
    beaten = row["difference_low"] > 0
    if row["n_draws"] > 1:
        text += f"; random draws at least as good: p = {row['p_random']:.2f}"
        beaten &= row["p_random"] <= 0.05
    (won if beaten else lost).append(text)
    if row["gc_corr_low"] > sae["gc_corr_high"]:
        lost.append(
            f"{row['direction']}: of the missing correlation the SAE gains "
            f"{sae['gc_corr']:.1%}, {row['method']} {row['gc_corr']:.1%}"
        )
lines = ["**Not beaten by the SAE direction:**", ""]
lines += [f"- {text}" for text in lost] or ["- none"]
lines += ["", "**Beaten:**", ""] + ([f"- {text}" for text in won] or ["- none"])
display(Markdown("\n".join(lines)))

# %% [markdown]
# All methods on `test` chromosomes, with the two ends of the scale: nothing is 0 and the full patch 1.
# `clamp` gives features the activations of the target run token by token, an oracle that no single direction can match; its rows say which features hold the gap.
# A triangle marks a value off the axis.

# %% mystnb={"figure": {"caption": "Share of the squared gap closed (left) and of the missing correlation gained (right) by every method, in vitro to in vivo, lineages pooled, test chromosomes. Bars are 95 % intervals from genomic blocks that all methods share; green uses features, pink is a baseline, gray a control, black the ceiling.", "name": "fig-methods"}, "image": {"alt": "Two dot plots with horizontal intervals, one line per steering method, of GC2 and of the correlation version, from nothing at zero to the full patch at one."}}
endpoint = rows_of(pooled, direction="vitro-to-vivo")
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.4), sharey=True)
figures_causal.methods(endpoint, axes[0])
axes[0].set_xlabel("GC$_2$")
interval = ("gc_corr_low", "gc_corr_high")
figures_causal.methods(endpoint, axes[1], value="gc_corr", interval=interval)
axes[1].set_xlabel("GC$_{corr}$")
figures.panel_labels(axes)
plt.show()

# %%
columns = ["layer", "alpha", "gc2", "low", "high", "progress", "leakage"]
columns += ["gc_norm", "gc_corr", "collateral"]
names = ["SAE", "SAE, all significant", "DiffMean", "output rescale", *rivals[2:]]
endpoint.set_index("method").loc[names, columns].round(3)

# %% [markdown]
# A ratio to random means something only where random itself closes part of the gap; elsewhere it is left empty and the difference has to do.

# %%
ratios = pooled[pooled["method"].isin(rivals[2:])].set_index(["direction", "method"])
columns = ["difference", "difference_low", "difference_high"]
columns += ["ratio", "ratio_low", "ratio_high", "p_random", "n_draws"]
ratios[columns].round(3)

# %% [markdown]
# Where is the gap closed?
# A direction that knows the context raises the prediction at `vivo-up` tokens and lowers it at `vitro-up` tokens; one that only flattens wins at one class and loses at the other.
# Lineages are shown apart, with the direction made from the *other* lineages: the only test of a shared axis that three pairs allow.

# %% mystnb={"figure": {"caption": "Progress along the gap by class of token, lineages pooled (left), and share of the gap closed by lineage, with directions made without that lineage as open markers (right). In vitro to in vivo, test chromosomes; bars are 95 % intervals.", "name": "fig-where"}, "image": {"alt": "Left, markers of progress for five methods at all, vivo-up and vitro-up tokens; right, markers of GC2 with intervals for each lineage, including directions from the other lineages."}}
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
onward = rows_of(steering, direction="vitro-to-vivo")
names = ["SAE", "DiffMean", "output rescale", "random features", "clamp, significant"]
of_class = rows_of(onward, lineage="pooled")
figures_causal.grouped(of_class, "tokens", names, axes[0], value="progress", bars=False)
axes[0].set_ylabel("progress $p$")
names = ["SAE", "SAE, lineage held out", "DiffMean", "DiffMean, lineage held out"]
of_lineage = rows_of(onward[onward["lineage"] != "pooled"], tokens="all")
figures_causal.grouped(of_lineage, "lineage", [*names, "output rescale"], axes[1])
axes[1].set_ylabel("GC$_2$")
figures.panel_labels(axes)
plt.show()

# %% [markdown]
# ## Against what was planted
#
# In the simulated world a factor opens its own sites.
# Zeroing the features that speak for a factor should lower the prediction at its sites and leave other accessible tokens alone.
# Features are matched with factors on `tune` chromosomes and the change is measured on `test`, in the biosamples where the factor is active.

# %% tags=["remove-stderr"]
if study.truth is None:
    factors = None
    print("the data are real: nothing was planted")
else:
    factors = causal.factor_specificity(study)
    lowers = factors["at_sites_high"] < 0
    specific = lowers & (factors["specificity"] >= 5)
    print(f"{len(factors)} pairs of block and factor have features of their own")
    print(f"{lowers.sum()} lower the prediction at their sites (interval below 0)")
    print(f"{specific.sum()} of these at least five times more than elsewhere")

# %% [markdown]
# Each marker is a factor in a block; above the dotted line the change at its own sites is more than five times that elsewhere.
# Markers far to the right are features that act everywhere, whatever they are named after.

# %% mystnb={"figure": {"caption": "Change of the prediction at a factor's own sites against other accessible tokens when its features are zeroed. Of those that lower it, the strongest are named, with their block.", "name": "fig-factors"}, "image": {"alt": "Scatter plot on logarithmic axes of the size of change at a planted factor's sites against the size elsewhere, with lines for equal and fivefold change."}}
if factors is not None:
    figures_causal.specificity(factors)
    plt.show()

# %% tags=["hide-input"]
if factors is not None:
    by_size = factors.reindex(
        factors["at_sites"].abs().sort_values(ascending=False).index
    )
    columns = ["layer", "factor", "n_features", "n_sites", "at_sites", "elsewhere"]
    columns += ["specificity", "specificity_low", "specificity_high"]
    display(by_size[columns].head(8).round(3))

# %% [markdown]
# ## Sanity checks
#
# No chromosome is in two splits; an edit that changes nothing returns the same bits; the stream of the other context, put into a full run, gives the other context's prediction; and the decomposition of $\mathrm{GC}_2$ holds in every row.

# %%
per_split = study.dataset.windows.groupby("split")["chrom"].unique()
assert sum(map(len, per_split)) == study.dataset.windows["chrom"].nunique()
assert set(study.dataset.windows["split"].iloc[windows]) == {"test"}

layer = max(features)
sae = stages.train_saes(study)[layer]
pair = study.pair(study.lineages[0])
inputs = []
for b in pair:
    sequence = torch.from_numpy(study.dataset.sequence(windows[:2]))
    atac = torch.from_numpy(study.dataset.atac(windows[:2], b)).float()
    motif = torch.from_numpy(study.dataset.motif_activity[[b, b]])
    inputs.append([part.to(device) for part in (sequence, atac, motif)])
streams = [
    probe.capture(study.model, of_context, [layer])[layer] for of_context in inputs
]
same = interventions.ablate(
    streams[0], sae, features[layer].selected, reference=streams[0]
)
assert torch.equal(same, streams[0])
assert torch.equal(interventions.steer(streams[0], streams[0][0, 0], 0.0), streams[0])
with torch.no_grad(), probe.edited(study.model, {layer: lambda _: streams[1]}):
    swapped = study.model(*inputs[0])
with torch.no_grad():
    assert torch.allclose(swapped, study.model(*inputs[1]), rtol=0, atol=1e-6)

p, q = steering["progress"], steering["leakage"]
assert np.allclose(steering["gc2"], 2 * p - p**2 - q**2, rtol=0, atol=1e-8)
assert (rows_of(steering, method="nothing")["gc2"] == 0).all()
ceiling = rows_of(steering, method="full patch")["gc2"]
assert np.allclose(ceiling, 1, rtol=0, atol=1e-6)
print(f"ceiling: 1 to {abs(ceiling - 1).max():.0e}; {len(steering)} rows decompose")

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
fair = rows_of(effects, value="resample", control="any other")
fair = fair[fair["outcome"].isin(["vivo-up", "vitro-up"])]
n_hits = int((fair["p"] <= 0.05).sum())
one = endpoint.set_index("method")
sae = one.loc["SAE"]
oracles = [m for m in one.index if m.startswith(("clamp", "full"))]
best = one.drop(index=oracles)["gc2"]
verdict = (
    "beats" if one.loc["output rescale", "difference_low"] > 0 else "does **not** beat"
)
takeaways = f"""
- Against features that fire and write alike, {n_hits} of {len(fair)} ablation effects at differential tokens stand out ({len(fair) / 20:.1f} expected by chance).
- Steering *in vitro* to *in vivo* along the SAE direction closes {sae["gc2"]:.1%} of the squared gap ({sae["low"]:.1%} to {sae["high"]:.1%}; {sae["gc_norm"]:.1%} as a length), matched random features {one.loc["random features", "gc2"]:.1%}; it {verdict} a rescaled output ({one.loc["output rescale", "gc2"]:.1%}), and the best method without an oracle is **{best.idxmax()}** ({best.max():.1%}).
- Given the activations of the target run at block {sae["layer"]}, the significant features close {one.loc["clamp, significant", "gc2"]:.1%} of the gap and all others {one.loc["clamp, not significant", "gc2"]:.1%} (an oracle: token by token).
"""
display(Markdown(takeaways))

# %% [markdown]
# ## Limits
#
# - The track was visible: at a token the model can copy what it sees, and much of the gap between two predictions is count noise copied from two tracks, which no direction can know.
# - Where most live features are significant, a random set cannot be both matched and free of context features; the control *any other* is then the stricter question, not the null.
# - Effects of features are not additive, and what is taken out of a stream can come back through the part that the dictionary does not explain.
# - Directions are one vector for all tokens; a context that acts through sequence needs one that depends on the token. Dense directions often steer better than features {cite}`wu2025axbench`.
# - One seed of the dictionaries, one biosample per context and lineage.
#
# ## Exercises
#
# 1. Which dose would a line search find for a method that only flattens the prediction, and what would its progress and leakage be?
# 2. The output rescale gains next to nothing of the missing correlation. Why can it still close much of the squared gap?
#
# <details><summary>Answers</summary>
#
# 1. With $v = -c\,(y_b - \bar y)$ the best $c$ is the regression slope of $-g$ on the centered base; progress is the squared correlation of the two, and leakage is what is left of $v$ beside $g$.
# 2. A line keeps the order of the tokens, hence the correlation within a lineage, but it pulls extreme predictions to the mean, and extreme values of one track are partly noise that the other does not share.
#
# </details>
