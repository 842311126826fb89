"""Simulated worlds: files against independent readers, truth against the files."""

import hashlib
import json
import shutil
from dataclasses import replace
from importlib import resources

import numpy as np
import pandas as pd
import pybigtools
import pysam
import pytest
import yaml

from helpers import motifs, simulate, states
from helpers.simulate import World
from helpers.simulate import _biology as _simulated_biology
from helpers.simulate import _genome as _simulated_genome
from helpers.simulate import _tracks as _simulated_tracks
from helpers.simulate._biology import activity

TINY = World(
    n_chromosomes=20, windows_per_chromosome=4, window_bp=4096, n_replicates=0, seed=3
)
BIOLOGY = yaml.safe_load(
    (resources.files("helpers") / "resources" / "planted_world.yml").read_text()
)


def read_bed(path, *names):
    columns = ["chrom", "start", "end", *names]
    return pd.read_csv(path, sep="\t", header=None, names=columns)


def token_counts(path, world):
    """Cuts per token by an independent reader, genome order."""
    bigwig = pybigtools.open(str(path))
    values = [
        bigwig.values(chrom, 0, world.tokens_per_chromosome * 128, fillna=0.0)
        for chrom in world.chromosomes
    ]
    return np.concatenate(values).reshape(-1, 128).sum(axis=1)


def text_files(folder):
    binary = (".bw", ".parquet")
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix not in binary)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def entries(folder):
    """Biosample entries of all tissue YAMLs, by name."""
    found = {}
    for path in sorted((folder / "tissues").glob("*.yml")):
        tissue = yaml.safe_load(path.read_text())
        for entry in (tissue["in_vitro"], tissue["in_vivo"], *tissue["replicates"]):
            found[entry["name"]] = entry
    return found


@pytest.fixture(scope="module")
def truth(small_world):
    folder = small_world.folder / "truth"
    return {
        "activity": pd.read_csv(folder / "activity.tsv", sep="\t", index_col="name"),
        "biosamples": pd.read_csv(folder / "biosamples.tsv", sep="\t"),
        "expected": pd.read_parquet(folder / "expected.parquet"),
        "factors": pd.read_csv(folder / "factors.tsv", sep="\t"),
        "sites": pd.read_parquet(folder / "sites.parquet"),
    }


@pytest.fixture(scope="module")
def tiny_genome():
    return _simulated_genome.simulate_genome(TINY)


@pytest.fixture
def known_genome(monkeypatch, tiny_genome):
    """Spare tests the genome of `TINY`, which does not depend on the kind of world."""

    def simulate_genome(world):
        assert replace(world, kind="planted") == TINY
        return tiny_genome

    monkeypatch.setattr(simulate, "simulate_genome", simulate_genome)


# --- Arguments ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "plantet"}, "kind must be one of .*planted.*; got 'plantet'"),
        ({"n_chromosomes": 19}, "n_chromosomes must be an integer >= 20; got 19"),
        ({"windows_per_chromosome": 3}, "windows_per_chromosome .* >= 4; got 3"),
        ({"n_chromosomes": 24.0}, "n_chromosomes must be an integer .* got 24.0"),
        ({"n_replicates": -1}, "n_replicates must be an integer >= 0; got -1"),
        ({"seed": -1}, "seed must be an integer >= 0; got -1"),
        ({"window_bp": 8000}, "window_bp must be a positive multiple of 4096; got 80"),
        ({"window_bp": 0}, "window_bp must be a positive multiple of 4096; got 0"),
    ],
)
def test_world_rejects_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        World(**changes)


def test_write_world_checks_arguments_before_it_works(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "simulate_genome", lambda world: pytest.fail("ran"))
    for lineages in (["blod"], []):
        with pytest.raises(ValueError, match=r"lineages must be .*'blood'.*; got \["):
            simulate.write_world(tmp_path / "world", TINY, lineages=lineages)
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.txt").write_text("all of it")
    with pytest.raises(ValueError, match="thesis exists and is not a simulated world"):
        simulate.write_world(precious, TINY)
    with pytest.raises(ValueError, match="chapter1.txt exists and is not"):
        simulate.write_world(precious / "chapter1.txt", TINY)
    assert (precious / "chapter1.txt").read_text() == "all of it"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


# --- Files ---


def test_fasta_has_the_chromosomes_of_the_world(small_world):
    world, folder = small_world
    fasta = pysam.FastaFile(str(folder / "genome.fa"))
    assert list(fasta.references) == world.chromosomes
    assert set(fasta.lengths) == {4 * 4096}
    assert set(fasta.fetch("sim20")) == set("ACGT")


def test_bigwigs_hold_whole_cuts_at_single_bases(small_world):
    world, folder = small_world
    for path in folder.glob("*.bw"):
        bigwig = pybigtools.open(str(path))
        assert bigwig.chroms() == dict.fromkeys(world.chromosomes, 4 * 4096)
        for _, end, value in bigwig.records("sim3"):
            assert value == round(value) >= 1
            assert end <= 4 * 4096
        assert all(end - start == 1 for start, end, _ in bigwig.records("sim1"))


def test_scales_bring_all_tracks_to_one_depth(small_world):
    world, folder = small_world
    for name, entry in entries(folder).items():
        cuts = token_counts(folder / f"{name}.bw", world)
        assert entry["signal_kind"] == "cut_sites"
        # A cut is widened to 11 bases when it is read.
        assert np.isclose(cuts.mean() * 11 * entry["scale"], 3.0, rtol=1e-5)


def test_peaks_are_the_runs_of_tokens_far_above_the_median(small_world):
    world, folder = small_world
    counts = token_counts(folder / "liver_in_vivo.bw", world)
    level = max(np.median(counts), 0.5)
    expected = counts > level + 6 * np.sqrt(level)
    peaks = read_bed(folder / "liver_in_vivo.peaks.bed", "name", "cuts")
    inside = np.zeros((20, 4 * 4096), dtype=bool)
    for chrom, start, end, _, cuts in peaks.itertuples(index=False):
        i = world.chromosomes.index(chrom)
        inside[i, start:end] = True
        token = slice(i * 128 + start // 128, i * 128 + end // 128)
        assert counts[token].sum() == cuts
    assert 20 < len(peaks) == peaks["name"].nunique()
    assert np.array_equal(inside.reshape(-1, 128).all(axis=1), expected)
    assert np.array_equal(inside.reshape(-1, 128).any(axis=1), expected)


def test_states_tile_the_genome_with_roadmap_names(small_world):
    world, folder = small_world
    for name in entries(folder):
        table = states.read_segmentation(folder / f"{name}.states.bed")
        assert set(table["state"]) <= set(states.ROADMAP_18)
        for chrom in world.chromosomes:
            here = table[table["chrom"] == chrom]
            edges = [0, *here["end"]]
            assert list(here["start"]) == edges[:-1]
            assert edges[-1] == 4 * 4096
            previous = here["state"].astype(str).shift()
            assert (here["state"].astype(str) != previous).all()


def test_open_chromatin_is_enhancer_or_promoter(small_world, truth):
    table = read_bed(small_world.folder / "blood_in_vivo.states.bed", "state")
    repeats = (table["end"] - table["start"]) // 128
    state = table["state"].repeat(repeats).to_numpy()
    signal = truth["expected"]["blood_in_vivo"].groupby(state).mean()
    assert signal["9_EnhA1"] > 1.5 * signal["11_EnhWk"] > 10 * signal["18_Quies"]
    assert signal["1_TssA"] > 20 * signal["5_Tx"]


def test_genes_and_sets_agree(small_world):
    folder = small_world.folder
    genes = read_bed(folder / "genes.bed", "name", "score", "strand")
    assert genes["name"].is_unique
    assert (genes["end"] > genes["start"]).all()
    assert set(genes["strand"]) == {"+", "-"}
    lines = (folder / "go_bp.gmt").read_text().splitlines()
    terms = [line.split("\t")[0] for line in lines]
    assert terms[-1] == "myeloid cell differentiation (GO:0030099)"
    planted = [f"{t['name']} ({t['go']})" for t in BIOLOGY["programmes"].values()]
    assert terms[: len(planted)] == planted
    for line in lines:
        assert set(line.split("\t")[2:]) <= set(genes["name"])


def test_programmes_prefer_their_genes():
    world = World(windows_per_chromosome=512, window_bp=8192)  # 6,144 genes, no files
    genes = pd.concat(
        [_simulated_genome._genes(world, c) for c in world.chromosomes],
        ignore_index=True,
    )
    assert genes["past"].gt(genes["first"]).all()
    assert genes["tss"].between(genes["first"], genes["past"] - 1).all()
    forward = genes["strand"] == "+"
    assert (genes["tss"] == genes["first"])[forward].all()
    assert (genes["tss"] == genes["past"] - 1)[~forward].all()
    share = genes["programme"].value_counts(normalize=True)
    assert set(share.index) == {*BIOLOGY["programmes"], ""}
    assert np.allclose(share, 1 / 20, atol=0.015)


def test_windows_tile_chromosomes_that_keep_to_one_split(small_world):
    world, folder = small_world
    windows = pd.read_csv(folder / "windows.tsv", sep="\t")
    assert len(windows) == 20 * 4
    assert (windows["end"] - windows["start"] == 4096).all()
    for chrom, rows in windows.groupby("chrom"):
        assert list(rows["start"]) == [0, 4096, 8192, 12288]
        assert len(set(rows["split"])) == 1
        assert list(rows["block"]) == [f"{chrom}:{i}" for i in range(4)]
    chromosomes = windows.drop_duplicates("chrom")["split"].value_counts()
    assert chromosomes.to_dict() == {"select": 10, "tune": 4, "test": 6}


def test_default_world_has_enough_blocks_and_the_split_of_its_docstring():
    windows = simulate._windows(World())
    chromosomes = windows.drop_duplicates("chrom")["split"].value_counts()
    assert chromosomes.to_dict() == simulate.SPLIT
    assert windows.groupby("split")["block"].nunique()["select"] == 48
    assert set(windows.groupby("block").size()) == {8}


# --- Truth against the files ---


def test_hits_are_those_of_a_scan_of_the_fasta(small_world, truth):
    world, folder = small_world
    fasta = pysam.FastaFile(str(folder / "genome.fa"))
    sequences = [
        fasta.fetch(chrom, start, start + 128)
        for chrom, start in zip(
            truth["sites"]["chrom"], truth["sites"]["start"], strict=True
        )
    ]
    by_id = {m.id: m for m in motifs.read_motifs(folder / "motifs.meme")}
    planted = [by_id[i] for i in truth["factors"]["jaspar"]]
    found = motifs.count_hits(sequences, planted, p_value=5e-5)
    assert np.array_equal(found, truth["sites"][list(truth["factors"]["name"])])
    assert len(sequences) == world.n_chromosomes * world.tokens_per_chromosome


def test_planted_tokens_hold_their_motif(truth):
    sites = truth["sites"]
    planted = sites[sites["planted"] != ""]
    hits = np.array([row[row["planted"]] for _, row in planted.iterrows()])
    assert (hits >= 1).all()
    assert (hits >= 2).mean() > 0.97  # two or three copies, unless they do not fit
    elsewhere = sites[sites["planted"] == ""][list(truth["factors"]["name"])]
    # 5e-5 per strand, about 115 words a token.
    assert elsewhere.to_numpy().mean() == pytest.approx(2 * 115 * 5e-5, rel=0.3)
    assert 0.2 < len(planted) / len(sites) < 0.35


def test_promoters_hold_the_promoter_factor(small_world, truth):
    genes = read_bed(small_world.folder / "genes.bed", "name", "score", "strand")
    tss = np.where(genes["strand"] == "+", genes["start"], genes["end"] - 128)
    sites = truth["sites"].set_index(["chrom", "start"])["planted"]
    assert list(sites[list(zip(genes["chrom"], tss, strict=True))]) == ["NRF1"] * 20


def test_expected_signal_is_unbiased_with_negative_binomial_noise(small_world, truth):
    world, folder = small_world
    for name, entry in entries(folder).items():
        unit = 11 * entry["scale"]  # signal per cut
        counts = token_counts(folder / f"{name}.bw", world)
        mean = truth["expected"][name].to_numpy() / unit
        variance = mean + mean**2 / 20
        level = pd.qcut(mean, 5, labels=False)
        for i in range(5):
            own = level == i
            error = counts[own].sum() - mean[own].sum()
            assert abs(error) < 4.5 * np.sqrt(variance[own].sum()), (name, i)
        assert np.mean((counts - mean) ** 2 / variance) == pytest.approx(1, abs=0.15)


def test_levels_move_stretches_of_a_track_and_add_no_signal():
    logit, level = _simulated_tracks._noise(World(), "any", 64 * 4000)
    stretches = level.reshape(4000, 64)
    assert (np.ptp(stretches, axis=1) == 0).all()
    assert stretches[:, 0].std() == pytest.approx(0.7, rel=0.05)
    assert np.exp(stretches[:, 0]).mean() == pytest.approx(1, abs=0.06)
    # Domains, blocks and sites.
    assert logit.std() == pytest.approx(np.sqrt(0.6**2 + 0.1**2 + 0.3**2), rel=0.03)
    other, _ = _simulated_tracks._noise(World(), "other", 64 * 4000)
    domains = (x.reshape(-1, 32).mean(axis=1) for x in (logit, other))
    assert np.corrcoef(*domains)[0, 1] == pytest.approx(0.5, abs=0.05)


def test_cuts_of_open_tokens_gather_around_a_summit(small_world, truth):
    world, folder = small_world
    bigwig = pybigtools.open(str(folder / "liver_in_vitro.bw"))
    length = world.tokens_per_chromosome * 128
    values = [bigwig.values(c, 0, length, fillna=0.0) for c in world.chromosomes]
    offsets = np.concatenate(values).reshape(-1, 128)
    signal = truth["expected"]["liver_in_vitro"]
    center = offsets[:, 40:88].sum(axis=1)  # 24 bp, one SD, to either side
    # In a closed token 0.44 of 0.69 expected cuts fall around the summit.
    closed = (0.44 * 0.683 + 0.25 * 48 / 128) / 0.69
    for tokens, share in ((signal > 20, 0.683), (signal < signal.median(), closed)):
        found = center[tokens].sum() / offsets[tokens].sum()
        assert found == pytest.approx(share, abs=0.05)


def test_motif_activity_tells_contexts_apart(small_world, truth):
    """The vector of a biosample ranks its own factors first."""
    folder = small_world.folder
    vector = {
        name: motifs.motif_activity(motifs.read_sea(folder / f"{name}.motifs.tsv"))
        for name in ("blood_in_vitro", "blood_in_vivo")
    }
    names = {m.id for m in motifs.read_motifs(folder / "motifs.meme")}
    assert set(vector["blood_in_vivo"].index) == names
    factors = truth["factors"].set_index("name")
    shift = pd.Series(vector["blood_in_vivo"]) - vector["blood_in_vitro"]
    for name, sign in (("SPI1", 1), ("NR3C1", 1), ("TEAD", -1), ("NFY", -1)):
        assert sign * shift[factors["jaspar"][name]] > 0.02, name


# --- Biology ---


def reference_activity(lineage, context, factor):
    """What the comment at the head of planted_world.yml says."""
    here = "lineages" not in factor or lineage in factor["lineages"]
    right = {
        "shared-vitro": context == "in_vitro",
        "lineage-vitro": context == "in_vitro",
        "shared-vivo": context == "in_vivo",
        "lineage-vivo": context == "in_vivo",
        "lineage": True,
        "invariant": True,
    }[factor["role"]]
    return 1.0 if here and right else BIOLOGY["inactive"]


def test_activity_follows_roles_composition_and_handling(truth):
    for sample in truth["biosamples"].itertuples():
        for factor in BIOLOGY["factors"]:
            mixture = [
                reference_activity(lineage, sample.context, factor)
                for lineage in (sample.lineage, sample.mixed_in)
            ]
            expected = np.dot([1 - sample.fraction, sample.fraction], mixture)
            if factor["name"] == "AP-1":
                expected += sample.handling
            found = truth["activity"].loc[factor["name"], sample.name]
            assert found <= 1.2
            # Activities jitter by 10 %.
            assert abs(np.log(found / expected)) < 0.45 or found == 1.2


def test_nuisances_have_their_ranges_and_places():
    table = simulate.biosample_table(World(n_replicates=30))
    tissue = table["context"] == "in_vivo"
    assert table["depth"].between(0.5, 2).all()
    assert table["depth"].min() < 0.6
    assert table["depth"].max() > 1.7
    assert table.loc[tissue, "fraction"].between(0.1, 0.3).all()
    assert (table.loc[~tissue, "fraction"] == 0).all()
    assert 0.6 < table["gc_slope"].std() < 1.0
    assert (table["mixed_in"] != table["lineage"]).all()
    assert set(table["mixed_in"]) <= set(BIOLOGY["study"] + BIOLOGY["training"])
    handled = table["handling"] > 0
    assert (handled == (tissue & (table["lineage"] == "liver"))).all()


def test_biosamples_are_pairs_replicates_and_an_unseen_lineage():
    table = simulate.biosample_table(World())
    assert table["name"].is_unique
    counts = table.groupby(["lineage", "context"]).size()
    for lineage in counts.index.get_level_values("lineage"):
        expected = 3 if lineage in BIOLOGY["study"] else 1
        assert list(counts[lineage]) == [expected, expected]
    assert not table.loc[table["lineage"] == "kidney", "training"].any()
    trained = table[table["training"]]
    assert len(trained) == 2 * 11
    assert (trained["replicate"] == 0).all()


def activities(world):
    table = simulate.biosample_table(world)
    return table, np.array([activity(world, row) for _, row in table.iterrows()])


@pytest.mark.parametrize("kind", [k for k in simulate.KINDS if k != "planted"])
def test_null_worlds_differ_in_nothing_but_their_kind(kind):
    table, found = activities(World(kind=kind))
    tissue = (table["context"] == "in_vivo").to_numpy()
    assert (table["gc_slope"] == 0).all()
    assert (table["handling"] == 0).all()
    depth = np.where(tissue, 1.6, 1.0) if kind == "depth-only" else np.ones(len(table))
    assert np.array_equal(table["depth"], depth)
    fraction = 0.4 * tissue if kind == "composition-only" else np.zeros(len(table))
    assert np.allclose(table["fraction"], fraction)
    for lineage in set(table["lineage"]):
        own = (table["lineage"] == lineage).to_numpy()
        same = np.ptp(found[own], axis=0).max() == 0
        assert same == (kind != "composition-only")
        vitro = found[own & ~tissue]
        assert np.ptp(vitro, axis=0).max() == 0


def test_planted_contexts_and_replicates_do_differ():
    table, found = activities(World())
    first = found[table["name"] == "blood_in_vivo"][0]
    again = found[table["name"] == "blood_in_vivo_r1"][0]
    ratio = np.log(first / again)
    assert (
        0.08 < ratio.std() < 0.35
    )  # jitter of both, and the share of a second lineage


def test_composition_only_world_moves_tissues_toward_their_second_lineage():
    world = World(kind="composition-only")
    table, found = activities(world)
    by_name = dict(zip(table["name"], found, strict=True))
    for row in table[table["context"] == "in_vivo"].itertuples():
        second = by_name[f"{row.mixed_in}_in_vitro"]
        mixture = 0.6 * by_name[f"{row.lineage}_in_vitro"] + 0.4 * second
        assert np.allclose(by_name[row.name], mixture)


def test_depth_only_world_leaves_depth_in_the_scaled_tracks(tmp_path, known_genome):
    world = replace(TINY, kind="depth-only")
    folder = simulate.write_world(tmp_path / "world", world, lineages=["blood"])
    scales = {name: entry["scale"] for name, entry in entries(folder).items()}
    assert len(set(scales.values())) == 1
    expected = pd.read_parquet(folder / "truth" / "expected.parquet")
    for name in scales:
        cuts = token_counts(folder / f"{name}.bw", world).sum()
        assert cuts == pytest.approx(expected[name].sum(), rel=0.05)
    ratio = np.log(expected["blood_in_vivo"] / expected["blood_in_vitro"])
    assert np.exp(ratio.mean()) == pytest.approx(1.6, rel=0.1)  # noise of 80 domains


def test_motif_vector_only_world_differs_in_the_vector_only(tmp_path, known_genome):
    world = replace(TINY, kind="motif-vector-only")
    folder = simulate.write_world(tmp_path / "world", world, lineages=["blood"])
    table = pd.read_csv(folder / "truth" / "activity.tsv", sep="\t", index_col=0)
    assert (table["blood_in_vitro"] == table["blood_in_vivo"]).all()
    factors = simulate.factor_table().set_index("name")["jaspar"]
    vitro, vivo = (
        motifs.motif_activity(motifs.read_sea(folder / f"blood_{c}.motifs.tsv"))
        for c in ("in_vitro", "in_vivo")
    )
    assert vitro[factors["TEAD"]] > vivo[factors["TEAD"]] + 0.05
    assert vivo[factors["SPI1"]] > vitro[factors["SPI1"]] + 0.05


# --- Seeds, recipe, interruption ---


def test_same_world_gives_the_same_bytes(small_world, tmp_path):
    again = tmp_path / "again"
    simulate.write_world(again, small_world.world, lineages=["blood", "liver"])
    before, after = text_files(small_world.folder), text_files(again)
    assert before.keys() == after.keys()
    assert [k for k in before if before[k] != after[k]] == []
    for path in small_world.folder.glob("*.bw"):
        old, new = (token_counts(f / path.name, TINY) for f in (path.parent, again))
        assert np.array_equal(old, new)


def test_what_a_world_holds_changes_with_the_format_version_only(small_world):
    """The shipped model was trained on such files: raise FORMAT when they change."""
    digest = hashlib.sha256()
    for name, content in sorted(text_files(small_world.folder).items()):
        if name.endswith((".fa", ".bed", ".gmt", "windows.tsv")):  # whole numbers
            digest.update(name.encode() + content)
    assert (simulate.FORMAT, digest.hexdigest()[:16]) == (1, "5fe0afbc8e75e65b")


def test_seed_changes_the_genome_and_not_the_biology(small_world, tmp_path):
    junk = tmp_path / "other.partial" / "left by a killed run"
    junk.mkdir(parents=True)
    lines = []
    other = simulate.write_world(
        tmp_path / "other",
        replace(TINY, seed=8),
        lineages=["blood"],
        progress=lines.append,
    )
    assert [p.name for p in tmp_path.iterdir()] == ["other"]
    assert len(lines) == 2
    assert lines[0].startswith("blood_in_vitro: ")
    assert not list(other.rglob("left by*"))
    before, after = text_files(small_world.folder), text_files(other)
    for name in ("genome.fa", "blood_in_vivo.peaks.bed", "go_bp.gmt"):
        assert before[name] != after[name]
    for name in ("motifs.meme", "truth/factors.tsv", "windows.tsv"):
        assert before[name] == after[name]
    old, new = (
        pd.read_csv(f / "truth" / "activity.tsv", sep="\t", index_col=0)
        for f in (small_world.folder, other)
    )
    for name in new:
        assert np.corrcoef(old[name], new[name])[0, 1] > 0.9


def test_interrupted_writing_leaves_the_old_world_and_nothing_else(
    small_world, known_genome, tmp_path
):
    folder = tmp_path / "world"
    shutil.copytree(small_world.folder, folder)

    def interrupt(line):
        assert (tmp_path / "world.partial" / "genome.fa").is_file()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate.write_world(folder, TINY, lineages=["liver"], progress=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["world"]
    assert text_files(folder) == text_files(small_world.folder)


def test_recipe_is_json_and_tells_worlds_apart():
    recipe = simulate.recipe(World())
    assert json.loads(json.dumps(recipe)) == recipe
    assert recipe["format"] == simulate.FORMAT
    assert recipe["world"]["window_bp"] == 8192
    assert simulate.recipe(World(seed=1)) != recipe
    digest = hashlib.sha256(
        (resources.files("helpers") / "resources" / "planted_world.yml").read_bytes()
    )
    assert recipe["biology"] == digest.hexdigest()


def constants():
    """Yield every number that shapes a world."""
    for module in (_simulated_biology, _simulated_genome, _simulated_tracks, simulate):
        for name, value in vars(module).items():
            own = name.isupper() and not name.startswith("_")
            # Modules share the first two; the others list what can be asked for.
            if own and name not in ("TOKEN_BP", "DOMAIN_TOKENS", "KINDS", "CONTEXTS"):
                if isinstance(value, int | float):
                    yield pytest.param(module, name, value + 1, id=name)
                elif isinstance(value, tuple | dict):
                    yield pytest.param(module, name, list(value)[:-1], id=name)


@pytest.mark.parametrize(("module", "name", "other"), list(constants()))
def test_recipe_changes_with_every_constant(module, name, other, monkeypatch):
    before = simulate.recipe(World())
    monkeypatch.setattr(module, name, other)
    assert simulate.recipe(World()) != before


def test_recipe_names_the_motif_collection_in_use():
    path = resources.files("helpers") / "resources" / simulate._JASPAR_FILE
    with resources.as_file(path) as file:
        read = motifs.read_motifs(file)
    assert [m.id for m in read] == [m.id for m in motifs.jaspar_vertebrates()]
