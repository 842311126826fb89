"""The rule of `make` that executes notebooks, with a stand-in for papermill."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = "07_any_transformer"
MADE = f"_build/book/notebooks/{PAGE}.ipynb"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path):
    """As much of a checkout as the rule looks at, its environment installed."""
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("src/helpers", "notebooks", ".venv", "book"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "notebooks" / f"{PAGE}.ipynb").write_text("{}")
    (tmp_path / "src" / "helpers" / "module.py").touch()
    (tmp_path / ".venv" / ".ready").touch()
    return tmp_path


def run_page(checkout, *says):
    """Execute the page by a program that fails with each of these, and then works."""
    program = checkout / "papermill"
    for k, text in enumerate(says):
        (checkout / f"says{k}").write_text(text)
    program.write_text(
        "#!/bin/sh\n"
        "echo x >> calls; n=$(($(wc -l < calls) - 1))\n"
        'for last; do :; done; echo > "$last"\n'
        'if test -e "says$n"; then cat "says$n"; exit 1; fi\n'
    )
    program.chmod(0o755)
    command = ["make", MADE, "PAPERMILL=./papermill"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, env=env
    )
    return done, (checkout / "calls").read_text().count("x")


def test_a_kernel_that_lost_its_port_starts_again(checkout):
    done, n_calls = run_page(checkout, "ZMQError: Address already in use (addr=...)")
    assert (done.returncode, n_calls) == (0, 2), done.stderr
    assert (checkout / MADE).is_file()


@pytest.mark.parametrize(
    "says", [["ValueError: wrong"], ["Address already in use"] * 2]
)
def test_a_page_that_fails_is_not_tried_for_ever(checkout, says):
    done, n_calls = run_page(checkout, *says)
    assert done.returncode != 0 and n_calls == len(says)
    assert f"error: notebooks/{PAGE}.ipynb failed" in done.stderr
    assert not (checkout / MADE).exists()
