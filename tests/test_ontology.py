"""Regulatory domains, gene sets and their enrichment against slow references."""

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers import ontology
from helpers.enrichment import EmptyFeatureWarning

SIZES = {"chr1": 3_000_000, "chr2": 500_000}


def random_genes(n, seed=0):
    rng = np.random.default_rng(seed)
    chrom = rng.choice(list(SIZES), n, p=[0.8, 0.2])
    start = np.array([rng.integers(0, SIZES[c] - 30_000) for c in chrom])
    start[n // 2] = start[0]  # two genes that start together, if chromosomes agree
    genes = pd.DataFrame(
        {
            "chrom": chrom,
            "start": start,
            "end": start + rng.integers(500, 30_000, n),
            "symbol": [f"GENE{i}" for i in range(n)],
            "strand": rng.choice(["+", "-"], n),
        }
    )
    genes["tss"] = np.where(genes["strand"] == "+", genes["start"], genes["end"] - 1)
    return genes


def domains_by_loop(genes, sizes, up=5_000, down=1_000, reach=1_000_000):
    """GREAT's rule, gene by gene."""
    rows = sorted(genes.itertuples(), key=lambda g: (g.chrom, g.tss, g.strand))
    basal = [
        (g.tss - up, g.tss + down) if g.strand == "+" else (g.tss - down, g.tss + up)
        for g in rows
    ]
    domains = []
    for i, g in enumerate(rows):
        start, end = max(0, g.tss - reach), min(sizes[g.chrom], g.tss + reach)
        if i > 0 and rows[i - 1].chrom == g.chrom:
            start = max(start, basal[i - 1][1])
        if i + 1 < len(rows) and rows[i + 1].chrom == g.chrom:
            end = min(end, basal[i + 1][0])
        start = min(start, max(0, basal[i][0]))
        end = max(end, min(sizes[g.chrom], basal[i][1]))
        domains.append((g.symbol, g.chrom, start, end))
    return domains


def random_world(seed=0, n_genes=80, n_regions=300, n_features=4, n_terms=15):
    rng = np.random.default_rng(seed)
    genes = random_genes(n_genes, seed)
    chrom = rng.choice(list(SIZES), n_regions, p=[0.85, 0.15])
    start = np.array([rng.integers(0, SIZES[c] - 2_000) for c in chrom])
    length = rng.integers(1, 2_000, n_regions)
    regions = pd.DataFrame({"chrom": chrom, "start": start, "end": start + length})
    membership = (
        rng.random((n_features, n_regions))
        < np.linspace(0.05, 0.5, n_features)[:, None]
    )
    symbols = [*genes["symbol"], "ABSENT1", "ABSENT2"]
    gene_sets = {
        f"term {i}": list(rng.choice(symbols, rng.integers(2, 40), replace=False))
        for i in range(n_terms)
    }
    return regions, membership, genes, gene_sets


def enrichment_by_loop(regions, members, genes, symbols, background, gaps=()):
    """Counts and p-values of one feature and term."""
    domains = domains_by_loop(genes, SIZES)
    of_term = [d for d in domains if d[0] in symbols]

    def reached(region, some_domains):
        middle = (region.start + region.end) // 2
        return {
            s for s, c, a, b in some_domains if c == region.chrom and a <= middle < b
        }

    in_term = np.array([bool(reached(r, of_term)) for r in regions.itertuples()])
    genes_of = [reached(r, domains) for r in regions.itertuples()]
    if background == "regions":
        rate = in_term.mean()
        universe = set().union(*genes_of)
    else:
        covered = {c: np.zeros(n, dtype=bool) for c, n in SIZES.items()}
        real = {c: np.ones(n, dtype=bool) for c, n in SIZES.items()}
        for _, c, a, b in of_term:
            covered[c][a:b] = True
        for c, a, b in gaps:
            real[c][a:b] = False
        rate = sum((covered[c] & real[c]).sum() for c in SIZES) / sum(
            real[c].sum() for c in SIZES
        )
        universe = set(genes["symbol"])
    n, k = members.sum(), (members & in_term).sum()
    mine = set().union(*[g for g, m in zip(genes_of, members, strict=True) if m])
    marked = set(symbols) & universe
    return {
        "n_regions": n,
        "region_hits": k,
        "region_rate": rate,
        "region_log_p": stats.binom.logsf(k - 1, n, rate),
        "n_genes": len(mine),
        "gene_hits": len(mine & marked),
        "term_genes": len(marked),
        "gene_log_p": stats.hypergeom.logsf(
            len(mine & marked) - 1, len(universe), len(marked), len(mine)
        ),
    }


def test_regulatory_domains_equal_greats_rule():
    genes = random_genes(120)
    domains = ontology.regulatory_domains(genes, SIZES)
    rows = [
        tuple(row) for row in domains[["symbol", "chrom", "start", "end"]].to_numpy()
    ]
    assert rows == domains_by_loop(genes, SIZES)
    short = ontology.regulatory_domains(
        genes, SIZES, basal_upstream=300, basal_downstream=200, max_extension=10_000
    )
    rows = [tuple(row) for row in short[["symbol", "chrom", "start", "end"]].to_numpy()]
    assert rows == domains_by_loop(genes, SIZES, 300, 200, 10_000)


def test_regulatory_domains_stop_at_the_immediate_neighbor_only():
    # A long basal domain of A reaches over B; C is limited by B, its neighbor.
    genes = pd.DataFrame(
        {
            "chrom": "chr1",
            "tss": [100_000, 103_000, 2_500_000],
            "strand": ["-", "+", "+"],
            "symbol": ["A", "B", "C"],
        }
    )
    domains = ontology.regulatory_domains(genes, SIZES).set_index("symbol")
    assert list(domains.loc["A", ["start", "end"]]) == [0, 105_000]  # basal kept
    assert list(domains.loc["B", ["start", "end"]]) == [98_000, 1_103_000]
    assert list(domains.loc["C", ["start", "end"]]) == [1_500_000, 3_000_000]


def test_regulatory_domains_reject_another_assembly():
    genes = random_genes(20)
    with pytest.raises(ValueError, match="chromosomes that chrom_sizes does not have"):
        ontology.regulatory_domains(genes, {"chr1": 3_000_000})
    with pytest.raises(ValueError, match="beyond the end of its chromosome"):
        ontology.regulatory_domains(genes, {"chr1": 5_000, "chr2": 500_000})


GAPS = pd.DataFrame(
    [("chr1", 1_000_000, 1_400_000), ("chr2", 0, 10_000)],
    columns=["chrom", "start", "end"],
)


@pytest.mark.parametrize(
    ("background", "gaps"), [("regions", None), ("genome", None), ("genome", GAPS)]
)
def test_enrichment_equals_the_slow_reference(background, gaps):
    regions, membership, genes, gene_sets = random_world()
    table = ontology.enrichment(
        regions,
        membership,
        genes,
        gene_sets,
        SIZES,
        background=background,
        gaps=gaps,
        max_size=30,
    )
    rows = {(row.feature, row.term): row for row in table.itertuples()}
    gap_rows = () if gaps is None else gaps.itertuples(index=False, name=None)
    gap_rows = list(gap_rows)
    region_p, gene_p, both = [], [], []
    for term, symbols in gene_sets.items():
        expected = [
            enrichment_by_loop(regions, m, genes, symbols, background, gap_rows)
            for m in membership
        ]
        if not 5 <= expected[0]["term_genes"] <= 30:
            assert not any(key[1] == term for key in rows)
            continue
        for feature, values in enumerate(expected):
            row = rows.get((feature, term))
            assert (row is None) == (values["region_hits"] == 0)
            region_p.append(values["region_log_p"])
            gene_p.append(values["gene_log_p"])
            both.append(max(region_p[-1], gene_p[-1]))
            for key, value in values.items():
                if row is not None:
                    assert getattr(row, key) == pytest.approx(value, abs=1e-9)
    assert table.attrs["n_tests"] == len(both) > len(table) / 2
    for column, values in (
        ("region_q_value", region_p),
        ("gene_q_value", gene_p),
        ("q_value", both),
    ):
        q = np.sort(stats.false_discovery_control(np.exp(np.minimum(values, 0))))
        np.testing.assert_allclose(np.sort(table[column]), q[: len(table)])


def test_enrichment_q_values_count_terms_without_a_region():
    regions, membership, genes, gene_sets = random_world(seed=1)
    membership[:] = False
    membership[:, 3] = True  # one region each: most terms have none
    table = ontology.enrichment(regions, membership, genes, gene_sets, SIZES)
    assert table.attrs["n_tests"] == 4 * table.attrs["n_terms"] > len(table) > 0
    filtered = ontology.enrichment(
        regions, membership, genes, gene_sets, SIZES, max_p_value=0.5
    )
    kept = table[table["p_value"] <= 0.5].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, filtered)


def test_enrichment_places_a_region_by_its_midpoint():
    # The domain is [95_000, 101_000): only midpoints (rounded down) inside it count.
    genes = pd.DataFrame(
        {"chrom": "chr1", "tss": [100_000], "strand": "+", "symbol": "A"}
    )
    neighbors = pd.DataFrame(
        {
            "chrom": "chr1",
            "tss": [100_000 - 6_000, 100_000 + 6_000],
            "strand": "+",
            "symbol": ["L", "R"],
        }
    )
    genes = pd.concat([genes, neighbors])
    span = [(94_999, 95_000), (94_900, 95_100), (100_950, 101_049), (100_950, 101_050)]
    regions = pd.DataFrame(span, columns=["start", "end"]).assign(chrom="chr1")
    table = ontology.enrichment(
        regions, np.eye(4, dtype=bool), genes, {"a": ["A"]}, SIZES, min_size=1
    )
    assert list(table["feature"]) == [1, 2]
    assert table.attrs["n_unreached"] == 0


def test_enrichment_finds_the_planted_term_and_no_other():
    regions, membership, genes, gene_sets = random_world(
        seed=2, n_genes=200, n_regions=1500, n_terms=30
    )
    planted = list(genes["symbol"][:20])
    gene_sets["planted"] = planted
    domains = domains_by_loop(genes, SIZES)
    middle = (regions["start"] + regions["end"]) // 2
    near = np.zeros(len(regions), dtype=bool)
    for symbol, chrom, start, end in domains:
        if symbol in planted:
            inside = middle.between(start, end - 1).to_numpy()
            near |= (regions["chrom"] == chrom).to_numpy() & inside
    rng = np.random.default_rng(3)
    membership = rng.random((50, len(regions))) < 0.03
    membership[0] = rng.random(len(regions)) < np.where(near, 0.3, 0.01)
    table = ontology.enrichment(regions, membership, genes, gene_sets, SIZES)
    called = table[table["q_value"] < 0.05]
    assert list(called["term"]) == ["planted"]
    assert list(called["feature"]) == [0]
    assert called["fold"].iloc[0] > 1.5


def test_shift_p_values_equal_all_shifts_of_every_chromosome():
    regions, membership, genes, gene_sets = random_world(seed=7, n_regions=60)
    table = ontology.enrichment(regions, membership, genes, gene_sets, SIZES)
    p_values = ontology.shift_p_values(
        table, regions, membership, genes, gene_sets, SIZES
    )
    assert len(p_values) == len(table) > 20
    domains = domains_by_loop(genes, SIZES)
    middle = (regions["start"] + regions["end"]) // 2
    order = np.lexsort([middle, regions["chrom"]])
    chrom, middle = regions["chrom"].to_numpy()[order], middle.to_numpy()[order]
    for row, p_value in list(zip(table.itertuples(), p_values, strict=True))[::5]:
        near = np.zeros(60, dtype=int)
        for symbol, c, start, end in domains:
            if symbol in gene_sets[row.term]:
                near |= (chrom == c) & (middle >= start) & (middle < end)
        fires = membership[row.feature][order]
        counts = []
        for c in ("chr1", "chr2"):
            here = chrom == c
            n = here.sum()
            counts.append(
                [np.roll(fires[here], k) @ near[here] for k in range(n)],
            )
        sums = np.add.outer(*map(np.array, counts))  # every pair of shifts
        assert p_value == pytest.approx((sums >= row.region_hits).mean(), abs=1e-12)


def test_shift_p_values_are_calibrated_where_regions_crowd():
    rng = np.random.default_rng(8)
    regions, _, genes, gene_sets = random_world(seed=9, n_regions=1000, n_terms=10)
    regions = regions.sort_values(["chrom", "start"], ignore_index=True)
    membership = np.zeros((150, 1000), dtype=bool)
    for own in membership:  # six crowds of ten neighbors
        for first in rng.choice(990, 6, replace=False):
            own[first : first + 10] = True
    table = ontology.enrichment(regions, membership, genes, gene_sets, SIZES)
    arguments = (regions, membership, genes, gene_sets, SIZES)
    p_shift = ontology.shift_p_values(table, *arguments)
    assert (np.exp(table["region_log_p"]) <= 0.05).mean() > 0.12  # crowds fool it
    assert (p_shift <= 0.05).mean() < 0.06


def test_enrichment_reports_and_judges_matching_symbols():
    regions, membership, genes, gene_sets = random_world(seed=4)
    table = ontology.enrichment(regions, membership, genes, gene_sets, SIZES)
    assert 0.9 < table.attrs["symbols_matched"] <= 1
    mouse = {term: [s.title() for s in symbols] for term, symbols in gene_sets.items()}
    with pytest.raises(ValueError, match="0.0% of symbols match"):
        ontology.enrichment(regions, membership, genes, mouse, SIZES)
    half = genes.assign(
        symbol=[s if i % 5 < 2 else s.lower() for i, s in enumerate(genes["symbol"])]
    )
    with pytest.warns(ontology.UnmatchedSymbolWarning, match="check species"):
        ontology.enrichment(regions, membership, half, gene_sets, SIZES)


def test_enrichment_of_an_empty_feature_has_no_rows_and_warns():
    regions, membership, genes, gene_sets = random_world(seed=5)
    membership[1] = False
    with pytest.warns(EmptyFeatureWarning, match="1 of 4 features .*: 1"):
        table = ontology.enrichment(regions, membership, genes, gene_sets, SIZES)
    assert 1 not in set(table["feature"])
    assert table.attrs["n_tests"] == 3 * table.attrs["n_terms"]


def test_enrichment_rejects_what_it_cannot_use():
    regions, membership, genes, gene_sets = random_world(seed=6)
    arguments = (regions, membership, genes, gene_sets, SIZES)
    with pytest.raises(ValueError, match="background must be"):
        ontology.enrichment(*arguments, background="windows")
    with pytest.raises(ValueError, match="gaps are used with"):
        ontology.enrichment(*arguments, gaps=GAPS)
    with pytest.raises(ValueError, match="no gene set has 60 to 70 genes"):
        ontology.enrichment(*arguments, min_size=60, max_size=70)
    moved = regions.assign(chrom=["chrM"] * 3 + list(regions["chrom"][3:]))
    with pytest.raises(ValueError, match="3 of 300 regions lie on .*: chrM"):
        ontology.enrichment(moved, *arguments[1:])
    twice = pd.concat([GAPS, GAPS])
    with pytest.raises(ValueError, match="gaps must not overlap"):
        ontology.enrichment(*arguments, background="genome", gaps=twice)


def test_read_gmt_keeps_order_and_removes_repeats(tmp_path):
    path = tmp_path / "sets.gmt.gz"
    path.write_bytes(gzip.compress(b"b (GO:2)\t\tTP53\tMYC\tTP53\t\na\tx\tSPI1\n"))
    assert ontology.read_gmt(path) == {"b (GO:2)": ["TP53", "MYC"], "a": ["SPI1"]}


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (ontology.read_gmt, "", "no gene set found"),
        (ontology.read_gmt, "a\tx\tG\nb\tx\n", "line 2: .*at least one gene symbol"),
        (ontology.read_gmt, "a\tx\tG\na\tx\tH\n", "line 2: term 'a' occurs twice"),
        (ontology.read_genes, "", "no gene found"),
        (ontology.read_genes, "chr1\t5\t9\tG\t0\n", "line 1: expected chrom"),
        (ontology.read_genes, "chr1\t9\t5\tG\t0\t+\n", "line 1: expected chrom"),
        (ontology.read_genes, "#x\nchr1\t5\t9\tG\t0\t.\n", "line 2: .*strand"),
        (ontology.read_genes, "chr1\tfive\t9\tG\t0\t-\n", "line 1: expected chrom"),
    ],
)
def test_readers_name_file_and_line(tmp_path, reader, text, message):
    path = tmp_path / "broken.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        reader(path)
    assert "broken.txt" in str(error.value)


def test_readers_of_a_missing_file(tmp_path):
    for reader in (ontology.read_gmt, ontology.read_genes):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            reader(tmp_path / "nowhere")


def test_read_genes_puts_the_tss_at_the_first_transcribed_base(tmp_path):
    path = tmp_path / "genes.bed"
    path.write_text("chr1\t100\t200\tFWD\t0\t+\nchr1\t100\t200\tREV\t0\t-\textra\n")
    genes = ontology.read_genes(path)
    assert list(genes["tss"]) == [100, 199]
    assert list(genes["symbol"]) == ["FWD", "REV"]


# Real genes and gene sets

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = Path(os.environ.get("CHROMATIN_SHARED_DATA", REAL))
GENES = REAL / "ncbi_genes_grch38" / "genes_protein_coding_GRCh38_NCBI_2016-02.tsv.gz"
TERMS = REAL / "go_bp_2021_gmt" / "GO_Biological_Process_2021.gmt.gz"
CHROM_SIZES = REAL / "hg38_refseq_cpg_coords" / "hg38.chrom.sizes.txt"


@pytest.fixture(scope="module")
def human():
    missing = [path.name for path in (GENES, TERMS, CHROM_SIZES) if not path.is_file()]
    if missing:
        pytest.skip(f"{missing} are not in {REAL}")
    lines = CHROM_SIZES.read_text().split()
    sizes = dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
    return ontology.read_genes(GENES), ontology.read_gmt(TERMS), sizes


def test_regulatory_domains_of_human_genes_stop_at_the_immediate_neighbor(human):
    genes, _, sizes = human
    genes = genes[genes["chrom"].isin(["chr21", "chr22"])]
    domains = ontology.regulatory_domains(genes, sizes)
    rows = [
        tuple(row) for row in domains[["symbol", "chrom", "start", "end"]].to_numpy()
    ]
    assert rows == domains_by_loop(genes, sizes)
    assert len(rows) == 705
    # Were any gene before or behind a limit, and not the immediate neighbor alone:
    tss, forward = domains["tss"].to_numpy(), (domains["strand"] == "+").to_numpy()
    basal_start = tss - np.where(forward, 5_000, 1_000)
    basal_end = tss + np.where(forward, 1_000, 5_000)
    n_other = 0
    for i, row in domains.iterrows():
        same = domains["chrom"].to_numpy() == row["chrom"]
        before, behind = (np.arange(705) < i) & same, (np.arange(705) > i) & same
        ends, starts = basal_end[before], basal_start[behind]
        start = max(0, tss[i] - 1_000_000, *ends)
        end = min(sizes[row["chrom"]], tss[i] + 1_000_000, *starts)
        start, end = min(start, basal_start[i]), max(end, basal_end[i])
        n_other += (start, end) != (row["start"], row["end"])
    assert n_other == 85


def test_enrichment_of_human_genes_tests_every_term_of_go(human):
    genes, gene_sets, sizes = human
    assert (len(gene_sets), len(set().union(*gene_sets.values()))) == (6036, 14937)
    rng = np.random.default_rng(0)
    chosen = genes.iloc[np.sort(rng.choice(len(genes), 4000, replace=False))]
    regions = pd.DataFrame(
        {
            "chrom": chosen["chrom"].to_numpy(),
            "start": chosen["tss"].to_numpy(),
            "end": chosen["tss"].to_numpy() + 100,
        }
    )
    term = "hemopoiesis (GO:0030097)"
    membership = rng.random((3, 4000)) < 0.05
    membership[0] |= chosen["symbol"].isin(gene_sets[term]).to_numpy()
    table = ontology.enrichment(regions, membership, genes, gene_sets, sizes)
    assert table.attrs["symbols_matched"] > 0.9
    assert table.attrs["n_tests"] == 3 * table.attrs["n_terms"]
    best = table.sort_values("log_p").iloc[0]
    assert (best["feature"], best["term"]) == (0, term)
    assert best["q_value"] < 1e-4
    for row in table.iloc[:: len(table) // 50].itertuples():
        expected = stats.binom.logsf(
            row.region_hits - 1, row.n_regions, row.region_rate
        )
        assert row.region_log_p == pytest.approx(expected, abs=1e-6)
        n = table.attrs["n_background_genes"]
        expected = stats.hypergeom.logsf(
            row.gene_hits - 1, n, row.term_genes, row.n_genes
        )
        assert row.gene_log_p == pytest.approx(expected, abs=1e-6)
