# %% [markdown]
# # What a study costs
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/chromatin-context/blob/main/notebooks/scaling.ipynb)
#
# How long will it take, where will the data go, and what breaks first when three pairs of biosamples become thousands?
# This page measures the parts on the machine that built it, counts how often a study uses them, and puts both into a calculator.
#
# **Objectives**
#
# - Measure what a window, a biosample, a block and a token cost.
# - Count the passes of every stage, those behind the evidence included.
# - Plan a study: device hours, disk, memory, jobs, and what holds it up.
# - See what a second worker brings.
# - Plan 10,000 biosamples on paper, and say what would have to change.
#
# **Needs** nothing.
# **Produces** nothing; all parts are timed here, in less than a minute.

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
# The first three are those of every page and are not used here.

# %% tags=["parameters"]
run: str = "_build/runs/simulated"  # folder of artefacts
data: str = "simulated"  # or a folder of tissue files
tissues: list = []  # which of them; all if empty
blocks: list = []  # transformer blocks; all if empty
seed: int = 0  # of the random inputs that are timed
device: str = "cpu"  # torch device to measure
repeats: int = 5  # of every timing; the median is shown

# %% tags=["remove-stderr"]
import json
import time
from dataclasses import replace
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display

from helpers import costs, figures, sae
from helpers.cds import context_divergence
from helpers.epibert import TOKEN_BP, EpiBERT, EpiBERTConfig
from helpers.figures import scaling
from helpers.small_model import load_small_model
from helpers.stages import sae_config

figures.set_style()
threads_before = torch.get_num_threads()
torch.set_num_threads(1)  # rates of one core: others can be multiplied out
generator = torch.Generator().manual_seed(seed)
published, small = EpiBERTConfig(), load_small_model().to(device)
print(f"device {device} | one thread | seed {seed} | torch {torch.__version__}")

# %% [markdown]
# ## What a pass multiplies
#
# EpiBERT reads a window in two steps.
# The sequence tower runs once per window and serves all biosamples; everything else runs once per window and biosample.
# `costs.forward_flop` counts both from the configuration, a multiplication and an addition as two operations.

# %%
small_at_size = {"small": small.config, "published": published}
parts = pd.DataFrame({k: costs.count_flop(c) for k, c in small_at_size.items()})
per_pass = parts.loc[["towers", "inputs", "blocks", "heads"]] / 1e9
per_pass.index = [
    "sequence tower, per window",
    "inputs, per window and biosample",
    "one block, per window and biosample",
    "head, per window and biosample",
]
per_pass.rename_axis("operations, 1e9").round(3)

# %%
token = {k: parts.loc["blocks", k] / c.n_tokens for k, c in small_at_size.items()}
tower = parts.loc["towers", "published"]
whole = costs.forward_flop(published).sum()
display(
    Markdown(
        f"A block multiplies {token['small'] / 1e3:,.0f} thousand numbers per token in "
        f"the small model and {token['published'] / 1e6:,.1f} million in the published "
        f"one. A published pass takes {whole / 1e12:.2f} × 10¹² operations, "
        f"{tower / whole:.0%} of them in the sequence tower: the second biosample of a "
        f"window costs {1 - tower / whole:.0%} of the first."
    )
)

# %% [markdown]
# Does the count hold?
# Torch counts the operations of a pass as it runs, or on tensors without numbers (`meta`), where a model of the published size takes no time and no memory.
# In evaluation the first layers work on pieces that overlap, so that a little is computed twice.

# %%
from torch.utils.flop_counter import FlopCounterMode


def counted_by_torch(config):
    empty = EpiBERT(config).to("meta").eval()
    shapes = [(1, config.input_length, 4), (1, config.input_length // 4)]
    shapes.append((1, config.n_motifs))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        empty(*(torch.zeros(shape, device="meta") for shape in shapes))
    return counter.get_total_flops()


one_block = replace(published, n_blocks=1)  # others are alike
agreement = {
    name: counted_by_torch(config) / costs.forward_flop(config).sum()
    for name, config in (("small", small.config), ("published, one block", one_block))
}
pd.Series(agreement, name="torch's count over ours").to_frame().round(4)

# %% [markdown]
# ## What that takes on this machine
#
# First the rate at which one core multiplies matrices of the shapes that occur, which no model can beat.
# Then the small model on 16 windows, and the published widths on a window of 64 tokens: all layers are linear in the length, so that 64 tokens are enough to learn the rate.
# Wall time is what one waits; CPU time is what the process got, and is steadier where others share the machine.

# %%
synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def timed(task):
    seconds = []
    for _ in range(repeats + 1):
        synchronize()
        before = time.perf_counter(), time.process_time()
        task()
        synchronize()
        seconds.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return np.median(seconds[1:], axis=0)  # the first warms up


def inputs_of(config, n):
    bases = torch.randint(4, (n, config.input_length), generator=generator)
    return [
        torch.nn.functional.one_hot(bases, 4).float().to(device),
        torch.rand(n, config.input_length // 4, generator=generator).to(device),
        torch.rand(n, config.n_motifs, generator=generator).to(device),
    ]


# %%
left, right = (torch.randn(1024, 1024, generator=generator) for _ in range(2))
left, right = left.to(device), right.to(device)
matmul = timed(lambda: left @ right)
rate = 2 * 1024**3 / matmul  # operations per second of wall and CPU time
print(f"matrix products: {rate[0] / 1e9:.0f} GFLOP/s wall, {rate[1] / 1e9:.0f} CPU")


# %%
@torch.no_grad()
def part_seconds(model, n):
    sequence, atac, motif = inputs_of(model.config, n)
    features = model.encode_sequence(sequence)
    stream = model.encode_context(features, atac, motif)
    tasks = {
        "towers": lambda: model.encode_sequence(sequence),
        "inputs": lambda: model.encode_context(features, atac, motif),
        "blocks": lambda: model.run_blocks(stream, 0, 1),
        "heads": lambda: model.head(stream),
    }
    return pd.DataFrame({k: timed(task) / n for k, task in tasks.items()}).T


short = replace(published, input_length=64 * TOKEN_BP, n_blocks=1)
models = {"small": (small, 16), "published": (EpiBERT(short).to(device).eval(), 1)}
rows = []
for name, (model, n) in models.items():
    flop = costs.count_flop(model.config)
    scale = small_at_size[name].n_tokens / model.config.n_tokens  # to a whole window
    for part, (wall, cpu) in part_seconds(model, n).iterrows():
        row = {"model": name, "part": part, "wall, ms": 1e3 * scale * wall}
        row |= {"CPU, ms": 1e3 * scale * cpu, "GFLOP/s": flop[part] / cpu / 1e9}
        rows.append(row | {"share": flop[part] / cpu / rate[1]})
timings = pd.DataFrame(rows).set_index(["model", "part"])
timings.rename(columns={"share": "share of the product rate"}).round(3)

# %%
of_window = {
    name: table["CPU, ms"].droplevel(0) for name, table in timings.groupby(level=0)
}


def one_pass(name):
    table = of_window[name]
    return table @ pd.Series(
        {"towers": 1, "inputs": 1, "blocks": small_at_size[name].n_blocks, "heads": 1}
    )


sustained = {k: parts_flop / one_pass(k) * 1e3 for k, parts_flop in (
    (name, costs.forward_flop(config).sum()) for name, config in small_at_size.items()
)}
efficiency = {name: value / rate[1] for name, value in sustained.items()}
display(
    pd.DataFrame(
        {
            name: {
                "window, sequence tower (ms)": of_window[name]["towers"],
                "biosample, all blocks and head (ms)": one_pass(name)
                - of_window[name]["towers"],
                "block (ms)": of_window[name]["blocks"],
                "token and block (µs)": 1e3
                * of_window[name]["blocks"]
                / config.n_tokens,
                "whole pass (ms)": one_pass(name),
                "share of the product rate": efficiency[name],
            }
            for name, config in small_at_size.items()
        }
    ).round(3)
)

# %% [markdown]
# The column *published* is scaled up from 64 tokens; nobody waited for the whole window here.
# `benchmarks/epibert_full_size.py` does, and runs on a GPU with `--device cuda`.

# %% [markdown]
# ## Disk, per token and block
#
# A stream is stored in half precision: two bytes for each number of a token, for each block, window and biosample.

# %%
import tempfile
from pathlib import Path

from helpers.activations import ActivationStore

n_windows = 8
windows = pd.DataFrame({"chrom": "chr1", "start": np.arange(n_windows) * 8192})
windows = windows.assign(end=windows["start"] + 8192, split="select", block="chr1")
sizes = {"n_tokens": small.config.n_tokens, "d_model": small.config.d_model}
noise = torch.randn(n_windows, *sizes.values(), generator=generator)
with tempfile.TemporaryDirectory() as folder:
    store = ActivationStore.create(
        Path(folder) / "streams.zarr",
        biosamples=["one"],
        windows=windows,
        layers=[0],
        model_hash="none",
        **sizes,
    )
    store.write(0, "one", slice(0, n_windows), noise)
    store.mark_complete(slice(0, n_windows))
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files if "layer" in str(path))
n_values = noise.numel()
of_stream = {k: 2 * c.n_tokens * c.d_model / 1e6 for k, c in small_at_size.items()}
display(
    Markdown(
        f"{on_disk / n_values:.3f} bytes per number were written here. A window of one "
        f"biosample and block is {of_stream['small']:.3f} MB in the small model and "
        f"{of_stream['published']:.2f} MB in the published one; its feature activations, "
        "if they were stored, would be eight times as many numbers. They are not: window "
        "means are made as tokens are encoded."
    )
)

# %% [markdown]
# ## Dictionaries and scores
#
# A training step encodes a batch with the whole dictionary; what follows touches active features only, or, in bfloat16, multiplies once more.
# So its time grows with the number of tokens times the number of features.

# %%
d_in, n_rows = 256, 2048
batch = torch.randn(n_rows * 8, d_in, generator=generator).to(device)
steps = []
for d_sae in (512, 1024, 2048):
    settings = sae.SAEConfig(d_sae=d_sae, k=16, batch_size=n_rows, n_epochs=2)
    marks = []
    sae.train(
        batch,
        settings,
        heldout=batch[:512],
        progress=lambda _, marks=marks: marks.append(time.process_time()),
    )
    step = np.median(np.diff(marks[4:]))
    flop = 4 * d_in * d_sae * n_rows
    steps.append((d_sae, 1e3 * step, 1e6 * step / n_rows, flop / step / rate[1]))
columns = ["features", "step (CPU ms)", "token (µs)", "share of the product rate"]
training = pd.DataFrame(steps, columns=columns).set_index("features")
training.round(3)

# %% [markdown]
# The rate is that of float32 products, so that a core with units for bfloat16 can exceed one.
# The score works on window means, not on tokens: its cost does not depend on the length of a window.

# %%
design = pd.DataFrame(
    [(f"{x}{c}", x, c) for x in "abc" for c in ("in_vitro", "in_vivo")],
    columns=["biosample", "lineage", "context"],
)
means = np.random.default_rng(seed).random((6, 192, 512), dtype=np.float32)
start = time.process_time()
context_divergence(means, design, np.repeat(np.arange(48), 4), n_flips=2000)
score_seconds = time.process_time() - start
print(f"{1e3 * score_seconds / 512:.2f} CPU ms per feature, with 2,000 sign flips")

# %% [markdown]
# ## How often a study uses them
#
# The evidence of page 03 does not come from the stored streams.
# Every biosample runs again with its own motif activity and with the one its pair shares, and every pair runs with its inputs exchanged: the passes read what the model makes of *chosen* inputs.
# Equal passes run once, which leaves
#
# $$n_\text{passes} = 2\, n_\text{biosamples} + 2\, n_\text{tissues}$$
#
# per `select` window, replicates being biosamples.


# %%
def work_of(stage, **given):
    found = costs.stage_work(stage, windows=96, tissues=3, **given)
    return {"passes": found["blocks"] / (48 * published.n_blocks)} | found


passes = {}
for n in (2, 6):
    work = costs.stage_counts(tissues=3, windows=96, biosamples=n)
    held = work.loc["evidence, last block again", "blocks"]
    passes[n] = work.loc["evidence", "blocks"]
