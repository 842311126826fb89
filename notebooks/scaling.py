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
    if "/OWNER/" in source:
        raise ValueError("no address yet: write the project's GitHub owner for OWNER")
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source])
    importlib.invalidate_caches()

# %% [markdown]
# Change these and run all; papermill sets them from outside.
# The first three are those of every page and are not used here.

# %% tags=["parameters"]
run: str = "_build/runs/simulated"  # folder of artifacts
data: str = "simulated"  # or a folder of tissue files
tissues: list = []  # which of them; all if empty
blocks: list = []  # transformer blocks; all if empty
seed: int = 0  # of the random inputs that are timed
device: str = "cpu"  # torch device to measure
repeats: int = 5  # of every timing; the median is shown

# %% tags=["remove-stderr"]
import json
import tempfile
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display
from torch.utils.flop_counter import FlopCounterMode

from helpers import causal, costs, figures, sae
from helpers.activations import ActivationStore
from helpers.cds import context_divergence
from helpers.epibert import TOKEN_BP, EpiBERT, EpiBERTConfig
from helpers.figures import scaling
from helpers.small_model import load_small_model
from helpers.stages import sae_config


def significant(x):  # three digits
    return x if isinstance(x, str) else f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


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
per_pass.rename_axis("operations, 1e9").map(significant)

# %% tags=["hide-input"]
token = {k: parts.loc["blocks", k] / c.n_tokens for k, c in small_at_size.items()}
tower = parts.loc["towers", "published"]
whole = costs.forward_flop(published).sum()
display(
    Markdown(
        f"A block takes {token['small'] / 1e3:,.0f} thousand operations per token in the "
        f"small model and {token['published'] / 1e6:,.1f} million in the published "
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
        seconds.append(
            (time.perf_counter() - before[0], time.process_time() - before[1])
        )
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
timings.rename(columns={"share": "share of the product rate"}).map(significant)

# %% tags=["hide-input"]
of_window = {
    name: table["CPU, ms"].droplevel(0) for name, table in timings.groupby(level=0)
}


def one_pass(name):
    table = of_window[name]
    return table @ pd.Series(
        {"towers": 1, "inputs": 1, "blocks": small_at_size[name].n_blocks, "heads": 1}
    )


efficiency = {
    name: costs.forward_flop(config).sum() / (one_pass(name) / 1e3) / rate[1]
    for name, config in small_at_size.items()
}
display(
    pd.DataFrame(
        {
            name: {
                "window, sequence tower (ms)": of_window[name]["towers"],
                "biosample, all blocks and head (ms)": one_pass(name)
                - of_window[name]["towers"],
                "block (ms)": of_window[name]["blocks"],
                "token and block (µs)": of_window[name]["blocks"]
                / config.n_tokens
                * 1e3,
                "whole pass (ms)": one_pass(name),
                "share of the product rate": efficiency[name],
            }
            for name, config in small_at_size.items()
        }
    ).map(significant)
)

# %% [markdown]
# The column *published* is scaled up from 64 tokens; nobody waited for the whole window here.
# `benchmarks/epibert_full_size.py` does, and runs on a GPU with `--device cuda`.

# %% [markdown]
# ## Disk, per token and block
#
# A stream is stored in half precision: two bytes for each number of a token, for each block, window and biosample.

# %%
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

# %% tags=["hide-input"]
passes = {}
for n in (2, 6):
    found = costs.plan(tissues=3, windows=96, biosamples=n)
    passes[n] = found.counts.loc["evidence", "blocks"] / (48 * published.n_blocks)
extracted = found.counts.loc["extraction", "blocks"] / (96 * published.n_blocks)
display(
    Markdown(
        f"With three pairs that is {passes[2]:.0f} passes of each `select` window, and "
        f"{passes[6]:.0f} with two replicates of every biosample. "
        f"Extraction needs {extracted:.0f}."
    )
)

# %% [markdown]
# Below is every stage of three pairs and 96 windows, counted from the constants of the code.
# `costs.count_passes` counts them in a model as it runs; the tests compare both, stage by stage, down to the last window.

# %%
study = costs.plan(tissues=3, windows=96)
work = study.counts[["towers", "blocks", "gradients", "encoded", "trained"]].copy()
work["blocks"] += work.pop("gradients")
work["blocks"] /= 96 * 6 * published.n_blocks
work[["encoded", "trained"]] /= 96 * 6 * published.n_tokens * 8192
work["towers"] /= 96
names = {
    "towers": "sequence tower (× windows)",
    "blocks": "blocks (× all of an extraction)",
    "encoded": "encoded (× tokens and features of a block)",
    "trained": "trained (× the same)",
}
work.rename(columns=names).round(2)

# %% tags=["hide-input"]
n_random = sum(sum(sets.values()) for sets in causal.N_RANDOM.values())
display(
    Markdown(
        f"Causal tests run {work.loc['causal', 'blocks']:.0f} times the blocks of an "
        f"extraction: {study.table.loc['causal', 'pflop'] / study.totals['pflop']:.0%} "
        f"of all arithmetic. Each effect is compared with {n_random} random sets of "
        "features, for every block, lineage and direction."
    )
)

# %% [markdown]
# ## A calculator
#
# `costs.plan` multiplies these counts by operations and bytes.
# The form below does the same in the page; it works offline and without a kernel.
#
# - A device is given by its peak and by the share of it that is sustained. The 312 TFLOP/s are what the maker states of an A100 in bfloat16; the 30% are an assumption, so measure yours.
# - Each width and each seed is a run of its own; runs share the streams.
# - The workflow makes *a run for each block*. That gives more jobs, but passes that start from the inputs are made for every block.
# - *Shards* cut the windows into jobs of their own. The workflow makes one.
# - Streams that are not *stored*, fewer *training tokens* and fewer *tissues of causal tests* describe changes, not what the stages do today.

# %% tags=["hide-input"]
display(HTML(scaling.calculator()))

# %% [markdown]
# The same in Python, for one core of this machine in float32:

# %%
here = costs.plan(
    tissues=3,
    windows=96,
    peak_tflops=rate[1] / 1e12,
    efficiency=efficiency["published"],
)
columns = ["pflop", "device_hours", "kept_gb", "memory_gb"]
display(here.table[columns].round(2), Markdown(f"Slowest: {here.bottleneck}."))

# %% [markdown]
# ## What a second worker brings
#
# Weak scaling keeps the work of a worker and doubles the workers.
# Two train one dictionary on batches of twice the rows, exchanging sums after every step; or each extracts windows of its own, exchanging nothing.
# `benchmarks/weak_scaling.py` lets one and two take turns, a core each; its repeats are read here, since a page that is built beside other work would measure the other work.

# %% tags=["hide-input"]
folder = resources.files("helpers") / "resources" / "weak_scaling"
points = pd.read_csv(folder / "points.csv")
made = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
spread = points.groupby(["task", "clock"], sort=False)["efficiency"]
spread = spread.agg(median="median", smallest="min", largest="max")
display(
    spread.round(2),
    Markdown(
        f"{points['repeat'].nunique()} repeats of {made['date']} on {made['machine']}, "
        f"load average {made['load_average_at_start']} at the start."
    ),
)

# %% mystnb={"figure": {"caption": "Efficiency of two workers with twice the work, by task: points are repeats, bars medians. Two workers of one machine share memory and caches; wall time also holds what else ran.", "name": "fig-weak-scaling"}, "image": {"alt": "Dot plot with a line for training and one for extraction; points of wall and CPU time beside a dotted line at one, which stands for no loss."}}
scaling.weak_scaling(points)
plt.show()

# %% [markdown]
# Wall time is what counts, and suffers from what else runs; CPU time leaves out waiting, also for the other worker.
# Both workers share memory bandwidth here; on two machines they would share a network instead, which this does not measure.

# %% [markdown]
# ## 10,000 biosamples, on paper
#
# 5,000 pairs, 96 windows, the eight blocks of the published model, 8,192 features a block.
# Every line changes one more thing.

# %%
large = {"tissues": 5000, "windows": 96}
changes = {
    "as the stages are": {},
    "streams not stored, 10 M tokens": {
        "keep_streams": False,
        "training_tokens": 10_000_000,
    },
    "causal tests on 30 pairs": {"causal_tissues": 30},
    "16 devices": {"devices": 16},
    "16 shards": {"shards": 16},
    "a run for each block": {"fan_out": True},
}
plans, given = {}, dict(large)
for name, change in changes.items():
    given |= change
    plans[name] = costs.plan(**given)
ladder = pd.DataFrame({name: found.totals for name, found in plans.items()}).T
ladder = ladder[["pflop", "device_hours", "kept_gb", "memory_gb", "jobs", "wall_hours"]]
passed = [found.counts["blocks"].sum() / published.n_blocks for found in plans.values()]
ladder.insert(0, "passes (million)", np.array(passed) / 1e6)
ladder["bottleneck"] = [found.bottleneck for found in plans.values()]
names = {"device_hours": "device hours", "wall_hours": "wall hours"}
names |= {"kept_gb": "disk (GB)", "memory_gb": "memory (GB)", "pflop": "PFLOP"}
ladder.rename(columns=names).map(significant)

# %% mystnb={"figure": {"caption": "Wall time, disk and the largest array of a job for 10,000 biosamples, one change after the other from top to bottom. Not storing streams saves disk, testing effects on some pairs saves time; more devices alone save little, because a stage of one job cannot use them.", "name": "fig-ten-thousand"}, "image": {"alt": "Three dot plots on logarithmic axes with a point for each of six plans, joined by a line: wall hours, disk and memory of a job."}}
figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.2), sharey=True)
scaling.plan_ladder(plans, panels)
plt.show()

# %% mystnb={"figure": {"caption": "Device hours by stage: three pairs, 10,000 biosamples as the stages are, and with the changes. Causal tests grow with the square of the pairs, because features of each lineage are tried in every other.", "name": "fig-stage-hours"}, "image": {"alt": "Dot plot on a logarithmic axis, one line per stage and one marker per plan; the causal stage of the unchanged plan lies far to the right."}}
chosen = {
    "3 pairs": study,
    "5,000 pairs, as the stages are": plans["as the stages are"],
}
scaling.stage_hours(
    chosen | {"with the first two changes": plans["causal tests on 30 pairs"]}
)
plt.show()

# %% tags=["hide-input"]
first, second, third, *_, last = plans.values()
streams_tb = first.table.loc["extraction", "kept_gb"] / 1e3
summaries = second.table.loc["scores", "kept_gb"]
stage = second.counts.loc["dictionaries"]
spliced = stage["blocks"] * costs.count_flop(published)["blocks"] / 1e15
spliced /= second.table.loc["dictionaries", "pflop"]
few, many = study.table["pflop"], first.table["pflop"]
times = large["tissues"] / 3
display(
    Markdown(f"""
What would have to change, in the order in which it hurts:

1. **Causal tests.** They take {first.table.loc["causal", "device_hours"]:,.0f} of {first.totals["device_hours"]:,.0f} device hours: {many["causal"] / few["causal"]:,.0f} times those of three pairs, for {times:,.0f} times the pairs. Every lineage's own features are tried in every lineage, which is quadratic. Effects of a sample of pairs answer the same question: with 30 of them all stages together take {third.totals["device_hours"]:,.0f} hours.
2. **Streams.** Stored, they are {streams_tb:,.0f} TB, and training reads them {sae_config(published.d_model).n_epochs} times. The evidence passes already encode streams as the model makes them and keep window means; scores can do the same. Then extraction runs {second.table.loc["extraction", "pflop"] / first.table.loc["extraction", "pflop"]:.1f} times the arithmetic, and disk holds {second.totals["kept_gb"] / 1e3:,.1f} TB, {summaries / 1e3:,.1f} of them window means.
3. **Memory.** Control dictionaries and other trainings hold their rows in memory, {first.totals["memory_gb"] / 1e3:,.1f} TB as they are and {second.table.loc["controls", "memory_gb"]:,.0f} GB for 10 million tokens; window means of all blocks at once are {second.table.loc["scores", "memory_gb"]:,.0f} GB, {last.table.loc["scores", "memory_gb"]:,.0f} GB block by block.
4. **Cards.** Loss recovered is measured on every biosample: with 10 million training tokens it is {spliced:.0%} of the arithmetic of dictionaries. A sample of biosamples would do.
5. **Jobs.** With 16 devices and nothing else, {plans["16 devices"].totals["wall_hours"]:,.0f} of {third.totals["wall_hours"]:,.0f} hours remain: a stage of one job uses one device. Runs for each block bring {last.totals["wall_hours"]:,.0f} hours, at {last.totals["device_hours"] / third.totals["device_hours"]:.1f} times the device hours, since every run trains its own controls.
""")
)

# %% [markdown]
# ## Sanity checks

# %%
assert all(1 <= share < 1.01 for share in agreement.values())
assert [passes[2], passes[6]] == [2 * 6 + 2 * 3, 2 * 18 + 2 * 3]
assert on_disk / n_values < 2.1
assert (ladder["device_hours"] > 0).all()
assert points["repeat"].nunique() >= 3
torch.set_num_threads(threads_before)
print("all hold")

# %% [markdown]
# ## Key takeaways

# %% tags=["hide-input"]
median = spread["median"]
takeaways = f"""
- The sequence tower is {tower / whole:.0%} of a published pass and runs once per window: the more biosamples share it, the better.
- Three pairs take {study.totals["pflop"]:,.0f} PFLOP, {study.table.loc["causal", "pflop"] / study.totals["pflop"]:.0%} of them causal tests, and {study.totals["kept_gb"]:,.0f} GB of disk, {study.table.loc["extraction", "kept_gb"] / study.totals["kept_gb"]:.0%} of it streams.
- Two workers with twice the work keep {median["dictionary", "wall"]:.0%} of the speed in training ({median["dictionary", "cpu"]:.0%} by CPU time) and {median["extraction", "wall"]:.0%} in extraction ({median["extraction", "cpu"]:.0%}), under the load named above.
- 10,000 biosamples are held up by the stage *{first.bottleneck.split(":")[0]}*; the first two changes take {first.totals["device_hours"]:,.0f} device hours to {third.totals["device_hours"]:,.0f}.
"""
display(Markdown(takeaways))

# %% [markdown]
# ## Limits
#
# - No GPU was timed. The efficiency of a device is an input of the calculator, and its default an assumption.
# - The plan for 10,000 biosamples has not been run, and the changes it names have not been made.
# - Left out: downloads and reading of inputs, scanning for motifs, statistics on window means, steps of the short dictionaries of page 02, what a dictionary multiplies for active features only, and streams that causal tests would have to make again where none are stored.
# - The plan counts at most: a block without context features has no causal tests, and sets are smaller where few features are significant.
# - Stages are added up one after the other; the workflow runs causal tests and annotation side by side.
# - Timings are those of a machine that other work may share; compare CPU times, not wall times.
#
# ## Exercises
#
# 1. Your cluster has eight devices and 2 TB of disk. How many pairs can you study with 96 windows, as the stages are?
# 2. Which costs more, twice the windows or twice the biosamples?
#
# <details><summary>Answers</summary>
#
# 1. Disk decides: set the tissues so that the sum of *disk, GB* stays below 2,000. Each pair adds the same, so divide by what three pairs take.
# 2. Twice the windows runs the sequence tower twice as often, so extraction costs more; but causal tests look at a fixed number of windows and at every pair, so the study as a whole costs more with twice the pairs. Try both in the calculator.
#
# </details>
