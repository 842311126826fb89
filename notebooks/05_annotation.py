# %% [markdown]
# # The biology of context features
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/05_annotation.ipynb)
#
# A feature that tells a cell line from a tissue is only a number until somebody says what it stands for.
# This page names features at three levels, chromatin states, motifs and biological processes, and hands on one table in which every finding stands beside its null.
#
# Words that are new to you are in the [glossary](../book/glossary.md).
#
# **Objectives**
#
# - Choose context features on one set of chromosomes and look at them on another.
# - Compare the places where a feature fires with places of the same GC content and accessibility.
# - Run every test on features that were not called and on random ones.
# - Learn motifs from the places alone, and see whether known ones come out.
# - Say how often the motif behind a feature is found, and put a published claim to the test.
#
# **Needs** `cds.parquet`, `summaries/`, `sae/block<i>/` (made if absent).
# **Produces** `annotation_features.parquet`, `annotation.parquet`, `tracks/` (bigWig, BED and a hub for genome browsers).

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
block: int = -1  # block to annotate; all if negative
n_tracks: int = 24  # features written for genome browsers, the strongest

# %% tags=["remove-stderr"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import stats

from helpers import annotation, feature_tracks, figures, findings, stages
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
    streams=streams,
    saes=saes,
)
print(f"run {run} | data {data} | seed {seed} | device {device}")
print(f"blocks {study.blocks} | model {study.model_hash}")
print(study.description)

# %% [markdown]
# ## Which features, and where they fire
#
# Chromosomes have one task each.
# Features were called on `select` chromosomes (page 03) and are looked at on `test` chromosomes, which took no part in choosing them.
# What is planted behind a feature is read on `tune` chromosomes.
# The sizes of effects on pages 03 and 04 come from `test` chromosomes too: names and effects do not know of each other, and neither chose the features.
# Processes need many genes, so for them alone `tune` and `test` are taken together.

# %%
windows = study.dataset.windows
task = {"select": "call features", "tune": "read what is planted", "test": "annotate"}
chromosomes = windows.groupby("split", sort=False)["chrom"].unique()
pd.DataFrame(
    {
        "task here": pd.Series(task),
        "chromosomes": chromosomes.map(len),
        "which": chromosomes.map(lambda x: f"{x[0]} to {x[-1]}"),
    }
).loc[list(chromosomes.index)]

# %% [markdown]
# The unit is a token of 128 bp, and the universe is all tokens that the model predicts there: a feature is compared with what the model was shown, never with the rest of the genome.
#
# A feature is looked at in one biosample: of the pair in which its activation differs most, the side where it is higher.
# Its **regions** are the tokens on which it fires most strongly there.
# Of neighboring tokens only the strongest counts, because the tests take regions for independent.
# Beside every called feature stands one that was *not* called and fires about as often, where there is one.

# %% tags=["remove-stderr"]
layers = None if block < 0 else [block]
features = annotation.select_features(study, layers)
layers = sorted(set(features["layer"]))
scores = stages.score_context(study)
n_called = len(stages.called_features(scores[scores["layer"].isin(layers)]))
called = features[features["set"] == "called"]
print(f"blocks {layers}: {n_called} features called, {len(called)} of them annotated")
print(
    f"at most {annotation.PER_CLASS} per class and block, firing on at least "
    f"{annotation.MIN_REGIONS} test tokens, up to {annotation.N_TOP} regions each"
)
counts = features.assign(regions=features["regions"].map(len))
counts.groupby(["set", "class"]).agg(
    features=("feature", "size"),
    regions=("regions", "median"),
    density=("density", "median"),
).round(3)

# %% tags=["remove-stderr"]
annotated = annotation.annotate(study, layers)
groups = called.set_index(findings.KEY).pipe(findings.feature_groups)
for level, reason in annotated.skipped.items():
    print(f"{level} is skipped: {reason}")
of_motifs = annotated.table.query("level == 'motif' and set == 'called'")
matched = of_motifs.drop_duplicates(findings.KEY)["n_regions"].sum()
n_regions = called["regions"].map(len).sum()
print(
    f"{n_regions - matched} of {n_regions} regions have no match and are left out for motifs"
)
counted = annotated.table.drop_duplicates(["level", "set", *findings.KEY])
counted.pivot_table("feature", "level", "set", aggfunc="count")

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

# %% mystnb={"figure": {"caption": "How much of the enrichment for chromatin states is accessibility alone: fold of the states in the regions of every called feature, against all tokens (left) and against tokens of the same GC content and accessibility (right; dots mark q < 0.05). Rows are features, in groups; color that fades from left to right was accessibility alone. Gray: the biosample has no such state.", "name": "fig-states"}, "image": {"alt": "Strong colors against all tokens fade almost everywhere against matched tokens. Two heat maps of log2 fold with features in rows, grouped by class, and chromatin states in columns."}}
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
    below = of_states[findings.KEY].assign(
        plain=stats.false_discovery_control(plain) < 0.05,
        matched=of_states["q_value"] < 0.05,
    )
    is_plain, is_matched = (
        below.groupby(findings.KEY)[x].any() for x in ("plain", "matched")
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
# (HOMER's own test, to its digits, is `motifs.homer_enrichment`; `motifs.run_homer2` asks HOMER itself where it is installed.)
# Motifs that look alike hit the same sites.
# They are clustered into **archetypes** by the similarity of their matrices, and only the best of an archetype counts, its p-value multiplied by the size of the archetype.
#
# The table lists the archetypes (`item`) that most features of a group hold: how many of the group's `n_group` features are enriched (`n_features`, `share`), and the median log2 fold of those.
# Mind the sign: a feature that is higher in cell lines can fire at sites that are *closed* there, so a factor of tissues may lead the list of a cell-line group.

# %%
families = findings.top_items(annotated, "motif")
found = of_motifs[of_motifs["q_value"] < 0.05].sort_values("log_p", kind="stable")
any_motif = found.drop_duplicates(findings.KEY)  # the best of each feature
families.head(10).round(2)

# %% mystnb={"figure": {"caption": "Which motifs belong to which features: archetypes in groups of called features. Size: share of the group's features enriched for it; color: their median fold over matched tokens. An archetype in one column alone belongs to that lineage and context; a row across all columns belongs to no context in particular.", "name": "fig-motifs"}, "image": {"alt": "In the simulated default most archetypes run across several groups and belong to no single lineage. Dot plot with motif archetypes in rows and groups of features in columns; dot size is the share of features enriched, color the log2 fold."}}
if len(families):
    drawn.group_dots(families)
    plt.show()
else:
    print("no archetype at q < 0.05")

# %% [markdown]
# A test of known motifs finds known motifs.
# So the best feature of every frequent archetype is asked again, without any collection: which matrix tells its regions from others of the same GC content and accessibility?
# It is learned on every other region and tested on those left out, then compared with the collection.
# `known` is the motif the feature is enriched for, `closest` the one that the learned matrix resembles most; their similarity is 1 for equal matrices.
# `log_p` (natural logarithm) and `fold` are of regions that did not teach the matrix.

# %%
frequent = families.groupby("item")["n_features"].sum()
frequent = list(frequent.sort_values(ascending=False, kind="stable").index[:8])
learned = findings.learned_motifs(study, annotated, frequent)
table = learned.assign(known=[m.name for m in learned["known"]])
same = (table["closest"] == table["known"]).sum()
print(f"{same} of {len(learned)} learned motifs resemble the enriched one most")
table.drop(columns="motif").round(2)

# %% mystnb={"figure": {"caption": "Motifs can be learned from the regions of a feature alone: the known motif that the strongest feature of each frequent archetype is enriched for (left), and what its regions teach (right), with the known motif it resembles most and ln p in regions that did not teach it. Letters are as high as the information they carry; a learned motif may stand on the other strand.", "name": "fig-logos"}, "image": {"alt": "Most learned motifs show the core of the known one, some on the other strand. Pairs of sequence logos, in bits per position: known motifs on the left, motifs learned from regions on the right."}}
if len(learned):
    size = (9, 1.15 * len(learned))
    figure, axes = plt.subplots(len(learned), 2, figsize=size, squeeze=False)
    drawn.motif_table(learned, axes)
    plt.show()

# %% [markdown]
# ## Biological processes
#
# Regions reach genes through GREAT's regulatory domains {cite}`mclean2010great`, and genes belong to Gene Ontology terms.
# A term is tested **over regions**: do more of the feature's regions lie in domains of the term's genes than of all tokens?
# And **over genes**: of the genes that the feature reaches, are more in the term than of all genes reached by any token?
# The first can be fooled by a crowd of regions around one gene.
# The second has no power where a feature reaches nearly every gene, as it does when few genes lie on the chromosomes at hand.
# So there is a third question: do more regions lie near the term than if the feature were **shifted** along each chromosome?
# A shift keeps the crowds and breaks every bond with genes; the distribution over all shifts is exact.
# The figure shows the answer to the third question, and the next section how far each of the three can be believed.

# %% mystnb={"figure": {"caption": "Which biological processes lie near the regions of called features more often than near the same regions shifted along the chromosome. Size: share of the group's features at q < 0.05; color: median fold over all tokens.", "name": "fig-go"}, "image": {"alt": "In the simulated default few terms are found, each in few features. Dot plot with Gene Ontology terms in rows and groups of features in columns; dot size is the share of features enriched over shifts, color the log2 fold."}}
if "go" in annotated.skipped:
    print(annotated.skipped["go"])
else:
    terms = findings.top_items(annotated, "go", column="q_shift")
    both = findings.top_items(annotated, "go")
    print(
        f"pairs of feature and term at q < 0.05: {both['n_features'].sum()} over regions "
        f"and genes, {terms['n_features'].sum()} over shifts"
    )
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

# %% mystnb={"figure": {"caption": "Can the tests be believed? Left: share of features with any finding, for called features, others and random ones; a test whose random features lie right of the dashed line cannot. Right: p-values of all motif tests against those of an honest null, which lie on or below the diagonal.", "name": "fig-nulls"}, "image": {"alt": "In the simulated default all tests but the one over regions alone leave random features without a finding. Left, dot plot of the share of features enriched by level and set with intervals; right, quantile plot of motif p-values by set."}}
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
        f"- *{level}*: {share[level, 'called']:.0%} of called features, at most {null:.1%} of "
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
# A rank of 1 means that of all archetypes the planted one has the smallest p-value.
# For processes the term planted near the factor's sites is looked up in the same way, beside its rank for the shifted twin of the feature.
#
# Many called features fire at no factor's sites in particular.
# The model is told each biosample's motif activity, one vector for all tokens, and a feature that follows this vector differs between contexts everywhere.
# Such a feature is a true difference without a place, so no test of places can name it.

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
        f"its archetype ranks in the top 3 for {top3.mean():.0%} ({low:.0%} to {high:.0%}) "
        f"of these, which is {top3.sum() / len(called):.0%} of all annotated features"
    )
    named = int((recovered["own_q"] < 0.05).sum())
    print(
        f"{len(any_motif)} features have any motif at q < 0.05; {named} of them fire at "
        "sites of a planted factor"
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
            f"the planted process ranks in the top 3 by shifts for {term_top3:.0%}, "
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
# One enriched feature among dozens proves little, so the share enriched stands beside the share `elsewhere`: among features of the same context that differ most in other lineages.
# `p_value` is for more here than elsewhere; `n_top3` counts features in which the motif is among the three best, and `best_rank` is its best place.

# %%
claim = findings.claim_table(study, annotated, findings.PAPER_CLAIM)
if len(claim):
    display(
        claim.drop(columns="family").round({"share": 2, "elsewhere": 2, "p_value": 4})
    )
else:
    print(
        f"the claim is about {list(findings.PAPER_CLAIM)}; this run has {study.lineages}"
    )

# %% [markdown]
# An enriched archetype says that features of this lineage and context fire at sites with such a motif.
# It does not say that the factor is behind the difference: a tissue that holds other cells as well, or a factor that is active in both contexts, leaves the same trace.
#
# ## In a genome browser
#
# The strongest features are written as tracks: the activation of every token in both contexts of the lineage, on `test` chromosomes (bigWig), and the regions where the feature fires most (BED).
# IGV opens the files as they are.
# For the UCSC browser, put the folder on a web server and give it the address of `hub.txt`; it lists everything, both contexts overlaid.
# A simulated genome is no assembly that UCSC knows, so its tracks open in IGV, with the world's `genome.fa` as genome.

# %% tags=["remove-stderr"]
strongest = called["score"].abs().sort_values(ascending=False, kind="stable")
shown = called.loc[strongest.index[:n_tracks]]
labels = {(x.layer, x.feature): x.name for x in any_motif.itertuples(index=False)}
folder = feature_tracks.write_feature_tracks(study, shown, labels)
suffixes = pd.Series([path.suffix for path in folder.iterdir()]).value_counts()
print(f"{folder.relative_to(study.run.folder)}/ in the run folder")
print(", ".join(f"{n} {suffix}" for suffix, n in suffixes.items()))
listed = pd.read_csv(folder / "features.tsv", sep="\t", keep_default_na=False)
listed.head(8)

# %% [markdown]
# ## Sanity checks

# %%
regions = annotation.universe(study)
on = {split: set(names) for split, names in chromosomes.items()}
assert set(regions["chrom"]) == on["test"]
assert not on["test"] & on["select"] and not on["tune"] & (on["select"] | on["test"])
window_of = regions["window"].to_numpy()
for own in features["regions"]:
    assert len(own) <= annotation.N_TOP
    same_window = np.diff(window_of[own]) == 0
    assert (np.diff(own)[same_window] > 1).all(), "neighbors are one event"
tested = annotated.table.dropna(subset="q_value")
assert tested["q_value"].between(tested["p_value"] - 1e-12, 1).all()
random = shares[shares["set"].isin(["matched", "shifted"])]
too_many = random[(random["low"] > 0.05) & (random["level"] != "go, regions only")]
assert too_many.empty, f"random features are enriched: {too_many}"
own, other = (
    set(map(tuple, features.loc[features["set"] == x, findings.KEY].to_numpy()))
    for x in ("called", "other")
)
assert own.isdisjoint(other)
hub = (folder / "hub.txt").read_text(encoding="utf-8")
assert all(path.name in hub for path in folder.glob("*.bw"))

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
lines = []
if len(recovered):
    lines.append(
        f"- {1 - len(recovered) / len(called):.0%} of called features fire at no planted "
        f"factor's sites in particular, and {1 - share['motif', 'called']:.0%} have no motif "
        "at q < 0.05: they stay without a name (*Against what was planted*)."
    )
lines.append(
    f"- {share['motif', 'called']:.0%} of called features are enriched for a motif archetype "
    "over tokens of the same GC content and accessibility"
    + (
        f", against {share['motif', 'other']:.0%} of features that were not called"
        if ("motif", "other") in share
        else ""
    )
    + f" and {share['motif', 'matched']:.0%} of random ones (*Motifs*, *Can the tests be believed?*)."
)
if len(of_states):
    lines.append(
        f"- Against all tokens {is_plain.mean():.0%} of called features are enriched for a "
        f"chromatin state; once accessibility is matched, {is_matched.mean():.0%} are (*Chromatin states*)."
    )
if "go" not in annotated.skipped:
    lines.append(
        f"- Over regions alone {share['go, regions only', 'shifted']:.0%} of shifted features "
        f"have a biological process, so that test cannot stand alone; asking genes as well "
        f"leaves {share['go', 'called']:.0%} of called features. Against shifts "
        f"{share['go, shifts', 'called']:.0%} of called features have one, and "
        f"{share['go, shifts', 'shifted']:.1%} of shifted ones (*Biological processes*)."
    )
if len(recovered):
    lines.append(
        f"- Where a planted factor is behind a feature, its archetype ranks in the top 3 for "
        f"{top3.mean():.0%} of {len(top3)} features (*Against what was planted*)."
    )
if study.truth is not None and len(claim):
    in_tissue = claim[claim["context"] == "in_vivo"]
    counts = in_tissue.assign(
        any=in_tissue["n_enriched"] > 0, more=in_tissue["p_value"] < 0.05
    )
    counts = counts.groupby("planted").agg(
        n=("motif", "size"), any=("any", "sum"), more=("more", "sum")
    )
    factors, decoys = counts.reindex(
        ["lineage-vivo", "lineage"], fill_value=0
    ).itertuples()
    lines.insert(
        1,
        "- Of the published motifs, those of factors that act in tissue only are enriched in "
        f"some tissue feature of their lineage in {factors.any} of {factors.n} cases, and "
        f"those of decoys in {decoys.any} of {decoys.n}. They are more frequent there than in "
        f"tissue features of other lineages (p < 0.05) in {factors.more} and {decoys.more} "
        "cases; only this second count speaks of the lineage (*A published claim*).",
    )
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Limits
#
# - A feature is named by its strongest regions. What it does where it fires weakly stays unseen.
# - One biosample stands for a feature; a feature shared by all lineages is not looked at in the others.
# - A motif is not a factor: factors share motifs, and a factor can be present without its motif.
# - Archetypes join at a similarity of 0.7, which is a choice; HOMER and others draw the line elsewhere.
# - The direction of a feature is not that of a factor: it may stand for a site that is closed.
# - Matching on accessibility removes what a feature shares with all open chromatin, and with it findings that are real but no more than openness.
# - The states of the simulated world follow from accessibility, so little can be left once it is matched.
# - Genes on few chromosomes give the test over genes little power, and shifts keep what crowds a feature but not what else shapes it along a chromosome.
# - Effects (pages 03 and 04) and names share the `test` chromosomes, though neither is chosen by the other.
#
# ## Exercises
#
# 1. Annotate one block at a time (`block`). Do the same archetypes come first, and does the share of enriched features rise with depth?
# 2. Why does the `shifted` null matter for biological processes and hardly for motifs?
#
# <details><summary>Answers</summary>
#
# 1. Call `annotation.annotate(study, [layer])` for every block and compare `findings.null_shares`. The sequence reaches the stream before the first block, so motifs need no depth; what depth adds is how neighbors combine.
# 2. Neighboring regions share the regulatory domain of one gene, so a crowd counts the gene's terms many times. Whether one token holds a motif says little about the next one.
#
# </details>
