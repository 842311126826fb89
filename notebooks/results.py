# %% [markdown]
# # Results beside the published numbers
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/results.ipynb)
#
# What did two workshop papers report {cite}`context2026genbio,context2026mechinterp`, and what does this run find?
# Every value on this page is read from the tables that the earlier pages made.
#
# **Objectives**
#
# - Put each published claim beside the same quantity here, or say that it is not the same.
# - Say on which data and which model ours was measured.
# - State what did not come out, first.
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
run: str = "_build/runs/simulated"  # folder of artefacts
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
from IPython.display import Markdown, display

from helpers import claims, stages

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
# ## What did not come out

# %% tags=["remove-stderr"]
ledger = claims.claim_ledger(study)
negative = ("no ", "not ", "does not", "closes nothing", "the SAE is not")
failed = ledger[ledger["verdict"].str.startswith(negative)]
lines = [
    f"- {row.claim}: **{row.verdict}** ({row.here})." for row in failed.itertuples()
]
display(Markdown("\n".join(lines) or "Every claim below came out."))

# %% [markdown]
# ## All claims
#
# Intervals are 95 %, from resampled genomic blocks of chromosomes that were not used to choose anything.

# %%
ledger.to_parquet(study.run.path("claims.parquet"))
with pd.option_context("display.max_colwidth", None):
    display(ledger.style.hide(axis="index"))

# %% [markdown]
# ## The ground the claims stand on
#
# A dictionary can only be as meaningful as the model it was trained on, and a list of context features only as good as the score that called them.

# %%
pd.Series(claims.headline(study), name="value").to_frame()

# %% [markdown]
# ## Sanity checks

# %%
assert len(ledger) >= 6
assert ledger["verdict"].str.len().min() > 0

# %% [markdown]
# ## Limits
#
# - Only the abstracts of the papers could be read: where the third column says *unknown*, no agreement can be claimed.
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
