"""Make the bundled JASPAR 2026 CORE vertebrates motif file from pyJASPAR.

    pip install pyjaspar==4.0.0
    python scripts/make_jaspar.py

pyJASPAR carries every JASPAR release (136 MB), so it is needed here only and not by the
package. The output has no time stamp: the same release gives the same text.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from pyjaspar import jaspardb

from helpers.motifs import Motif, write_meme

RELEASE = "JASPAR2026"
PSEUDOCOUNT = 0.1  # per cell: the profiles are counts, some of them zero
TARGET = Path(__file__).parents[1] / (
    "src/helpers/resources/jaspar2026_core_vertebrates.meme.gz"
)
HEADER = """\
JASPAR 2026, CORE collection, vertebrates: all profiles, as probabilities.
License: Creative Commons Attribution 4.0 International (CC BY 4.0),
https://creativecommons.org/licenses/by/4.0/
Source: JASPAR, https://jaspar.elixir.no, read through pyJASPAR 4.0.0.
Citation: Ovek Baydar D, Rauluseviciute I, Aronsen DR, et al. JASPAR 2026: expansion of
transcription factor binding profiles and integration of deep learning models. Nucleic
Acids Research 2026; 54(D1): D184-D193. https://doi.org/10.1093/nar/gkaf1209
Changes: counts plus 0.1 per cell, divided by the sum of the position; the structural
families of a profile are listed below, joined by a semicolon."""


def vertebrate_motifs() -> list[Motif]:
    """Read the CORE vertebrate profiles, ordered by identifier.

    Returns
    -------
    list of Motif
        Probabilities with the family of each profile.
    """
    profiles = jaspardb(release=RELEASE).fetch_motifs(
        collection="CORE", tax_group=["vertebrates"]
    )
    motifs = []
    for profile in sorted(profiles, key=lambda profile: profile.matrix_id):
        counts = np.array([profile.counts[base] for base in "ACGT"]).T + PSEUDOCOUNT
        motifs.append(
            Motif(
                id=profile.matrix_id,
                name=profile.name,
                probabilities=counts / counts.sum(axis=1, keepdims=True),
                family="; ".join(profile.tf_family or []) or None,
            )
        )
    return motifs


def main() -> None:
    """Write the motif file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=TARGET)
    arguments = parser.parse_args()
    motifs = vertebrate_motifs()
    write_meme(arguments.output, motifs, header_comment=HEADER)
    logging.getLogger(__name__).info("%d motifs: %s", len(motifs), arguments.output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
