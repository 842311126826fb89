# %% [markdown]
# # Results beside the published numbers
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/results.ipynb)
#
# What did two workshop papers report {cite}`context2026genbio,context2026mechinterp`, and what does this run find?
# This page answers the three questions of the book, puts every published number beside ours, and hands on one table of claims.
#
# **Objectives**
#
# - See the answers of this run at a glance, and what did not come out.
# - Put each published claim beside the same quantity here, or say that it is not the same.
# - Know on which data and with which model ours was measured.
#
# **Needs** the tables of pages 01 to 05 (made if absent).
# **Produces** `claims.parquet`.

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
import pandas as pd
from IPython.display import HTML, Markdown, display

from helpers import answers, claims, figures, stages
from helpers.figures import overview

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
print(study.description)
print(f"data {data} | {len(study.lineages)} pairs: {', '.join(study.lineages)}")
n_parameters = sum(p.numel() for p in study.model.parameters())
print(f"EpiBERT of {n_parameters:,} parameters, {len(study.model.blocks)} blocks")

# %% [markdown]
# The papers used the published EpiBERT on ATAC-seq of blood, liver and lymph.
# This run uses the data and the model named above: where they are small and simulated, agreement or disagreement with the papers says something about the method, not about biology.
#
# ## The answers at a glance
#
# Every panel shows the result (green) with a control (gray) and a simpler way to the same number (pink).

# %% tags=["remove-stderr"]
what = study.description if study.truth is not None else "Measured data"
caption = (
    f"{what}: {', '.join(study.lineages)}; a model of {n_parameters:,} parameters. "
    "Thick lines: 95% intervals (between replicates: the range). "
    "All numbers are computed in the build."
)
shown = HTML(overview.overview_html(answers.answers(study), caption))
# The first page of the book shows this output, which it finds by the name.
display(shown, metadata={"scrapbook": {"name": "overview", "mime_prefix": ""}})

# %% [markdown]
# - **Does it know?** The count of features that differ between the contexts, by what is taken for a replicate (page 03). *One input held*: with the motif activity, one vector for the whole biosample, made equal in both contexts. *Between replicates*: the same rule where no context differs, so that every call is false.
# - **Does it use it?** The share of the squared gap between the predictions for the two contexts that an intervention closes, on chromosomes where nothing was chosen (page 04).
# - **Can we read it?** The share of features whose regions hold a known motif more often than places of the same GC content and accessibility (page 05).
#
# ## What did not come out
#
# Not finding the motif of a factor that acts in both contexts is no failure: such factors are planted as decoys.

# %% tags=["remove-stderr"]
ledger = claims.claim_ledger(study)
negative = ("no ", "not ", "does not", "closes nothing", "the SAE is not")
failed = ledger[ledger["verdict"].str.startswith(negative)]
decoy = failed["same quantity?"].str.endswith("truth here: lineage")
note = decoy.map({True: " This is a decoy: the right answer.", False: ""})
lines = (
    "- " + failed["claim"] + ": **" + failed["verdict"] + "** (" + failed["here"] + ")."
)
display(Markdown("\n".join(lines + note) or "Every claim below came out."))

# %% [markdown]
# ## All claims
#
# Square brackets hold 95% intervals from resampled genomic blocks of chromosomes that were not used to choose anything.
# `d_z` is the mean effect in units of its standard deviation over windows; $p$ compares with matched random sets of features.

# %% tags=["hide-input"]
ledger.to_parquet(study.run.path("claims.parquet"))
interval = ledger["interval"].where(
    ledger["interval"] == "", " [" + ledger["interval"] + "]"
)
table = ledger.assign(here=ledger["here"] + interval)
framed = 'class="dataframe"'
columns = ["claim", "published", "here", "verdict"]
table[columns].style.hide(axis="index").set_table_attributes(framed)

# %% [markdown]
# Two numbers can only agree or disagree if they measure the same thing.
# Of the papers the abstracts alone could be read, so for most of them this is not known.

# %% tags=["hide-input"]
same = ledger.groupby("same quantity?", sort=False)["claim"].agg("; ".join)
same.reset_index().style.hide(axis="index").set_table_attributes(framed)

# %% [markdown]
# ## The ground the claims stand on
#
# A dictionary can only be as meaningful as the model it was trained on, and a list of context features only as good as the score that called them.
# `r` is Pearson's correlation of predicted and measured signal, on a log scale, at hidden tokens of chromosomes that the model has not seen.

# %%
pd.Series(claims.headline(study), name="value").to_frame()

# %% [markdown]
# ## Sanity checks

# %%
assert len(ledger) >= 6
assert ledger["verdict"].str.len().min() > 0

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
text = [
    f"- **{len(failed)} of {len(ledger)}** rows did not come out; they are listed first."
]
text += [f"- **{a.question}** {a.verdict}" for a in answers.answers(study)]
display(Markdown("\n".join(text)))

# %% [markdown]
# ## Limits
#
# - Only the abstracts of the papers could be read: where the second table says *unknown*, no agreement can be claimed.
# - Few pairs describe their own biosamples, not cell lines and tissues in general.
# - A verdict compares with the claim's direction, not with its size.
#
# ## Exercises
#
# 1. Which rows would change if the gap were measured as a length instead of a square?
# 2. Why is a ratio to random not given where random closes nothing?
#
# <details><summary>Answers</summary>
#
# 1. Only the steering rows: a share $g$ of squared error is a share $1 - \sqrt{1 - g}$ of length.
# 2. Its denominator is then noise around zero, and the ratio can take any value.
#
# </details>
