"""Motif activity: a real table of SEA, its rule, and a stand-in for its program."""

import math
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pytest
from scipy import stats

from helpers import motifs
from helpers.motifs import Motif
from helpers.motifs import _peaks as _peak_motifs
from helpers.motifs._sea import (
    best_scores,
    choose_thresholds,
    markov_background,
    sea_hits,
    split_sets,
)
from helpers.windows import Genome, WindowDataset

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SHARED = Path(os.environ.get("CHROMATIN_SHARED_DATA", SHARED))
SEA_TABLE = SHARED / "epibert_examples" / "ENCFF135AEX.motifs.tsv"
ARCHETYPES = SHARED / "vierstra_motif_archetypes" / "consensus_pwms_vierstra.meme"
N_PEAKS, N_BACKGROUND = 45_000, 50_454  # of that table, a tenth held out
real_table = pytest.mark.skipif(
    not (SEA_TABLE.is_file() and ARCHETYPES.is_file()),
    reason=f"no {SEA_TABLE.name} in $CHROMATIN_SHARED_DATA or ../shared/data",
)


def random_motif(width, seed, identifier="M1"):
    rows = np.random.default_rng(seed).dirichlet(np.full(4, 0.3), width)
    return Motif(identifier, identifier, rows)


def read_columns():
    return pd.read_csv(SEA_TABLE, sep="\t", comment="#")


# --- A real table of SEA 5.5.6 ---


@real_table
def test_activity_of_a_real_sea_table():
    values = motifs.read_sea(SEA_TABLE)
    assert list(values.index) == [m.id for m in motifs.read_motifs(ARCHETYPES)]
    assert len(values) == 693
    assert (values.min(), values.max()) == (-6.54, 519.13)
    assert values.min() == round(-math.log(693), 2)  # p = 1: E is the number of motifs
    activity = motifs.motif_activity(values)
    assert (activity.min(), activity.max()) == (0, 1)
    assert activity.mean() == pytest.approx(0.0546, abs=5e-5)
    expected = (values + 6.54) / (519.13 + 6.54)
    np.testing.assert_allclose(activity, expected, atol=1e-12)


@real_table
def test_rows_of_a_table_may_come_in_any_order(tmp_path):
    table = pd.read_csv(SEA_TABLE, sep="\t", comment="#", dtype=str)
    shuffled = table.sample(frac=1, random_state=0)
    shuffled.to_csv(tmp_path / "sea.tsv", sep="\t", index=False)
    pd.testing.assert_series_equal(
        motifs.motif_activity(motifs.read_sea(tmp_path / "sea.tsv")),
        motifs.motif_activity(motifs.read_sea(SEA_TABLE)),
    )


@real_table
def test_set_sizes_follow_from_counts_and_percentages():
    table = read_columns()
    for count, percent, size in (
        (table["TP"], table["TP%"], N_PEAKS),
        (table["FP"], table["FP%"], N_BACKGROUND),
    ):
        candidates = np.arange(40_000, 60_000)[:, None]
        shares = 100 * count.to_numpy() / candidates
        fits = (np.abs(shares - percent.to_numpy()) <= 0.005 + 1e-9).all(axis=1)
        np.testing.assert_array_equal(candidates[fits, 0], [size])


@real_table
def test_sea_table_reproduces_every_number_that_sea_printed():
    real = read_columns().set_index("ID")
    collection = motifs.read_motifs(ARCHETYPES)
    real = real.loc[[motif.id for motif in collection]]
    hits = [
        np.arange(size)[:, None] < real[column].to_numpy()
        for column, size in (("TP", N_PEAKS), ("FP", N_BACKGROUND))
    ]
    made = motifs.sea_table(*hits, collection, thresholds=real["SCORE_THR"].to_numpy())
    made = made.set_index("ID").loc[real.index]
    for column, decimals in (
        ("TP%", 2), ("FP%", 2), ("LOG_PVALUE", 2), ("LOG_EVALUE", 2)
    ):  # fmt: skip
        error = np.abs(made[column] - real[column])
        assert error.max() <= 0.5 * 10.0**-decimals + 1e-9, column
    ratio = [float(f"{value:.3g}") for value in made["ENR_RATIO"]]
    assert ratio == real["ENR_RATIO"].tolist()
    for column in ("PVALUE", "EVALUE"):  # three digits, of rounded logarithms
        np.testing.assert_allclose(made[column], real[column], rtol=0.02)
    # SEA's q-values hold its estimate of the share of nulls, one number for all.
    share = made["LOG_QVALUE"] - real["LOG_QVALUE"]
    assert share.max() - share.min() <= 0.01 + 1e-9
    assert math.exp(-share.mean()) == pytest.approx(real["QVALUE"].max(), abs=2e-3)


@real_table
def test_motifs_that_peaks_do_not_hold_are_zero():
    activity = motifs.motif_activity(motifs.read_sea(SEA_TABLE))
    without = read_columns().query("LOG_EVALUE == 6.54")["ID"]
    assert len(without) > 10
    assert (activity[without] == 0).all() and (activity.drop(without) > 0).all()


# --- Tables ---


def test_sea_table_reproduces_values_of_sea():
    # Counts and results of three motifs in a real SEA 5.5.6 run on K562 ATAC peaks,
    # 45,000 sequences against 50,454 after SEA's hold-out.
    true, false = [1118, 10774, 17671], [124, 8019, 15562]
    peaks = np.arange(45_000)[:, None] < np.array(true)
    background = np.arange(50_454)[:, None] < np.array(false)
    named = [random_motif(10, i, f"AC{i}") for i in range(3)]
    table = motifs.sea_table(peaks, background, named)
    assert list(table["ID"]) == ["AC0", "AC1", "AC2"]
    np.testing.assert_allclose(
        table["LOG_PVALUE"], [-525.67, -491.24, -375.89], atol=0.006
    )
    np.testing.assert_allclose(table["ENR_RATIO"], [10.0, 1.51, 1.27], rtol=0.005)
    np.testing.assert_allclose(table["TP%"], [2.48, 23.94, 39.27], atol=0.006)
    np.testing.assert_allclose(table["LOG_EVALUE"], table["LOG_PVALUE"] + np.log(3))


def test_sea_table_and_sea_output_are_read_alike(tmp_path):
    rng = np.random.default_rng(20)
    named = [random_motif(8, i, f"AC{i:04d}") for i in range(12)]
    peaks, background = rng.random((300, 12)) < 0.3, rng.random((400, 12)) < 0.2
    background[:, 7] = False  # the ratio stays finite
    table = motifs.sea_table(peaks, background, named)
    ratio = table.set_index("ID")["ENR_RATIO"]["AC0007"]
    assert ratio == pytest.approx((peaks[:, 7].sum() + 1) / 301 * 401)
    assert table["LOG_PVALUE"].is_monotonic_increasing
    table.to_csv(tmp_path / "sea.tsv", sep="\t", index=False)
    with (tmp_path / "sea.tsv").open("a") as file:
        file.write("\n# SEA (Simple Enrichment Analysis): Version 5\n# sea --p a.fa\n")
    values = motifs.read_sea(tmp_path / "sea.tsv")
    assert list(values.index) == [motif.id for motif in named]
    column = 4
    counts = [(x[:, column].sum(), (~x[:, column]).sum()) for x in (peaks, background)]
    p = stats.fisher_exact(counts, alternative="greater").pvalue
    assert values["AC0004"] == pytest.approx(-np.log(p * 12))
    activity = motifs.motif_activity(values)
    pd.testing.assert_series_equal(activity, motifs.motif_activity(table))
    assert (activity.min(), activity.max()) == (0, 1)
    assert activity.rank().equals(values.rank())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID\tPVALUE\nA\t1\n", "expected rows with columns ID and LOG_EVALUE"),
        ("ID\tLOG_EVALUE\n", "0 rows"),
        ("ID\tLOG_EVALUE\nA\tx\n", "not a number for motif 'A'"),
        ("ID\tLOG_EVALUE\nA\t1\nA\t2\n", "'A' occurs twice"),
    ],
)
def test_read_sea_names_file_and_motif(tmp_path, text, message):
    path = tmp_path / "broken.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        motifs.read_sea(path)
    assert "broken.tsv" in str(error.value)


def test_motif_activity_is_min_max_in_byte_order_and_needs_variation():
    values = pd.Series([1.0, 3.0, 2.0], index=["B", "C", "A"])
    activity = motifs.motif_activity(values)
    assert list(activity.items()) == [("A", 0.5), ("B", 0.0), ("C", 1.0)]
    with pytest.raises(ValueError, match="vary between motifs"):
        motifs.motif_activity(pd.Series([1.0, 1.0], index=["A", "B"]))


def test_a_table_that_lacks_motifs_is_refused_with_counts(tmp_path, small_dataset):
    tissue = small_dataset.tissues[0]
    table = pd.read_csv(tissue.pair[0].motif_activity, sep="\t")
    n, missing = len(table), table["ID"][3]
    path = tmp_path / "fewer.tsv"
    table.drop(index=3).to_csv(path, sep="\t", index=False)
    fewer = replace(
        tissue, pair=(replace(tissue.pair[0], motif_activity=path), tissue.pair[1])
    )
    message = rf"fewer.tsv: .*\({n}\); found {n - 1}, missing \['{missing}'\]"
    with pytest.raises(ValueError, match=message):
        WindowDataset([fewer], window_bp=small_dataset.window_bp)


# --- SEA's rule ---


def random_codes(n, length, seed):
    return np.random.default_rng(seed).integers(0, 4, (n, length), dtype=np.uint8)


def reference_score(sequence, motif, model, composition):
    """Score the best site by the definition, word by word."""

    def background(strand, i):
        known = []
        for base in strand[max(i - 2, 0) : i][::-1]:
            if base == 4:
                break
            known.insert(0, base)
        return model[len(known)][(*known, strand[i])]

    pseudo = 0.1 * 2**composition
    matrix = np.log2((20 * motif.probabilities + pseudo) / 20.1)
    best = -math.inf
    for strand in (list(sequence), [(3, 2, 1, 0, 4)[b] for b in sequence[::-1]]):
        for start in range(len(strand) - motif.width + 1):
            word = strand[start : start + motif.width]
            if 4 not in word:
                score = sum(
                    matrix[i, base] - background(strand, start + i)
                    for i, base in enumerate(word)
                )
                best = max(best, score)
    return best


def test_markov_background_counts_both_strands():
    codes = np.array([[0, 0, 1, 4, 3]], dtype=np.uint8)  # AACNT
    model = [2**table for table in markov_background(codes)]
    single = np.array([3, 1, 1, 3]) + 1 / 4  # A A C T, T T G A
    np.testing.assert_allclose(model[0], single / single.sum(), rtol=1e-3)
    pairs = np.full((4, 4), 1 / 16)  # AA AC, TT GT
    for first, second in ((0, 0), (0, 1), (3, 3), (2, 3)):
        pairs[first, second] += 1
    expected = pairs / pairs.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model[1], expected, rtol=1e-3)
    triples = np.full((4, 4, 4), 1 / 64)
    triples[0, 0, 1] += 1  # AAC
    triples[2, 3, 3] += 1  # GTT
    expected = triples / triples.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(model[2], expected, rtol=1e-3)


def test_best_scores_equal_the_definition(monkeypatch):
    monkeypatch.setattr("helpers.motifs._sea._ROWS", 4)
    codes = random_codes(9, 30, seed=1)
    codes[np.random.default_rng(2).random(codes.shape) < 0.05] = 4
    codes[3] = 4
    model = markov_background(random_codes(50, 40, seed=3) // 2 * 2)  # A and G only
    composition = np.log2([0.4, 0.1, 0.2, 0.3])
    scanned = [random_motif(w, w, f"M{w}") for w in (12, 5, 7, 5, 31)]
    found = best_scores(codes, scanned, model, composition)
    expected = [
        [reference_score(row.tolist(), m, model, composition) for m in scanned]
        for row in codes
    ]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.isinf(found[3]).all() and np.isinf(found[:, 4]).all()
    assert np.isfinite(found[:3, :4]).all()


@pytest.fixture
def random_sets():
    """The sequences on which SEA 5.5.8 gave the numbers below."""
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, 4, (n, 128)).astype(np.uint8) for n in (400, 500))


def test_best_scores_equal_those_that_sea_prints(random_sets):
    peaks, background = random_sets
    found = best_scores(
        peaks[:4],
        motifs.jaspar_vertebrates()[:5],
        markov_background(background),
        np.log2(np.bincount(peaks.ravel()) / peaks.size),
    )
    printed = {  # its sequences.tsv has scores above 0 only
        (0, 0): 8.99, (2, 0): 5.03, (3, 0): 10.12, (0, 1): 9.88, (2, 1): 4.49,
        (3, 1): 3.08, (0, 3): 5.44, (2, 3): 9.83, (3, 3): 5.42, (3, 4): 0.32,
    }  # fmt: skip
    for cell, score in printed.items():
        assert found[cell] == pytest.approx(score, abs=0.01)


def test_split_sets_holds_out_what_sea_holds_out(random_sets):
    (counted, held), (_, control) = split_sets(random_sets)
    assert sorted(held) == [
        3, 49, 53, 65, 88, 118, 133, 172, 174, 185, 194, 198, 205, 209, 210, 214, 217,
        227, 228, 241, 247, 252, 260, 290, 294, 295, 306, 308, 309, 317, 326, 333, 340,
        347, 370, 373, 383, 385, 386, 395,
    ]  # fmt: skip
    assert sorted([*counted, *held]) == list(range(400))
    assert len(control) == 50  # of which SEA's table of sequences shows these
    assert {4, 25, 33, 40, 41, 76, 80, 91, 408, 446, 477, 480, 493} <= set(control)


def test_sea_hits_give_the_table_that_sea_prints(random_sets):
    collection = motifs.jaspar_vertebrates()[:5]
    *hits, thresholds = sea_hits(*random_sets, collection)
    table = motifs.sea_table(*hits, collection, thresholds=thresholds)
    table = table.set_index("ID")
    for motif, true, false, threshold, log_p in (
        ("MA0002.3", 171, 246, 4.4, -0.02),
        ("MA0003.5", 230, 289, 2.1, -0.56),
        ("MA0004.1", 115, 132, 4.3, -1.45),
        ("MA0006.2", 308, 389, 2.2, -0.39),
        ("MA0007.4", 39, 48, 0.32, -0.67),
    ):
        assert (table["TP"][motif], table["FP"][motif]) == (true, false)
        assert float(f"{table['SCORE_THR'][motif]:.2g}") == threshold
        assert round(table["LOG_PVALUE"][motif], 2) == log_p


def test_sea_hits_scan_the_middle_of_longer_background(random_sets, monkeypatch):
    peaks, background = random_sets
    rng = np.random.default_rng(6)
    flanks = rng.integers(0, 4, (2, 500, 40)).astype(np.uint8)
    longer = np.hstack([flanks[0], background, flanks[1]])
    seen = []

    def spy(codes, scanned, *_):
        seen.append(codes)
        return np.ones((len(codes), len(scanned)))

    monkeypatch.setattr("helpers.motifs._sea.best_scores", spy)
    sea_hits(peaks, longer, [random_motif(6, 0)])
    np.testing.assert_array_equal(seen[0], peaks)
    np.testing.assert_array_equal(seen[1], background)


def test_choose_thresholds_maximizes_fishers_exact_test():
    rng = np.random.default_rng(4)
    peaks, others = rng.normal(0.3, 1, (40, 6)), rng.normal(0, 1, (50, 6))
    peaks, others = peaks.round(1), others.round(1)  # with ties
    peaks[:, 5] = -1  # no site is better than the background
    thresholds = choose_thresholds(peaks, others)

    def log_p(column, threshold):
        a = (peaks[:, column] >= threshold).sum()
        b = (others[:, column] >= threshold).sum()
        table = [[a, 40 - a], [b, 50 - b]]
        return np.log(stats.fisher_exact(table, alternative="greater").pvalue)

    for column in range(5):
        scores = np.unique(np.concatenate([peaks[:, column], others[:, column]]))
        best = min(log_p(column, score) for score in scores[scores > 0])
        assert thresholds[column] > 0
        assert log_p(column, thresholds[column]) == pytest.approx(best)
    assert thresholds[5] == 0


# --- From peaks ---


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A genome in which peaks at 1000, 1500, ... hold a motif, and others do not."""
    folder = tmp_path_factory.mktemp("peaks")
    rng = np.random.default_rng(5)
    planted = Motif("P1", "planted", np.eye(4)[[0, 2, 0, 3, 0, 0, 2, 1, 2, 3]])
    collection = [random_motif(9, i, f"R{i}") for i in range(6)] + [planted]
    motifs.write_meme(folder / "motifs.meme", collection)
    texts = {}
    for chrom in ("chr1", "chr2"):
        codes = rng.integers(0, 4, 120_000)
        for start in range(1000, 119_000, 500):
            if rng.random() < 0.6:
                codes[start : start + 10] = planted.probabilities.argmax(axis=1)
        texts[chrom] = "".join("ACGT"[c] for c in codes)
    fasta = folder / "genome.fa"
    fasta.write_text("".join(f">{c}\n{text}\n" for c, text in texts.items()))
    pysam.faidx(str(fasta))
    summits = [(c, s + 5) for c in texts for s in range(1000, 119_000, 500)]
    write_narrow_peak(folder / "peaks.narrowPeak", summits[::2])
    control = [(c, s - 192, s + 192) for c, s in summits]
    control += [(c, s + 58, s + 442) for c, s in summits]
    pd.DataFrame(control).to_csv(
        folder / "background.bed", sep="\t", header=False, index=False
    )
    return folder


def write_narrow_peak(path, summits, *, scores=None, signals=None, offset=40):
    n = len(summits)
    table = pd.DataFrame(
        {
            "chrom": [c for c, _ in summits],
            "start": [s - offset for _, s in summits],
            "end": [s + 100 for _, s in summits],
            "name": ".",
            "score": scores if scores is not None else range(n),
            "strand": ".",
            "signal": signals if signals is not None else 1.5,
            "p": -1,
            "q": -1,
            "summit": offset,
        }
    )
    table.to_csv(path, sep="\t", header=False, index=False)
    return path


def arguments(study, output, **changed):
    given = {
        "peaks": study / "peaks.narrowPeak",
        "background": study / "background.bed",
        "genome": Genome(study / "genome.fa"),
        "motifs_path": study / "motifs.meme",
        "output": output,
    }
    return given | changed


@pytest.fixture
def without_sea(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def stand_in(monkeypatch, folder, script):
    """Put a program called sea on PATH that keeps its arguments and runs a script."""
    folder.mkdir(exist_ok=True)
    program = folder / "sea"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/arguments\n'
        f'cp "$2" {folder}/p.fa; cp "$6" {folder}/n.fa\n{script}\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return folder


def test_peak_motif_activity_finds_the_planted_motif(
    study, tmp_path, without_sea, caplog
):
    output = tmp_path / "own.tsv"
    result = motifs.peak_motif_activity(**arguments(study, output))
    assert result.activity.idxmax() == "P1"
    assert result.activity.drop("P1").max() < 0.5
    assert not result.is_sea and "approximates" in result.note
    assert result.note in caplog.text and result.note in output.read_text()
    read = motifs.motif_activity(motifs.read_sea(result.path))
    pd.testing.assert_series_equal(read, result.activity)
    table = pd.read_csv(output, sep="\t", comment="#").set_index("ID")
    # 90% of the peaks are tested, and 60% hold the motif.
    assert table.loc["P1", "TP"] / (0.9 * 236) == pytest.approx(0.6, abs=0.07)
    assert table.loc["P1", "TP%"] == pytest.approx(
        100 * table.loc["P1", "TP"] / (236 - 23)
    )


def test_activity_depends_on_neither_order_nor_strand(study, tmp_path, without_sea):
    given = arguments(study, tmp_path / "own.tsv")
    first = motifs.peak_motif_activity(**given).activity
    lines = (study / "peaks.narrowPeak").read_text().splitlines(keepends=True)
    given["peaks"] = tmp_path / "reversed.narrowPeak"
    given["peaks"].write_text("".join(lines[::-1]))
    again = motifs.peak_motif_activity(**given).activity
    pd.testing.assert_series_equal(first, again)


def test_run_sea_calls_the_program_as_the_authors_do(study, tmp_path, monkeypatch):
    table = tmp_path / "given.tsv"
    rows = [
        f"{m.id}\t{-i}.5"
        for i, m in enumerate(motifs.read_motifs(study / "motifs.meme"))
    ]
    table.write_text("ID\tLOG_EVALUE\n" + "\n".join(rows) + "\n\n# SEA Version 0\n")
    folder = stand_in(monkeypatch, tmp_path / "bin", f"cat {table}")
    result = motifs.peak_motif_activity(**arguments(study, tmp_path / "sea.tsv"))
    assert result.is_sea and "SEA Version 0" in result.note
    assert (tmp_path / "sea.tsv").read_text() == table.read_text()
    assert result.activity["P1"] == 1 and len(result.activity) == 7
    given = (folder / "arguments").read_text().splitlines()
    primary, control = given[1], given[5]
    assert (
        given
        == (
            f"--p {primary} --m {study / 'motifs.meme'} --n {control} "
            "--thresh 50000.0 --verbosity 1 --text"
        ).split()
    )
    assert not Path(primary).exists()
    genome = pysam.FastaFile(str(study / "genome.fa"))
    for name, width, n in (("p.fa", 128, 236), ("n.fa", 384, 944)):
        with pysam.FastxFile(str(folder / name)) as fasta:
            records = list(fasta)
        assert len(records) == n
        for record in records:
            assert len(record.sequence) == width
            assert record.sequence == genome.fetch(region=one_based(record.name))
    assert records[0].name == "chr1:813-1197"
    with pysam.FastxFile(str(folder / "p.fa")) as fasta:
        assert next(iter(fasta)).name == "chr1:941-1069"  # 64 bp around 1005


def one_based(name):
    chrom, _, span = name.partition(":")
    start, end = map(int, span.split("-"))
    return f"{chrom}:{start + 1}-{end}"


def test_run_sea_keeps_the_message_of_a_failure(study, tmp_path, monkeypatch):
    stand_in(monkeypatch, tmp_path / "bin", "echo 'no motifs, sorry' >&2; exit 3")
    with pytest.raises(RuntimeError, match=r"--thresh .*status 3: no motifs, sorry"):
        motifs.run_sea(**arguments(study, tmp_path / "sea.tsv"))
    stand_in(monkeypatch, tmp_path / "bin", "printf 'ID\\tLOG_EVALUE\\nP1\\t-3\\n'")
    with pytest.raises(
        ValueError, match=r"each of the 7 motifs; found 1, missing \['R0'"
    ):
        motifs.run_sea(**arguments(study, tmp_path / "sea.tsv"))
    stand_in(monkeypatch, tmp_path / "bin", "echo nothing")
    with pytest.raises(ValueError, match="output of .*sea: expected rows"):
        motifs.run_sea(**arguments(study, tmp_path / "sea.tsv"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]


def test_run_sea_without_the_program(study, tmp_path, without_sea):
    with pytest.raises(FileNotFoundError, match="sea of the MEME Suite is not on PATH"):
        motifs.run_sea(**arguments(study, tmp_path / "sea.tsv"))


@pytest.mark.skipif(not shutil.which("sea"), reason="MEME's sea is not on PATH")
def test_own_table_agrees_with_that_of_the_program(study, tmp_path, monkeypatch):
    given = arguments(study, tmp_path / "sea.tsv")
    program = motifs.read_sea(motifs.run_sea(**given))
    monkeypatch.setenv("PATH", "")
    own = motifs.peak_motif_activity(**given | {"output": tmp_path / "own.tsv"})
    own = motifs.read_sea(own.path)
    np.testing.assert_allclose(own, program, atol=0.011)  # two decimals


def chosen(path, n_peaks, monkeypatch):
    monkeypatch.setattr(_peak_motifs, "N_PEAKS", n_peaks)
    regions = _peak_motifs._strongest(path, _peak_motifs._read_bed(path))
    assert (regions["end"] - regions["start"] == 128).all()
    return [*zip(regions["chrom"], regions["start"] + 64, strict=True)]


def test_the_strongest_summits_are_taken(tmp_path, monkeypatch):
    summits = [("chr2", 500), ("chr1", 900), ("chr1", 700), ("chr1", 300)]
    path = write_narrow_peak(
        tmp_path / "a.bed", summits, scores=[1000, 5, 1000, 1000], signals=[2, 9, 8, 1]
    )
    assert chosen(path, 2, monkeypatch) == [("chr1", 700), ("chr2", 500)]
    assert chosen(path, 9, monkeypatch) == [
        ("chr1", 300), ("chr1", 700), ("chr1", 900), ("chr2", 500)
    ]  # fmt: skip
    table = pd.read_csv(path, sep="\t", header=None)
    table[9] = -1  # no summit: centers, of [s - 40, s + 100)
    table.to_csv(path, sep="\t", header=False, index=False)
    assert chosen(path, 1, monkeypatch) == [("chr1", 730)]
    table[[0, 1, 2, 3, 4]].to_csv(path, sep="\t", header=False, index=False)
    assert chosen(path, 1, monkeypatch) == [("chr2", 530)]
    table[[0, 1, 2]].to_csv(path, sep="\t", header=False, index=False)
    assert len(chosen(path, 4, monkeypatch)) == 4
    with pytest.raises(ValueError, match="4 peaks and no strength to choose 3 by"):
        chosen(path, 3, monkeypatch)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.bed: expected BED"),
        ("chr1\t5\n", "bad.bed: expected BED"),
        ("chr1\t5\tx\n", "bad.bed: expected BED"),
        ("chr1\t90\t5\n", "0 <= start < end; found chr1:90-5"),
        ("chr1\t5\t90\tp\tstrong\n", "column 5 must hold numbers; found 'strong'"),
        ("chr1\t5\t90\tp\t1\t.\t1\t1\t1\t85\n", "column 10 must be the summit's"),
        ("chr1\t500\t900\nchr7\t500\t900\n", r"\['chr7'\] are absent from .*genome.fa"),
        ("chr1\t500\t900\n", "expected 50 peaks or more; found 1"),
        ("chr1\t119990\t120400\n", "expected 50 peaks or more; found 0"),
    ],
)
def test_peaks_that_cannot_be_used_are_refused(
    study, tmp_path, without_sea, text, message
):
    path = tmp_path / "bad.bed"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        motifs.peak_motif_activity(**arguments(study, tmp_path / "o.tsv", peaks=path))
    assert not (tmp_path / "o.tsv").exists()


def test_background_that_cannot_be_used_is_refused(study, tmp_path, without_sea):
    table = pd.read_csv(study / "background.bed", sep="\t", header=None)
    path = tmp_path / "bg.bed"
    for rows, message in (
        (table.head(200), "as many background regions as peaks, 236; found 200"),
        (table.replace({"chr2": "chrX"}), r"\['chrX'\] are absent"),
        (table.assign(**{"end": table[1] + 100})[[0, 1, "end"]], "found chr1:813-913"),
    ):
        rows.to_csv(path, sep="\t", header=False, index=False)
        with pytest.raises(ValueError, match=message):
            motifs.peak_motif_activity(
                **arguments(study, tmp_path / "o.tsv", background=path)
            )


def test_missing_files_of_peak_motif_activity_are_named(study, tmp_path, without_sea):
    for name in ("peaks", "background", "motifs_path"):
        given = arguments(study, tmp_path / "o.tsv", **{name: tmp_path / "nowhere"})
        with pytest.raises(FileNotFoundError, match="nowhere"):
            motifs.peak_motif_activity(**given)
    with pytest.raises(FileNotFoundError, match="folder of the output"):
        motifs.peak_motif_activity(**arguments(study, tmp_path / "no" / "o.tsv"))
