# %% [markdown]
# # Browse the context features
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/explorer.ipynb)
#
# What does a single feature look like, at the places where it fires, by every measure of this book?
# This page lists all context features of the run, lets you choose and sort them, and shows each with what was found and what was not.
#
# **Objectives**
#
# - Choose features by block, lineage and the strictest claim they support.
# - Sort them by score, effect or density, and see that the orders disagree.
# - Read the page of a feature: tracks, motif, states, processes and the effect of ablating it.
#
# **Needs** `cds.parquet`, `evidence_select/`, `annotation.parquet`, `single_features.parquet` (made if absent).
# **Produces** `explorer/`, and a page for every feature.

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
pages: str = ""  # folder for pages of a book; if empty, pages stay in the run

# %% tags=["remove-stderr"]
import pandas as pd
from IPython.display import HTML, Markdown, display

from helpers import calibration, explorer, stages
from helpers.figures import explorer as drawn

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
# ## Which features are here
#
# A feature is listed if any claim below is made of it, from E1, the paired score of page 03, to the strictest.
# The counts are those of the ladder on page 03.
# Most features fall at the third row: their difference comes through the motif activity, one vector per biosample.

# %% tags=["remove-stderr"]
context = explorer.explore(study)
features, claims = context.features, context.facts["claims"]
listed = features.groupby("layer")[claims].sum().T
listed["all"] = listed.sum(axis=1)
print(
    f"{len(features)} of {context.facts['called']} context features have a page, "
    f"{features['annotated'].sum()} of them with an annotation"
)
listed.rename_axis("claim").rename_axis("block", axis=1)

# %% [markdown]
# ## The explorer
#
# Choose a block, a lineage and a claim; sort by any measure; search for a motif, a class or a number.
# The index opens with what is left after the last objection, strongest first.
# With a lineage chosen, *CDS* sorts by the score in that lineage.
# The index shows the shared score, *effect* is its standardized size, *held* the same with the motif activity held fixed; *density* is the share of tokens on which the feature fires.

# %% tags=["hide-input"]
folder = drawn.write_pages(
    context,
    pages or study.run.path("features"),
    home="../notebooks/explorer.html" if pages else "index.html",
)
if pages:
    display(HTML(drawn.static_explorer(context, "../features/")))
else:
    display(drawn.live_explorer(context))

# %% [markdown]
# The same pages exist as plain files, one for each feature, with an index that needs neither a kernel nor a network.

# %% tags=["hide-input"]
files = [path for path in folder.rglob("*") if path.is_file()]
size = sum(path.stat().st_size for path in files)
print(f"{len(files)} files, {size / 1e6:.0f} MB; begin with {folder}/index.html")

# %% [markdown]
# ## How to read the page of a feature
#
# - **The first sentences** say what does *not* hold. A feature that is not called once the motif activity is held fixed reads the identity of the biosample; its tracks still look convincing.
# - **Difference between the contexts**: hollow dots are the chromosomes on which the feature was chosen, where its effect is too large; filled ones the test chromosomes.
# - **Where it fires most strongly**: places chosen because the activation is high there. They show what the feature responds to, not how often it is right.
# - **Motifs, states, processes** (page 05): a q-value holds over all features that were annotated. *Not annotated* means not looked at, not that nothing is there.
# - **When it alone is ablated** (page 04): most single features move the prediction very little, and an interval that holds zero is no effect.
#
# ## Do the orders agree?
#
# If a large score meant a large effect, the features would come in the same order by each.
# Spearman's correlation of sizes says how far that is so.

# %%
measures = {x: text for x, text in drawn.SORTS.items() if x != "number"}
sizes = features[list(measures)].abs().rename(columns=measures)
agreement = sizes.corr("spearman")
agreement.round(2)

# %% [markdown]
# ## Sanity checks

# %%
evidence = calibration.gather_evidence(study)
ladder = calibration.claim_ladder(stages.score_context(study), evidence)
if len(features) == context.facts["called"]:  # none was left out
    counted = ladder.loc[claims].drop(columns="replicates").astype(int)
    assert (counted.to_numpy() == listed.to_numpy()).all()
names = {path.stem for path in (folder / "data").iterdir()}
assert len(names) == len(features)
assert all((folder / f"{name}.html").is_file() for name in names)
assert features[claims].any(axis=1).all()

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
share = pd.Series({x: features[x].mean() for x in claims})
named = (features["motif"] != "") | (features["process"] != "")
ablated = features["ablated"].notna()
lines = [
    f"- {1 - share[explorer.HELD]:.0%} of {len(features)} context features are not called once the motif activity is held fixed.",
    f"- {named[features['annotated']].mean():.0%} of the {features['annotated'].sum()} annotated ones have a motif or a process at q < 0.05.",
]
if ablated.sum() > 2:
    lines.append(
        f"- Rank correlation of CDS and the effect of ablation over {ablated.sum()} features: {agreement.loc[drawn.SORTS['cds'], drawn.SORTS['ablated']]:.2f}. A high score is no sign that the model uses the feature."
        if abs(agreement.loc[drawn.SORTS["cds"], drawn.SORTS["ablated"]]) < 0.5
        else f"- Rank correlation of CDS and the effect of ablation over {ablated.sum()} features: {agreement.loc[drawn.SORTS['cds'], drawn.SORTS['ablated']]:.2f}."
    )
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Limits
#
# - The three places of a feature are its strongest. What it does where it fires weakly is not shown.
# - Tracks are those of one lineage, in which the feature differs most; the other lineages appear in the differences alone.
# - Browsing is choosing: a feature found by looking at many pages is a hypothesis, to be tested on other data.
# - Effects of ablation exist only for the features that page 04 selected, the strongest by CDS.
#
# ## Exercises
#
# 1. Sort by density and open the most frequent features. Do their tracks follow the accessibility, and does any test of places name them?
# 2. Choose the claim *E1* and search for one motif. In how many blocks do you meet it, and why is this not as many independent findings?
#
# <details><summary>Answers</summary>
#
# 1. A feature that fires on nearly all tokens has no place of its own: it follows the motif activity, and no test of places can name it.
# 2. The blocks read one residual stream, so a feature of an early block is often seen again in later ones: repetitions of one observation.
#
# </details>
