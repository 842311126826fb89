# %% [markdown]
# # Tissues side by side
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/compare_tissues.ipynb)
#
# Does what one tissue shows hold in another, and do dictionaries that were learned elsewhere serve it?
# This page reads the tables of finished runs and computes nothing of its own.
#
# **Objectives**
#
# - Put dictionaries of several runs beside each other, new ones and ones that were taken over.
# - Count context features claim by claim, and see at which objection the runs part.
# - Compare how far steering goes in each tissue, beside its controls.
# - Find the motifs that features of several tissues share.
#
# **Needs** finished runs (`make run TISSUE=...`); what is missing is listed.
# **Produces** nothing.

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
runs: list = [  # folders of finished runs, in the order in which they are shown
    "_build/runs/simulated",
    "_build/runs/kidney",
    "_build/runs/kidney_transfer",
]

# %%
import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from helpers import figures
from helpers.comparison import compare_runs
from helpers.figures import comparison as plots

figures.set_style()
found = compare_runs(runs)
display(found.runs)
for row in found.missing.itertuples():
    display(
        Markdown(
            f"**Not compared: `{row.run}`.** It lacks {row.absent}; pages {row.pages} make them."
        )
    )
if len(set(found.runs["model"])) > 1:
    display(Markdown("**These runs are of different models**: compare with care."))

# %% [markdown]
# ## What is the same, and what is not

# %% tags=["hide-input"]
names = list(found.runs.index)
trainings = found.trainings.set_index(["run", "method"])
pooled = found.steering[found.steering["lineage"] == "pooled"].set_index(
    ["run", "method"]
)
lines = []
for name in names:
    sae = trainings.loc[(name, "SAE")]
    rival = pooled.loc[(name, "DiffMean")]
    sure = "" if sae["low"] > 0 else ": **nothing sure**"
    is_own = found.runs["dictionaries"][name] == "own"
    whose = "" if is_own else " (the first taken over, the others new)"
    counts = found.ladder[name].dropna()
    lines.append(
        f"- `{name}` ({found.runs['pairs'][name]}; dictionaries {found.runs['dictionaries'][name]}): "
        f"{counts.iloc[0]:.0f} features by the naive t, {counts.iloc[-1]:.0f} by *{counts.index[-1].lstrip('. ')}*; "
        f"steering closes {100 * sae['estimate']:.1f}% of the gap ({100 * sae['low']:.1f} to {100 * sae['high']:.1f}{sure}), "
        f"mean of {sae['n_trainings']} trainings with {sae['of_trainings']}%{whose}; "
        f"the difference of means, which needs no dictionary, {100 * rival['gc2']:.1f}%."
    )
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Dictionaries
#
# FVU is the share of variance that the reconstruction misses; `recovered` and `recovered_hidden` are shares of the prediction loss that it keeps, against replacing the stream by its mean.
# A dictionary that was taken over has seen no token of the tissue.

# %%
fidelity = found.fidelity.set_index(["run", "layer"])
fidelity.round(4)

# %% tags=["hide-input"]
means = found.fidelity.groupby("run", sort=False)[["fvu", "recovered_hidden"]].mean()
taken = [name for name in names if found.runs["dictionaries"][name] != "own"]
lines = []
for name in taken:
    for other in names:
        if (
            other not in taken
            and found.runs["pairs"][other] == found.runs["pairs"][name]
        ):
            times = means["fvu"][name] / means["fvu"][other]
            lines.append(
                f"On {found.runs['pairs'][name]}, dictionaries {found.runs['dictionaries'][name]} miss {times:.2f} times the variance that new ones miss "
                f"({100 * means['fvu'][name]:.2f} against {100 * means['fvu'][other]:.2f}%, mean over blocks) "
                f"and recover {100 * means['recovered_hidden'][name]:.2f}% of the loss on hidden tokens (new ones: {100 * means['recovered_hidden'][other]:.2f}%)."
            )
display(
    Markdown(
        "\n\n".join(lines)
        or "No run here shares its pairs with one that took dictionaries over."
    )
)

# %% [markdown]
# ## Context features, claim by claim
#
# Every row meets one objection more; rows that ask for replicates are missing where a run has none.

# %% mystnb={"figure": {"caption": "Share of tested features that each run calls context features, by what is demanded. Counts of all blocks.", "name": "fig-compared-ladders"}, "image": {"alt": "Dot plot with one row per claim, from the naive t to replicates with the motif activity held, and one marker per run."}}
plots.ladders(found.ladder, found.tested)
plt.show()

# %%
found.ladder.round().astype("Int64")

# %% [markdown]
# ## Steering
#
# The dose and the block of every method were chosen on other windows of the same run, so they may differ between runs.
# The figure shows the run's own dictionaries, pair by pair; how far another training would have come is in the list at the top of the page, and its interval is the wider one.

# %% mystnb={"figure": {"caption": "Share of the squared distance between the predictions of the pair that steering closes, with 95% intervals (genomic blocks resampled), beside random features and the difference of means.", "name": "fig-compared-steering"}, "image": {"alt": "Dot plot with intervals: one row per run and pair, three methods each."}}
plots.steering(found.steering)
plt.show()

# %% [markdown]
# ## Motifs
#
# Archetypes for which most called features of a group are enriched (q < 0.05), five for each run; `n_matched` is the same count for random regions matched to those of each feature.

# %%
top = found.motifs.groupby("run", sort=False).head(5)
columns = ["run", "group", "motifs", "n_features", "n_matched", "n_group"]
top[columns].style.hide(axis="index")

# %% tags=["hide-input"]
per_run = {
    name: set(table.loc[table["n_features"] > table["n_matched"], "item"])
    for name, table in found.motifs.groupby("run")
}
everywhere = sorted(set.intersection(*per_run.values()))
display(
    Markdown(
        f"{len(everywhere)} archetypes are enriched in more called features than matched random regions in every run here: {', '.join(everywhere) or 'none'}."
    )
)

# %% [markdown]
# ## Sanity checks

# %%
assert set(found.fidelity["run"]) == set(names)
assert (found.steering["low"] <= found.steering["high"]).all()

# %% [markdown]
# ## Limits
#
# - Runs are compared as they are: they may differ in windows, blocks, seed and replicates, which their own pages tell.
# - A pair of biosamples is one tissue and one cell line, so a difference between runs may be one between these samples.
# - Intervals are of genomic blocks and trainings within a run, not of tissues.
# - Of a run that took its dictionaries over, further trainings are new ones on its own data.
#
# ## Exercises
#
# 1. Why may a dictionary that was taken over call about as many features as a new one, and still be the worse description?
# 2. Which row of the ladder is comparable between a run with replicates and one without?
#
# <details><summary>Answers</summary>
#
# 1. Calls say which of its features differ between two biosamples, not how much of the stream they leave out; that is the FVU.
# 2. All rows that both have; the last ones ask for replicates.
#
# </details>
