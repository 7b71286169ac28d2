"""Measures what sketches keep of AntiBERTy, a BERT of antibodies, in its own task; prints a table and JSON lines.

    python tests/tools/measure_antibodies.py [--binary target/release/margay] [--share 70,50,25] [--recover SECONDS]
        [--out results.jsonl] [-- MORE OPTIONS OF compile]

The model is `antiberty` of `check_models.py`, which fetches it (Ruffolo, Gray and Sulam, *Deciphering antibody affinity
maturation with language models*, 2021, arXiv 2112.07782). Sequences are the heavy chains of the Debian package r-cran-alakazam, of
which 1347 are whole; they are fetched and not kept. `loss` is the cross entropy of 15% of the residues of the first 256
sequences, which are masked, and `right` the share of them that is found; a dense model that knows nothing has a loss of
2.996. The other sequences, masked once each, calibrate; masked anew eight times, they are what recovery learns from: answers of
the dense model, no labels. Exit status 3: a package is not available here.
"""

import csv
import gzip
import itertools
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import shares
from check_models import fetch_named
from downloads import debian_files, exit_status
from evaluate import run
from real_models import ANTIBERTY

AIRR = "usr/lib/R/site-library/alakazam/extdata/example_airr.tsv.gz"
AIRR_SHA256 = "b1fc4df8b6748e6329a46a3a4af31ddf29776f58ba4995fc77f5856c5f061d50"
VOCABULARY = "antiberty/trained_models/vocab.txt"
JUDGED, MASKED_SHARE, TIMES = 256, 0.15, 8
# The standard genetic code, with T, C, A, G as digits of the codon, and * for an end.
CODE = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
CODONS = {"".join(codon): acid for codon, acid in zip(itertools.product("TCAG", repeat=3), CODE)}


def sequences(folder):
    """The different whole heavy chains, as letters of amino acids, in the order of the file."""
    (path,) = debian_files("r-cran-alakazam", {AIRR: AIRR_SHA256}, folder)
    found = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            aligned = row["sequence_alignment"].upper()
            codons = (aligned[i : i + 3] for i in range(0, len(aligned) - 2, 3))
            chain = "".join(CODONS.get(codon, "X") for codon in codons if codon not in ("...", "---")).strip("X")
            if "X" not in chain and "*" not in chain and len(chain) >= 100:
                found[chain] = None
    return list(found)


def masked(chains, vocabulary, length, seed):
    """Inputs of `[chains, length]` with a share of the residues masked, and labels: what they were, and -1 elsewhere."""
    random = np.random.default_rng(seed)
    ids = np.zeros((len(chains), length), np.int64)
    attended, labels = np.zeros_like(ids), np.full_like(ids, -1)
    for row, chain in enumerate(chains):
        tokens = ["[CLS]", *chain, "[SEP]"]
        ids[row, : len(tokens)] = [vocabulary[token] for token in tokens]
        attended[row, : len(tokens)] = 1
        hidden = 1 + random.permutation(len(chain))[: int(MASKED_SHARE * len(chain))]
        labels[row, hidden] = ids[row, hidden]
        ids[row, hidden] = vocabulary["[MASK]"]
    return {"input_ids": ids, "attention_mask": attended, "token_type_ids": np.zeros_like(ids)}, labels


def main():
    given = shares.arguments(__doc__, "70,50,25")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(ANTIBERTY.fetch(Path(folder))) as archive:
            words = archive.read(VOCABULARY).decode().split()
        chains = sequences(Path(folder))
    vocabulary = {word: i for i, word in enumerate(words)}
    length = 2 + max(map(len, chains))
    inputs, labels = masked(chains[:JUDGED], vocabulary, length, 0)
    hidden = labels >= 0
    others = chains[JUDGED:]

    def judge(path):
        logits = run(str(path), inputs)["logits"][hidden].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -log_shares[np.arange(len(logits)), labels[hidden]].mean()
        return {"loss": float(loss), "right": float((logits.argmax(axis=1) == labels[hidden]).mean())}

    shares.measure(given, fetch_named("antiberty"), masked(others, vocabulary, length, 1)[0],
                   masked(others * TIMES, vocabulary, length, 2)[0], judge)


if __name__ == "__main__":
    exit_status(main)
