# %% [markdown]
# # The biology of context features
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/05_annotation.ipynb)
#
# A feature that tells a cell line from a tissue is only a number until somebody says what it stands for.
# This page names features at three levels, chromatin states, motifs and biological processes, and hands on one table in which every finding stands beside its null.
#
# **Objectives**
#
# - Choose context features on one set of chromosomes and look at them on another.
# - Compare the places where a feature fires with places of the same GC content and accessibility.
# - Run every test on features that were not called and on random ones.
# - Say how often the motif behind a feature is found, and put a published claim to the test.
#
# **Needs** `cds.parquet`, `summaries/`, `sae/block<i>/` (made if absent).
# **Produces** `annotation_features.parquet`, `annotation.parquet`.

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
block: int = -1  # block to annotate; the one with most context features if negative

# %% tags=["remove-stderr"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import stats

from helpers import annotation, figures, findings, motifs, stages
from helpers.figures import annotation as drawn

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
# ## Which features, and where they fire
#
# Features were called on `select` chromosomes (page 03).
# Here they are looked at on `test` chromosomes, which took no part in choosing them.
# The unit is a token of 128 bp, and the universe is all tokens that the model predicts there: a feature is compared with what the model was shown, never with the rest of the genome.
#
# A feature is looked at in one biosample: of the pair in which its activation differs most, the side where it is higher.
# Its **regions** are the tokens on which it fires most strongly there.
# Of neighboring tokens only the strongest counts, because the tests take regions for independent.
# Beside every called feature stands one that was *not* called and fires about as often, where there is one.

# %% tags=["remove-stderr"]
layer = None if block < 0 else block
features = annotation.select_features(study, layer)
layer = int(features["layer"].iloc[0])
scores = stages.score_context(study)
n_called = len(stages.called_features(scores[scores["layer"] == layer]))
called = features[features["set"] == "called"]
print(f"block {layer}: {n_called} features called, {len(called)} of them annotated")
print(
    f"at most {annotation.PER_CLASS} per class, firing on at least "
    f"{annotation.MIN_REGIONS} test tokens, up to {annotation.N_TOP} regions each"
)
counts = features.assign(regions=features["regions"].map(len))
counts.groupby(["set", "class"]).agg(
    features=("feature", "size"),
    regions=("regions", "median"),
    density=("density", "median"),
).round(3)

# %% tags=["remove-stderr"]
annotated = annotation.annotate(study, layer)
groups = findings.feature_groups(called).set_axis(called["feature"])
for level, reason in annotated.skipped.items():
    print(f"{level} is skipped: {reason}")
of_motifs = annotated.table.query("level == 'motif' and set == 'called'")
matched = of_motifs.drop_duplicates("feature")["n_regions"].sum()
n_regions = called["regions"].map(len).sum()
print(
    f"{n_regions - matched} of {n_regions} regions have no match and are left out for motifs"
)
annotated.table.pivot_table("feature", "level", "set", aggfunc="nunique")

# %% [markdown]
# The table counts features with rows; `matched` and `shifted` are random features, explained with the nulls below.
#
# ## Chromatin states
#
# Where does a feature fire on the map of chromatin states {cite}`ernst2017chromatin` of its own biosample?
# Open chromatin is promoters and enhancers.
# So a feature that fires on open tokens is "enriched for enhancers" against all tokens, and one that fires on closed tokens avoids them, whatever else either stands for.
#
# The question is what a feature holds *beyond* being open or closed.
# Tokens are put into strata $g$ of GC content and accessibility.
# If $n_g$ regions of a feature lie in stratum $g$ and a share $r_g$ of all tokens of that stratum is in state $s$, then by chance
#
# $$E_s = \sum_g n_g \, r_g$$
#
# regions would be in $s$, and the fold is the observed count over $E_s$.
# The p-value is binomial with the mean rate, which errs on the safe side; q-values are Benjamini-Hochberg {cite}`benjamini1995controlling` over all features and states.
# Compare the two panels: what fades from left to right was accessibility.

# %% mystnb={"figure": {"caption": "Fold of chromatin states in the regions of every called feature, against all tokens (left) and against tokens of the same GC content and accessibility (right; dots mark q < 0.05). Rows are features, in groups; color that fades from left to right was accessibility alone. Gray: the biosample has no such state.", "name": "fig-states"}, "image": {"alt": "Two heat maps of log2 fold with features in rows, grouped by class, and chromatin states in columns; the left one is against all tokens, the right one against matched tokens."}}
of_states = annotated.table.query("level == 'state' and set == 'called'")
if len(of_states):
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 7.5))
    drawn.state_heat_maps(of_states, groups, axes)
    plt.show()
else:
    print(annotated.skipped["state"])

# %% tags=["hide-input"]
if len(of_states):
    n = of_states["n_regions"]
    plain = stats.binom.sf(of_states["hits"] - 1, n, of_states["rate_all"])
    q_plain = pd.Series(stats.false_discovery_control(plain), of_states["feature"])
    is_plain = (q_plain < 0.05).groupby(level=0).any()
    is_matched = (
        (of_states.set_index("feature")["q_value"] < 0.05).groupby(level=0).any()
    )
    print(f"any state against all tokens, q < 0.05: {is_plain.mean():.0%} of features")
    print(
        f"any state against matched tokens:       {is_matched.mean():.0%} of features"
    )

# %% [markdown]
# ## Motifs
#
# All regions are scanned once for all motifs of the study (JASPAR {cite}`rauluseviciute2024jaspar`), on both strands, at an exact p-value.
# As in HOMER {cite}`heinz2010homer`, a region counts once, and background regions are weighted so that they share the GC content of the feature's regions; here also their accessibility, in the same biosample.
# Nearly identical motifs hit the same sites, so only the best of a family counts, its p-value multiplied by the size of the family.

# %%
families = findings.top_items(annotated, "motif")
families.head(10).round(2)

# %% mystnb={"figure": {"caption": "Motif families in groups of called features. Size: share of the group's features enriched for the family; color: their median fold over matched tokens. A family in one column alone belongs to that lineage and context; a row across all columns belongs to no context in particular.", "name": "fig-motifs"}, "image": {"alt": "Dot plot with motif families in rows and groups of features in columns; dot size is the share of features enriched, color the log2 fold."}}
if len(families):
    drawn.group_dots(families)
    plt.show()
else:
    print("no family at q < 0.05")

# %% [markdown]
# The matrices behind the most frequent families: letters are as high as the information they carry.

# %% mystnb={"figure": {"caption": "Motifs of the most frequent families, as logos.", "name": "fig-logos"}, "image": {"alt": "Sequence logos of up to six motifs, in bits per position."}}
matrices = {
    m.name: m.probabilities for m in motifs.read_motifs(study.dataset.tissues[0].motifs)
}
leading = families.drop_duplicates("item")["motifs"].str.split(", ").str[0].head(6)
if len(leading):
    figure, axes = plt.subplots(2, 3, figsize=(9, 2.8))
    for ax, name in zip(axes.flat, leading, strict=False):
        drawn.logo(matrices[name], ax).set_title(name, loc="left")
    for ax in axes.flat[len(leading) :]:
        ax.set_axis_off()
    plt.show()

# %% [markdown]
# ## Biological processes
#
# Regions reach genes through GREAT's regulatory domains {cite}`mclean2010great`, and genes belong to Gene Ontology terms.
# A term is tested **over regions**: do more of the feature's regions lie in domains of the term's genes than of all tokens?
# And **over genes**: of the genes that the feature reaches, are more in the term than of all genes reached by any token?
# The first can be fooled by one crowded gene, the second needs many genes to have power; a term counts if both agree.
# The figure shows what regions alone would say, since few genes lie on the test chromosomes of small data; the next section shows how much of that to believe.

# %% mystnb={"figure": {"caption": "Biological processes near the regions of called features, by the test over regions alone. Size: share of the group's features at q < 0.05; color: median fold. Read it together with the null of the same test in the next figure.", "name": "fig-go"}, "image": {"alt": "Dot plot with Gene Ontology terms in rows and groups of features in columns; dot size is the share of features enriched over regions, color the log2 fold."}}
if "go" in annotated.skipped:
    print(annotated.skipped["go"])
else:
    terms = findings.top_items(annotated, "go", column="q_regions")
    both = findings.top_items(annotated, "go")
    print(f"{both['n_features'].sum()} pairs of feature and term pass both tests")
    if len(terms):
        drawn.group_dots(terms)
        plt.show()

# %% [markdown]
# ## Can the tests be believed?
#
# Every test above was repeated on three other sets of features.
#
# - `other`: features of the dictionary that were *not* called, of similar firing rate. They may well mean something; the question is whether called ones mean more.
# - `matched`: random features, each with as many regions in every stratum of GC content and accessibility as the called feature it stands for. The strata are twice as fine as those of the tests, so a test that matches too coarsely is caught.
# - `shifted`: the regions of the called feature moved along the genome by a random distance. They mean nothing, but lie as close together as before.
#
# Random features must not be enriched for anything: the share of those with any q-value below 0.05 should be at most 0.05.

# %%
shares = findings.null_shares(annotated)
shares.pivot_table("share", "level", "set", sort=False).round(3)

# %% mystnb={"figure": {"caption": "Left: share of features with any finding, for called features, others and random ones; random ones should stay left of the dashed line. Right: p-values of all motif tests against those of an honest null, which lie on or below the diagonal.", "name": "fig-nulls"}, "image": {"alt": "Left, dot plot of the share of features enriched by level and set with intervals; right, quantile plot of motif p-values by set."}}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.9))
drawn.null_shares(shares, axes[0])
drawn.p_values(annotated.table.query("level == 'motif'"), axes[1])
figures.panel_labels(axes)
plt.show()

# %% tags=["hide-input"]
share = shares.set_index(["level", "set"])["share"]
lines = []
for level in dict.fromkeys(shares["level"]):
    null = max(share[level, "matched"], share[level, "shifted"])
    verdict = "holds its level" if null <= 0.05 else "**does not hold its level**"
    lines.append(
        f"- *{level}*: {share[level, 'called']:.0%} of called features, at most {null:.0%} of "
        f"random ones; the test {verdict}."
    )
display(Markdown("\n".join(lines)))

# %% [markdown]
# Shifted features keep the crowding of regions around a gene.
# A test over regions takes crowded regions for independent, so this null is the one that counts for processes.
#
# ## Against what was planted
#
# In simulated data the factor behind a feature is known.
# It is read from the planted sites in the feature's regions on `tune` chromosomes, and its motif is looked up in the ranking found above on `test` chromosomes, so neither saw the other's tokens.
# A rank of 1 means that of all motif families the planted one has the smallest p-value.
# For processes the term planted near the factor's sites is looked up in the same way, beside its rank for the shifted twin of the feature.

# %% tags=["remove-stderr"]
recovered = pd.DataFrame()
if study.truth is not None:
    recovered = findings.motif_recovery(study, annotated)
if len(recovered):
    top3 = recovered["rank"] <= 3
    low, high = stats.binomtest(int(top3.sum()), len(top3)).proportion_ci()
    print(
        f"{len(recovered)} of {len(called)} annotated features fire at sites of a planted factor"
    )
    print(
        f"its motif family ranks in the top 3 for {top3.mean():.0%} ({low:.0%} to {high:.0%})"
    )
    by_role = recovered.assign(top1=recovered["rank"] == 1, top3=top3).groupby(
        ["role", "context"]
    )
    columns = {
        "features": ("rank", "size"),
        "top1": ("top1", "mean"),
        "top3": ("top3", "mean"),
    }
    display(by_role.agg(**columns, openness=("openness", "median")).round(2))
    term_top3, term_chance = (recovered[["term_rank", "term_rank_shifted"]] <= 3).mean()
    if "go" not in annotated.skipped:
        print(
            f"the planted process ranks in the top 3 over regions for {term_top3:.0%}, "
            f"and for {term_chance:.0%} of the same features once shifted"
        )
else:
    print("no planted factor is known here: the families above stand as they came out")

# %% [markdown]
# `context` is where the *feature* is higher, which need not be where the factor is at work.
# `openness` is the median accessibility of its regions, as a rank among all tokens: a feature that is higher in tissue at closed sites of a cell-line factor says that such a site is *closed* there.
#
# ## A published claim
#
# Features of tissues were reported to be enriched for the motifs of HNF4A and FOXA2 in liver, SPI1 and RUNX1 in blood, and EBF1 and PAX5 in lymph.
# The table asks this of the features that differ most in that lineage, apart for those higher in tissue and those higher in the cell line.
# `planted` tells what the factor does in the simulated world: `lineage-vivo` factors act in tissue only and should be found, `lineage` factors act in tissue and cell line alike.
# Those are decoys: they mark the lineage, not the context, and *not* finding them among the features of tissues is the right answer.

# %%
claim = findings.claim_table(study, annotated, findings.PAPER_CLAIM)
if len(claim):
    display(claim.drop(columns="family"))
else:
    print(
        f"the claim is about {list(findings.PAPER_CLAIM)}; this run has {study.lineages}"
    )

# %% [markdown]
# An enriched family says that features of this lineage and context fire at sites with such a motif.
# It does not say that the factor is behind the difference: a tissue that holds other cells as well, or a factor that is active in both contexts, leaves the same trace.
#
# ## Sanity checks

# %%
regions = annotation.universe(study)
windows = study.dataset.windows
chroms = windows.groupby("split")["chrom"].unique()
assert set(regions["chrom"]) == set(chroms["test"])
assert not set(chroms["test"]) & (set(chroms["select"]) | set(chroms["tune"]))
window_of = regions["window"].to_numpy()
for own in features["regions"]:
    assert len(own) <= annotation.N_TOP
    same_window = np.diff(window_of[own]) == 0
    assert (np.diff(own)[same_window] > 1).all(), "neighbors are one event"
tested = annotated.table.dropna(subset="q_value")
assert tested["q_value"].between(tested["p_value"] - 1e-12, 1).all()
for level in ("state", "motif"):
    if level not in annotated.skipped and study.truth is not None:
        assert share[level, "matched"] <= 0.05, f"{level}: random features are enriched"
assert set(called["feature"]).isdisjoint(features.query("set == 'other'")["feature"])

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
lines = [
    f"- {share['motif', 'called']:.0%} of called features are enriched for a motif family over "
    f"tokens of the same GC content and accessibility, against {share['motif', 'other']:.0%} of "
    f"features that were not called and {share['motif', 'matched']:.0%} of random ones."
    if ("motif", "other") in share
    else f"- {share['motif', 'called']:.0%} of called features are enriched for a motif family."
]
if len(of_states):
    lines.append(
        f"- Against all tokens {is_plain.mean():.0%} of called features are enriched for a "
        f"chromatin state; once accessibility is matched, {is_matched.mean():.0%} are."
    )
if "go" not in annotated.skipped:
    lines.append(
        f"- Over regions alone {share['go, regions only', 'shifted']:.0%} of shifted features "
        f"have a biological process, so that test cannot stand alone; asking genes as well "
        f"leaves {share['go', 'called']:.0%} of called and {share['go', 'shifted']:.0%} of "
        "shifted features."
    )
if len(recovered):
    lines.append(
        f"- Where a planted factor is behind a feature, its motif family ranks in the top 3 for "
        f"{top3.mean():.0%} of {len(top3)} features."
    )
if study.truth is not None and len(claim):
    decoy = claim.query("planted == 'lineage' and context == 'in_vivo'")
    planted = claim.query("planted == 'lineage-vivo' and context == 'in_vivo'")
    lines.append(
        f"- Of the published motifs, {(planted['n_enriched'] > 0).sum()} of {len(planted)} that "
        f"act in tissue only are found in features of tissue, and "
        f"{(decoy['n_enriched'] > 0).sum()} of {len(decoy)} decoys."
    )
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Limits
#
# - A feature is named by its strongest regions. What it does where it fires weakly stays unseen.
# - One biosample stands for a feature; a feature shared by all lineages is not looked at in the others.
# - A motif is not a factor: families share motifs, and a factor can be present without its motif.
# - The direction of a feature is not that of a factor: it may stand for a site that is closed.
# - Matching on accessibility removes what a feature shares with all open chromatin, and with it findings that are real but no more than openness.
# - The states of the simulated world follow from accessibility, so little can be left once it is matched.
# - Genes on few test chromosomes give the test over genes little power.
#
# ## Exercises
#
# 1. Annotate another block (`block`). Do the same families come first, and does the share of enriched features rise with depth?
# 2. Why does the `shifted` null matter for biological processes and hardly for motifs?
#
# <details><summary>Answers</summary>
#
# 1. Call `annotation.annotate(study, layer)` for every block and compare `findings.null_shares`. The sequence reaches the stream before the first block, so motifs need no depth; what depth adds is how neighbors combine.
# 2. Neighboring regions share the regulatory domain of one gene, so a crowd counts the gene's terms many times. Whether one token holds a motif says little about the next one.
#
# </details>
