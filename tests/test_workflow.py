"""The workflow plans the jobs it should, and its jobs make the same tables anywhere.

The slow tests fan out two tissues over three blocks of a small world: on this machine,
where Snakemake is killed half-way and started again, and through a real SLURM, which
they start on loopback where its Debian packages are installed and the user is root.
They end at the score; ``WORKFLOW_UNTIL=results`` runs the whole chain, in 20 minutes.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers.epibert import EpiBERT, EpiBERTConfig

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
SNAKEMAKE = shutil.which("snakemake", path=PROGRAMS)
PAPERMILL = shutil.which("papermill", path=PROGRAMS)
SLURM = ROOT / "workflow" / "slurm-on-this-machine.sh"
SETTINGS = Path("/etc/slurm/slurm.conf")
TISSUES, BLOCKS = ("blood", "liver"), (0, 1, 2)
UNTIL = os.environ.get("WORKFLOW_UNTIL", "score")
PAGES = {"score": ("02_sae", "03_cds")}  # of a block
PAGES["results"] = (*PAGES["score"], "04_causal", "05_annotation", "results")
needs_snakemake = pytest.mark.skipif(
    SNAKEMAKE is None or PAPERMILL is None,
    reason="the extra 'workflow' is not installed",
)


def environment():
    """Return variables under which jobs run this checkout."""
    source = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PATH": PROGRAMS, "PYTHONPATH": source.rstrip(os.pathsep)}


def snakemake(*arguments, folder=ROOT):
    return subprocess.run(
        [SNAKEMAKE, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def plan(*config):
    """Return what a dry run in the checkout says."""
    done = snakemake(
        *("-n", "-p", "--forceall", "--cores", "1"),
        *("--snakefile", "workflow/Snakefile", "--config", *config),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@needs_snakemake
def test_jobs_fan_out_over_tissues_seeds_and_blocks():
    said = plan("tissues=[kidney]", "seeds=[0, 7]", "blocks=[1, 2, 3]")
    counts = dict(re.findall(r"^(\w+) +(\d+)$", said, re.M))
    per_block = {"dictionary", "score", "causal", "annotation", "results"}
    assert {name: counts[name] for name in per_block} == dict.fromkeys(per_block, "6")
    assert counts["extraction"] == "1"


@needs_snakemake
def test_a_job_is_the_call_a_person_would_make():
    said = plan("tissues=[kidney]", "seeds=[7]", "blocks=[2]")
    calls = re.findall(
        r"papermill .* -f (\S+) -y '(.*)' (\S+\.ipynb) (\S+) && cp (\S+) (\S+)", said
    )
    assert len(calls) == 6
    for tissue, parameters, notebook, log, same, output in calls:
        assert (ROOT / tissue).is_file()
        assert (ROOT / notebook).is_file()
        assert log == same != output
        values = json.loads(parameters)
        assert values["streams"] == "_build/runs/kidney"
        alone = values["run"] == values["streams"]
        assert alone == notebook.endswith("01_extraction.ipynb")
        assert values["seed"] == 7
        assert values["blocks"] == [2]


@needs_snakemake
def test_names_that_are_no_names_are_refused():
    done = snakemake(
        *("-n", "--cores", "1", "--snakefile", "workflow/Snakefile"),
        *("--config", "tissues=['../evil; rm -rf x']"),
    )
    assert done.returncode != 0


def test_profiles_are_read_as_settings():
    profiles = sorted((ROOT / "workflow" / "profiles").glob("*/config.yaml"))
    assert {path.parent.name for path in profiles} >= {"local", "slurm", "kubernetes"}
    for path in profiles:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert settings["snakefile"] == "workflow/Snakefile"
        assert settings["rerun-incomplete"] is True


@pytest.fixture(scope="module")
def small_tissues(small_world, small_dataset, tmp_path_factory):
    """Tissue files by name: a small world, an untrained model of three blocks."""
    config = EpiBERTConfig(
        input_length=small_dataset.window_bp,
        n_heads=2,
        n_blocks=len(BLOCKS),
        sequence_filters=(16,) * 6,
        n_motifs=small_dataset.motif_activity.shape[1],
        n_random_features=32,
    )
    model = tmp_path_factory.mktemp("workflow") / "model"
    EpiBERT(config, random_state=3).save_pretrained(model)
    folder = small_world.folder / "tissues"

    def absolute(value):
        if isinstance(value, dict):
            return {key: absolute(entry) for key, entry in value.items()}
        if isinstance(value, str) and value.startswith("../"):
            return str((folder / value).resolve())
        return value

    contents = {}
    for name in TISSUES:
        content = yaml.safe_load((folder / f"{name}.yml").read_text())
        content["replicates"] = []  # a placebo contrast costs as much as the contrast
        own = {"data": f"notebooks/tissues/{name}.yml", "model": str(model)}
        contents[name] = absolute(content) | own
    # A tissue file that papermill takes and the first notebook refuses.
    contents["broken"] = contents["blood"] | {"model": "nowhere"}
    return contents


def project(folder, tissues):
    """Make a project folder of the checkout's workflow and notebooks, and tissues."""
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    (folder / "notebooks" / "tissues").mkdir(parents=True)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, folder / "notebooks")
    for name, content in tissues.items():
        path = folder / "notebooks" / "tissues" / f"{name}.yml"
        path.write_text(yaml.safe_dump(content))
    return folder


def arguments(profile, tissues):
    """Return the call of a person."""
    config = (f"tissues={json.dumps(tissues)}", f"blocks={json.dumps(BLOCKS)}")
    return (
        *("--profile", f"workflow/profiles/{profile}", "--until", UNTIL),
        *("--config", *config),
    )


def outputs(folder):
    return {
        str(path.relative_to(folder / "_build" / "workflow"))
        for path in (folder / "_build" / "workflow").rglob("*.ipynb")
        if "logs" not in path.parts
    }


EXPECTED = {f"{tissue}/01_extraction.ipynb" for tissue in TISSUES} | {
    f"{tissue}/seed0/block{block}/{page}.ipynb"
    for tissue in TISSUES
    for block in BLOCKS
    for page in PAGES[UNTIL]
}


class Interrupted:
    """A run on this machine that lost its power, and the same call once more."""

    def __init__(self, folder):
        self.folder = folder
        tissues = [*TISSUES, "broken"]
        command = arguments("local", tissues)
        with open(folder / "first.log", "w") as log:
            process = subprocess.Popen(
                [SNAKEMAKE, *command],
                cwd=folder,
                env=environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            while not any("02_sae" in name for name in outputs(folder)):
                assert process.poll() is None, (folder / "first.log").read_text()
                time.sleep(0.2)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.finished_by_then = outputs(folder)
        self.extracted = self.extraction_times()
        self.locked = snakemake(*command, folder=folder)
        snakemake(*command, "--unlock", folder=folder)
        self.second = snakemake(*command, folder=folder)

    def extraction_times(self):
        finished = self.folder.glob("_build/workflow/*/01_extraction.ipynb")
        return {path: path.stat().st_mtime_ns for path in finished}


@pytest.fixture(scope="module")
def interrupted(small_tissues, tmp_path_factory):
    return Interrupted(project(tmp_path_factory.mktemp("local"), small_tissues))


def why_no_slurm():
    """Return why SLURM cannot be used here; nothing if it can."""
    if shutil.which("sbatch") is None or shutil.which("munged") is None:
        return "SLURM is not installed (Debian: apt install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    if SETTINGS.exists() and SLURM.name not in SETTINGS.read_text():
        return f"{SETTINGS} belongs to another SLURM"
    return ""


@pytest.fixture(scope="module")
def undisturbed(small_tissues, tmp_path_factory):
    """The same fan-out, through SLURM if that can be had; else the reason it cannot."""
    tissues = {name: small_tissues[name] for name in TISSUES}
    folder = project(tmp_path_factory.mktemp("undisturbed"), tissues)
    reason = why_no_slurm()
    profile = "local" if reason else "slurm-on-this-machine"
    ours = not reason and not SETTINGS.exists()
    if not reason:  # does nothing where it is running
        started = subprocess.run([SLURM, "start"], capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
    try:
        done = snakemake(*arguments(profile, TISSUES), folder=folder)
    finally:
        if ours:
            subprocess.run([SLURM, "stop"], check=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, reason, done.stderr


def assert_same_results(one, two):
    """Compare tables, dictionaries, summaries and residual streams, bit for bit."""
    runs = [folder / "_build" / "runs" for folder in (one, two)]
    n_compared = 0
    for path in sorted(runs[0].rglob("*")):
        name = path.relative_to(runs[0])
        if not path.is_file() or name.parts[0] not in TISSUES:
            continue
        other = runs[1] / name
        if path.suffix == ".parquet":
            pd.testing.assert_frame_equal(
                pd.read_parquet(path), pd.read_parquet(other), check_exact=True
            )
        elif path.suffix == ".npz":
            with np.load(path) as mine, np.load(other) as theirs:
                assert set(mine) == set(theirs)
                for key in mine:
                    np.testing.assert_array_equal(mine[key], theirs[key])
        elif path.suffix == ".safetensors" or "activations.zarr" in name.parts:
            assert path.read_bytes() == other.read_bytes(), name
        else:
            continue
        n_compared += 1
    names = {str(p.relative_to(runs[1])) for p in runs[1].rglob("cds.parquet")}
    assert names >= {f"{t}/seed0/block{b}/cds.parquet" for t in TISSUES for b in BLOCKS}
    assert n_compared > 100


@pytest.mark.slow
@needs_snakemake
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_tables(
    interrupted, undisturbed
):
    assert interrupted.finished_by_then < EXPECTED
    # Snakemake asks whether the first call is really over.
    assert interrupted.locked.returncode != 0
    assert "--unlock" in interrupted.locked.stderr + interrupted.locked.stdout
    assert outputs(interrupted.folder) == EXPECTED
    now = interrupted.extraction_times()  # finished before the dictionary of a block
    assert interrupted.extracted
    assert {path: now[path] for path in interrupted.extracted} == interrupted.extracted
    assert_same_results(interrupted.folder, undisturbed[0])


@pytest.mark.slow
@needs_snakemake
def test_fan_out_through_slurm_ends_with_the_tables_of_this_machine(
    interrupted, undisturbed
):
    folder, reason, told = undisturbed
    if reason:
        pytest.skip(reason)
    assert outputs(folder) == EXPECTED
    assert told.count("submitted with SLURM jobid") == len(EXPECTED)
    assert_same_results(folder, interrupted.folder)


@pytest.mark.slow
@needs_snakemake
def test_a_failed_notebook_stays_as_log_and_stops_no_other_tissue(interrupted):
    assert interrupted.second.returncode != 0
    folder = interrupted.folder / "_build" / "workflow"
    assert not (folder / "broken" / "01_extraction.ipynb").exists()
    log = folder / "logs" / "broken" / "01_extraction.ipynb"
    assert "nowhere" in log.read_text()
    assert "FileNotFoundError" in log.read_text()
    assert outputs(interrupted.folder) == EXPECTED


@pytest.mark.slow
@needs_snakemake
def test_run_times_are_kept_for_every_job_and_reported(undisturbed):
    folder, reason, _ = undisturbed
    tables = sorted((folder / "_build" / "workflow" / "logs").rglob("*.tsv"))
    assert len(tables) == len(EXPECTED)
    for path in tables:
        assert pd.read_csv(path, sep="\t")["s"].iloc[0] > 0
    profile = "local" if reason else "slurm-on-this-machine"
    command = arguments(profile, TISSUES)
    done = snakemake(*command, "--report", "report.html", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "03_cds" in (folder / "report.html").read_text()
