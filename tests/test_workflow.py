"""The workflow plans the jobs it should; where SLURM is, they run on it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SNAKEMAKE = shutil.which("snakemake")
needs_snakemake = pytest.mark.skipif(
    SNAKEMAKE is None, reason="the extra 'workflow' is not installed"
)


def plan(*config):
    """Return what a dry run in the checkout says."""
    done = subprocess.run(
        [
            *(SNAKEMAKE, "-n", "-p", "--forceall", "--cores", "1"),
            *("--snakefile", "workflow/Snakefile", "--config", *config),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
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
    done = subprocess.run(
        [
            *(SNAKEMAKE, "-n", "--cores", "1", "--snakefile", "workflow/Snakefile"),
            *("--config", "tissues=['../evil; rm -rf x']"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0


def test_profiles_are_read_as_settings():
    profiles = sorted((ROOT / "workflow" / "profiles").glob("*/config.yaml"))
    assert {path.parent.name for path in profiles} >= {"local", "slurm", "kubernetes"}
    for path in profiles:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert settings["snakefile"] == "workflow/Snakefile"
        assert settings["rerun-incomplete"] is True
