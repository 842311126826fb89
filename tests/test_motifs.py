"""Motif files, exact scanning and enrichment against slow references."""

import gzip
import itertools
import warnings
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from scipy import stats

from helpers import motifs
from helpers.enrichment import EmptyFeatureWarning
from helpers.motifs import Motif

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def random_motif(width, seed, identifier="M1"):
    rows = np.random.default_rng(seed).dirichlet(np.full(4, 0.3), width)
    return Motif(identifier, identifier, rows)


def random_sequences(n, length, seed):
    return np.random.default_rng(seed).integers(0, 4, (n, length), dtype=np.uint8)


def word_score(motif, word):
    """Bits of log-odds, each position rounded to 1/1000 bit, zeros floored."""
    odds = np.maximum(motif.probabilities, 1e-3) / 0.25
    bits = np.round(np.log2(odds) * 1000)
    return sum(bits[i, "ACGT".index(base)] for i, base in enumerate(word)) / 1000


def reference_counts(sequences, motif, threshold):
    counts = []
    for sequence in sequences:
        n = 0
        for strand in (sequence, sequence[::-1].translate(COMPLEMENT)):
            for i in range(len(strand) - motif.width + 1):
                word = strand[i : i + motif.width]
                if "N" not in word and word_score(motif, word) >= threshold - 1e-9:
                    n += 1
        counts.append(n)
    return counts


# Thresholds and scanning


@pytest.mark.parametrize("p_value", [0.2, 0.01, 1e-3])
def test_score_threshold_is_exact_over_all_words(p_value):
    motif = random_motif(6, seed=3)
    scores = np.array(
        [word_score(motif, word) for word in itertools.product("ACGT", repeat=6)]
    )
    threshold = motifs.score_threshold(motif, p_value)
    assert np.isclose(scores, threshold, atol=1e-9).any()
    assert (scores >= threshold - 1e-9).mean() <= p_value
    next_lower = scores[scores < threshold - 1e-9].max()
    assert (scores >= next_lower - 1e-9).mean() > p_value


def test_score_threshold_of_a_short_motif_is_infinite():
    assert np.isinf(motifs.score_threshold(random_motif(6, seed=0), 1e-4))
    with pytest.raises(ValueError, match="p_value must be in"):
        motifs.score_threshold(random_motif(6, seed=0), 0)


def test_count_hits_equals_the_slow_reference():
    codes = random_sequences(12, 90, seed=4)
    codes[np.random.default_rng(5).random(codes.shape) < 0.02] = 4
    texts = ["".join("ACGTN"[c] for c in row) for row in codes]
    scanned = [random_motif(width, width, f"M{width}") for width in (5, 8, 13)]
    with_zero = np.eye(4)[[0, 1, 2, 3, 0]]
    scanned.append(Motif("zeros", "zeros", with_zero))
    counts = motifs.count_hits(codes, scanned, p_value=2e-3)
    for column, motif in enumerate(scanned):
        threshold = motifs.score_threshold(motif, 2e-3)
        expected = reference_counts(texts, motif, threshold)
        np.testing.assert_array_equal(counts[:, column], expected)
    assert counts.sum() > 10
    np.testing.assert_array_equal(
        motifs.count_hits(texts, scanned, p_value=2e-3), counts
    )


def test_count_hits_sees_both_strands_and_no_boundary():
    motif = Motif("E", "Ebox-like", np.eye(4)[[0, 0, 1, 1, 2, 3, 2, 2]])  # AACCGTGG
    sequences = [
        "ttAACCGTGGtt",  # either case
        "CCACGGTT",  # the other strand, the whole sequence
        "AACCNGTGG",
        "AACC",
        "GTGG",  # with the one before it the word, across a boundary
        "",
    ]
    counts = motifs.count_hits(sequences, [motif])
    np.testing.assert_array_equal(counts[:, 0], [1, 1, 0, 0, 0, 0])


def test_count_hits_does_not_depend_on_neighboring_sequences():
    codes, motif = random_sequences(30, 64, seed=6), random_motif(7, 7)
    together = motifs.count_hits(codes, [motif], p_value=1e-3)
    apart = [motifs.count_hits(row[None], [motif], p_value=1e-3)[0] for row in codes]
    np.testing.assert_array_equal(together, apart)


def test_count_hits_rate_is_the_p_value():
    codes, motif = random_sequences(2000, 200, seed=8), random_motif(10, 9)
    hits = motifs.count_hits(codes, [motif], p_value=1e-3).sum()
    scores = motifs.score_threshold(motif, 1e-3)
    assert np.isfinite(scores)
    words = 2 * 2000 * (200 - motif.width + 1)
    assert hits / words == pytest.approx(1e-3, rel=0.15)


def test_count_hits_names_motifs_that_cannot_reach_the_p_value():
    short, long = random_motif(5, 0, "short"), random_motif(10, 0, "long")
    with pytest.warns(motifs.UnreachableMotifWarning, match="1 of 2 .* short"):
        counts = motifs.count_hits(random_sequences(5, 50, 0), [short, long])
    assert (counts[:, 0] == 0).all()


def test_count_hits_uses_a_motifs_own_threshold():
    motif = replace(random_motif(6, seed=3), threshold=4.0)
    texts = ["".join("ACGT"[c] for c in row) for row in random_sequences(5, 80, 1)]
    natural = np.log(np.maximum(motif.probabilities, 1e-3) / 0.25)
    expected = []
    for text in texts:
        n = 0
        for strand in (text, text[::-1].translate(COMPLEMENT)):
            words = [strand[i : i + 6] for i in range(len(strand) - 5)]
            rows = [["ACGT".index(base) for base in word] for word in words]
            n += sum(natural[range(6), row].sum() >= 4.0 for row in rows)
        expected.append(n)
    counts = motifs.count_hits(texts, [motif], p_value=None)
    np.testing.assert_array_equal(counts[:, 0], expected)
    assert sum(expected) > 0
    with pytest.raises(ValueError, match="no threshold of its own"):
        motifs.count_hits(texts, [random_motif(6, 0)], p_value=None)


def test_count_hits_of_nothing_and_of_everything():
    motif = random_motif(6, seed=2)
    assert motifs.count_hits([], [motif], p_value=0.1).shape == (0, 1)
    codes = random_sequences(3, 40, seed=2)
    texts = ["".join("ACGT"[c] for c in row) for row in codes]
    for p_value in (0.4, 1.0):  # thresholds below zero
        expected = reference_counts(
            texts, motif, motifs.score_threshold(motif, p_value)
        )
        counts = motifs.count_hits(codes, [motif], p_value=p_value)
        np.testing.assert_array_equal(counts[:, 0], expected)


def test_count_hits_rejects_unknown_codes():
    with pytest.raises(ValueError, match="largest code 5"):
        motifs.count_hits(np.full((2, 9), 5, dtype=np.uint8), [random_motif(5, 0)])


# Files


def test_meme_file_round_trip_keeps_everything(tmp_path):
    written = [
        replace(random_motif(8, 0, "A1"), name="Spi1", family="Ets-related; x"),
        random_motif(3, 1, "B2"),
    ]
    for name in ("motifs.meme", "motifs.meme.gz"):
        motifs.write_meme(tmp_path / name, written, header_comment="made\nfor a test")
        read = motifs.read_motifs(tmp_path / name)
        for a, b in zip(written, read, strict=True):
            assert (a.id, a.name, a.family) == (b.id, b.name, b.family)
            np.testing.assert_allclose(a.probabilities, b.probabilities, atol=2e-6)
    first = (tmp_path / "motifs.meme.gz").read_bytes()
    motifs.write_meme(
        tmp_path / "motifs.meme.gz", written, header_comment="made\nfor a test"
    )
    assert (tmp_path / "motifs.meme.gz").read_bytes() == first


def test_read_motifs_reads_meme_with_extras(tmp_path):
    path = tmp_path / "extras.meme"
    path.write_text(
        "MEME version 4\n\nALPHABET= ACGT\n\nMOTIF X1\n\n"
        "letter-probability matrix: alength= 4 w= 2 nsites= 20 E= 0\n"
        "  0.500000\t  0.250000\t  0.125000\t  0.125000\t\n"
        "  0.000000\t  0.000000\t  0.999999\t  0.000000\t\n"
        "URL http://example.org/X1\n\nMOTIF X2 second\n"
        "letter-probability matrix:\n0.1 0.2 0.3 0.4\n"
    )
    first, second = motifs.read_motifs(path)
    assert (first.id, first.name, first.width) == ("X1", "X1", 2)
    assert first.consensus == "AG"
    np.testing.assert_allclose(first.probabilities.sum(axis=1), 1, atol=1e-15)
    assert second.name == "second"


def test_read_motifs_turns_jaspar_counts_into_probabilities(tmp_path):
    path = tmp_path / "counts.jaspar"
    path.write_text(
        ">MA0001.1\tTF::PARTNER\nA  [ 4 0 ]\nC  [ 0 0 ]\nG  [ 0 10 ]\nT  [ 6 0 ]\n"
        ">MA0002.1\n1 0\n0 1\n0 0\n0 0\n"
    )
    first, second = motifs.read_motifs(path)
    assert (first.name, second.name) == ("TF::PARTNER", "MA0002.1")
    expected = np.array([[4.1, 0.1, 0.1, 6.1], [0.1, 0.1, 10.1, 0.1]]) / 10.4
    np.testing.assert_allclose(first.probabilities, expected)


def test_read_motifs_keeps_homer_names_families_and_thresholds(tmp_path):
    path = tmp_path / "known.motifs"
    path.write_text(
        ">ATGMC\tCTCF(Zf)/CD4+-CTCF/Homer\t8.704837\t-100.5\t0\tT:1.0\n"
        "0.7 0.1 0.1 0.1\n0.001 0.001 0.001 0.997\n"
    )
    (motif,) = motifs.read_motifs(path)
    assert (motif.name, motif.family, motif.threshold) == ("CTCF", "Zf", 8.704837)
    assert motif.id == "CTCF(Zf)/CD4+-CTCF/Homer"


def test_read_motifs_numbers_the_repeats_of_a_homer_file(tmp_path):
    block = ">ATGMC\tRAR(NR)/x/Homer\t8.7\t-100.5\t0\n0.7 0.1 0.1 0.1\n"
    path = tmp_path / "known.motifs"
    path.write_text(block * 2)
    with pytest.warns(motifs.DuplicateMotifWarning, match="1 of 2 motifs .*RAR"):
        first, second = motifs.read_motifs(path)
    assert (first.id, second.id) == ("RAR(NR)/x/Homer", "RAR(NR)/x/Homer #2")


MEME = "MEME version 4\nMOTIF M1\nletter-probability matrix: w= 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("hello", "expected 'MEME version'"),
        ("MEME version 4\n", "no motif found"),
        (MEME, "w= 1, found 0 rows"),
        (MEME.replace("w= 1", "w= 0"), "'M1': probabilities must have shape"),
        (MEME + "0 0 0 0\n", "'M1': position 1 must sum to 1; got 0"),
        (MEME + "0.5 0.5 0.5 -0.5\n", "'M1': probabilities must be finite"),
        (MEME + "0.5 0.5\n", "four probabilities"),
        (MEME + "0.5 0.5 0 zero\n", "expected numbers"),
        (MEME + "0.5 0.5 0 0\n" + MEME[15:] + "1 0 0 0\n", "'M1' occurs twice"),
        ("MEME version 4\nMOTIF M1\n", "no letter-probability matrix"),
        (">M1 x\nA [1 2]\nC [1 2]\nG [1]\nT [1 2]\n", "four count rows"),
        (">M1 x\nA [1 0]\nC [1 0]\nG [1 0]\nT [1 0]\n", "a position has no counts"),
        (">A\tx\tnone\t0\n1 0 0 0\n", "threshold is not a number"),
    ],
)
def test_read_motifs_names_file_and_motif(tmp_path, text, message):
    path = tmp_path / "broken.motifs"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        motifs.read_motifs(path)
    assert "broken.motifs" in str(error.value)


def test_read_motifs_of_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.meme"):
        motifs.read_motifs(tmp_path / "nowhere.meme")


def test_jaspar_vertebrates_is_complete_and_attributed():
    collection = motifs.jaspar_vertebrates()
    assert len(collection) == 1019
    assert sum(motif.width for motif in collection) == 10542
    assert [m.id for m in collection] == sorted(m.id for m in collection)
    by_id = {motif.id: motif for motif in collection}
    assert by_id["MA0139.2"].name.upper() == "CTCF"
    assert by_id["MA0080.7"].family == "Ets-related"
    packed = resources.files("helpers") / "resources"
    packed = packed / "jaspar2026_core_vertebrates.meme.gz"
    text = gzip.decompress(packed.read_bytes()).decode()
    header = text[: text.index("MOTIF")]
    assert "CC BY 4.0" in header
    assert "10.1093/nar/gkaf1209" in header


# Enrichment


@pytest.fixture
def world():
    """400 regions with uneven GC, 5 motifs with random hits, 6 features."""
    rng = np.random.default_rng(11)
    hits = rng.poisson(rng.uniform(0.05, 1.0, 5), (400, 5))
    membership = rng.random((6, 400)) < rng.uniform(0.02, 0.4, 6)[:, None]
    gc = rng.beta(5, 6, 400)
    return hits, membership, gc, [random_motif(6, i, f"M{i}") for i in range(5)]


def test_enrichment_hypergeometric_is_fishers_exact_test(world):
    hits, membership, _, names = world
    table = motifs.enrichment(hits, membership, names)
    assert len(table) == 30
    for row in table.itertuples():
        occurs = hits[:, int(row.motif[1:])] > 0
        members = membership[row.feature]
        counts = [
            [(occurs & members).sum(), (~occurs & members).sum()],
            [(occurs & ~members).sum(), (~occurs & ~members).sum()],
        ]
        expected = stats.fisher_exact(counts, alternative="greater").pvalue
        assert row.p_value == pytest.approx(expected, rel=1e-9)
        assert row.target_hits == counts[0][0]
        assert row.n_target == members.sum()
        rate = counts[1][0] / (~members).sum()
        assert row.fold == pytest.approx(counts[0][0] / members.sum() / rate)
    expected = stats.false_discovery_control(table["p_value"])
    np.testing.assert_allclose(table["q_value"], expected)


def test_enrichment_binomial_with_gc_weights_equals_a_loop_over_regions(world):
    hits, membership, gc, names = world
    background = np.random.default_rng(12).random(400) < 0.7
    edges = [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8]
    bins = np.array([sum(value >= edge for edge in edges) for value in gc])
    background[bins == 4] = False  # targets without a match
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", motifs.UnmatchedRegionWarning)
        table = motifs.enrichment(
            hits, membership, names, background=background, gc=gc, method="binomial"
        )
    for row in table.itertuples():
        occurs = hits[:, int(row.motif[1:])] > 0
        members = membership[row.feature]
        others = background & ~members
        n = k = 0
        weight = np.zeros(400)
        kept = [
            b
            for b in range(11)
            if (members & (bins == b)).any() and (others & (bins == b)).any()
        ]
        n = sum((members & (bins == b)).sum() for b in kept)
        k = sum((members & occurs & (bins == b)).sum() for b in kept)
        for b in kept:
            chosen = others & (bins == b)
            weight[chosen] = (members & (bins == b)).sum() / n / chosen.sum()
        size = weight.sum() ** 2 / (weight**2).sum()
        rate = np.clip((weight * occurs).sum() / weight.sum(), 1 / size, 1 - 1 / size)
        assert (row.n_target, row.target_hits) == (n, k)
        assert row.n_background == pytest.approx(size)
        assert row.log_p == pytest.approx(stats.binom.logsf(k - 1, n, rate), abs=1e-9)


def test_enrichment_with_gc_does_not_call_composition():
    rng = np.random.default_rng(13)
    gc = rng.uniform(0.3, 0.7, 3000)
    hits = (rng.random((3000, 1)) < gc[:, None] ** 3).astype(int)  # a GC-rich motif
    membership = (rng.random((1, 3000)) < gc**4)[:1]  # a GC-rich feature
    names = [random_motif(6, 0)]
    assert motifs.enrichment(hits, membership, names)["p_value"][0] < 1e-3
    assert motifs.enrichment(hits, membership, names, gc=gc)["p_value"][0] > 0.01


def test_enrichment_is_calibrated_on_matched_random_features():
    rng = np.random.default_rng(14)
    n_regions = 1500
    gc = rng.uniform(0.3, 0.7, n_regions)
    openness = rng.random(n_regions)
    rate = rng.uniform(0.2, 1, 40) * np.clip(gc + openness - 0.5, 0, 1)[:, None]
    hits = rng.random((n_regions, 40)) < rate
    membership = rng.random((300, n_regions)) < (0.2 * gc * openness)
    strata = motifs.matching_strata(gc, openness)
    random = motifs.matched_random_features(membership, strata, random_state=0)
    table = motifs.enrichment(
        hits,
        random,
        [random_motif(6, i, f"M{i}") for i in range(40)],
        gc=gc,
        accessibility=openness,
    )
    assert (table["p_value"] <= 0.05).mean() <= 0.05
    called = table[table["q_value"] < 0.05]["feature"].nunique()
    assert called / 300 <= 0.05


def test_enrichment_finds_the_planted_motif_of_every_feature():
    collection = [m for m in motifs.jaspar_vertebrates() if m.width >= 10][::40]
    rng = np.random.default_rng(15)
    codes = random_sequences(600, 100, seed=16)
    membership = np.zeros((5, 600), dtype=bool)
    for feature in range(5):  # one site in each of 60 regions
        rows = np.arange(60) + 100 * feature
        membership[feature, rows] = True
        for row in rows:
            matrix = collection[feature].probabilities
            site = [rng.choice(4, p=position) for position in matrix]
            codes[row, 40 : 40 + len(site)] = site
    hits = motifs.count_hits(codes, collection)
    table = motifs.enrichment(hits, membership, collection, gc=motifs.gc_content(codes))
    best = table.loc[table.groupby("feature")["log_p"].idxmin()]
    assert list(best["motif"]) == [motif.id for motif in collection[:5]]
    assert (best["q_value"] < 1e-6).all()


def test_enrichment_autonormalization_balances_short_words():
    rng = np.random.default_rng(17)
    codes = random_sequences(800, 100, seed=18)
    membership = np.zeros((1, 800), dtype=bool)
    membership[0, :150] = True
    # Targets are rich in CpG at unchanged GC content; half of the others partly so.
    for row, n in [(r, 8) for r in range(150)] + [(r, 4) for r in range(400, 800)]:
        for position in rng.choice(49, n, replace=False) * 2:
            codes[row, position : position + 2] = [1, 2]
    cpg = ((codes[:, :-1] == 1) & (codes[:, 1:] == 2)).sum(axis=1)
    hits = (cpg > np.median(cpg)).astype(int)[:, None]
    names = [random_motif(6, 0)]
    plain = motifs.enrichment(hits, membership, names)
    balanced = motifs.enrichment(hits, membership, names, sequences=codes)
    assert plain["background_rate"][0] < balanced["background_rate"][0]
    assert balanced["log_p"][0] > plain["log_p"][0] / 2
    assert balanced["n_background"][0] < plain["n_background"][0]


def test_kmer_frequencies_count_both_strands_and_skip_unknown_bases():
    frequency = motifs.kmer_frequencies(["AACN", "NNN"], 2)
    # AA, AC and their reverse complements TT, GT.
    expected = np.zeros((2, 16))
    expected[0, [0, 1, 15, 11]] = 0.25
    np.testing.assert_allclose(frequency, expected)


def test_enrichment_reports_what_it_leaves_out(world):
    hits, membership, gc, names = world
    gc = np.where(np.arange(400) < 10, np.nan, gc)
    membership[:, :5] = True
    membership[2] = False
    with (
        pytest.warns(EmptyFeatureWarning, match="1 of 6 features"),
        pytest.warns(motifs.UnmatchedRegionWarning, match="25 without GC|2[5-9] wit"),
    ):
        table = motifs.enrichment(hits, membership, names, gc=gc)
    empty = table[table["feature"] == 2]
    assert empty[["fold", "p_value", "q_value"]].isna().all(axis=None)
    tested = table[table["feature"] != 2]
    expected = stats.false_discovery_control(tested["p_value"])
    np.testing.assert_allclose(tested["q_value"], expected)


def test_enrichment_rejects_wrong_shapes(world):
    hits, membership, gc, names = world
    with pytest.raises(ValueError, match="one column per motif"):
        motifs.enrichment(hits, membership, names[:3])
    with pytest.raises(ValueError, match="gc must have shape"):
        motifs.enrichment(hits, membership, names, gc=gc[:9])
    with pytest.raises(ValueError, match="background must be bool"):
        motifs.enrichment(hits, membership, names, background=gc)
    with pytest.raises(ValueError, match="accessibility needs gc"):
        motifs.enrichment(hits, membership, names, accessibility=gc)
    with pytest.raises(ValueError, match="no region has a GC content"):
        motifs.enrichment(hits, membership, names, gc=np.full(400, np.nan))
    with pytest.raises(ValueError, match="method must be"):
        motifs.enrichment(hits, membership, names, method="fisher")


def test_best_per_family_takes_the_smallest_times_the_number(world):
    hits, membership, _, names = world
    families = ["ETS", "ETS", "ETS", None, "RUNX"]
    names = [replace(m, family=f) for m, f in zip(names, families, strict=True)]
    table = motifs.enrichment(hits, membership, names)
    best = motifs.best_per_family(table)
    assert len(best) == 6 * 3
    for (feature, family), rows in table.groupby(["feature", "family"], observed=True):
        row = best[(best["feature"] == feature) & (best["family"] == family)].iloc[0]
        assert row["n_motifs"] == len(rows)
        assert row["p_value"] == pytest.approx(
            min(1, rows["p_value"].min() * len(rows))
        )
        assert row["motif"] == rows.loc[rows["log_p"].idxmin(), "motif"]


def test_matching_strata_put_an_edge_into_the_upper_bin():
    gc = np.array([0.0, 0.199, 0.2, 0.5, 0.599, 0.8, 1.0])  # HOMER's bins
    np.testing.assert_array_equal(motifs.matching_strata(gc), [0, 0, 1, 7, 7, 10, 10])


def test_gc_content_ignores_unknown_bases():
    gc = motifs.gc_content(["GGCA", "gNNc", "ANNN", "NNNNNNNNCC", "AAANNNNNNN"])
    np.testing.assert_array_equal(gc, [0.75, 1.0, np.nan, np.nan, 0.0])
    codes = np.array([[0, 1, 2, 4], [4, 4, 4, 4]], dtype=np.uint8)
    np.testing.assert_allclose(motifs.gc_content(codes), [2 / 3, np.nan])


def test_matched_random_features_keep_every_stratum():
    rng = np.random.default_rng(19)
    strata = rng.integers(0, 4, 500)
    membership = rng.random((20, 500)) < 0.1
    random = motifs.matched_random_features(membership, strata, random_state=1)
    again = motifs.matched_random_features(membership, strata, random_state=1)
    np.testing.assert_array_equal(random, again)
    assert (random != membership).any(axis=1).all()
    for stratum in range(4):
        inside = strata == stratum
        np.testing.assert_array_equal(
            random[:, inside].sum(axis=1), membership[:, inside].sum(axis=1)
        )
