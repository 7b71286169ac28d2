"""Judges sentence encoders by similarities that people stated; prints JSON.

    python tests/tools/similarity.py --models .cache/models MODEL.onnx [MODEL.onnx ...]

Tasks are those among the test data of the Python package gensim: WordSim-353 (353 pairs of words; Finkelstein and others,
2002), SimLex-999 (999 pairs; Hill, Reichart and Korhonen, 2015) and the documents of Lee, Pincombe and Welsh (2005; 1225 pairs
of 50 short news texts). The score of each is Spearman's rank correlation, times 100, between what people said and the
cosines of mean-pooled embeddings. Exit status 3: the package is not available here.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from downloads import exit_status, extract, is_verified, wheel
from evaluate import mean_pool, run

PACKAGE = ("gensim", "4.4.0", "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8", "3.11")
FOLDER = "gensim/test/test_data"
FILES = {
    "wordsim353.tsv": "f92a022fc2537793a15bc3a8c162ebcd74990e033a228bb6388cb71e4c0b1e1d",
    "simlex999.txt": "d5e0501971478a511430ee880bd0121e94ac701ba86d90544d83e6d2ba3db05d",
    "lee.cor": "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
    "similarities0-1.txt": "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
}
LENGTH = 128
OUTPUT = "last_hidden_state"


def fetch(folder):
    """Puts the files of the tasks into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if all(is_verified(folder / name, digest) for name, digest in FILES.items()):
        return
    name, version, digest, python = PACKAGE
    with tempfile.TemporaryDirectory() as work:
        archive = wheel(name, version, digest, Path(work), python=python)
        for member in FILES:
            extract(archive, f"{FOLDER}/{member}", folder / member)


def tasks(folder):
    """By task: texts, pairs of their numbers, and what people said of each pair."""
    found = {}
    for task, name in [("WordSim-353", "wordsim353.tsv"), ("SimLex-999", "simlex999.txt")]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
        words = sorted({word for row in rows for word in row[:2]})
        pairs = [(words.index(a), words.index(b)) for a, b, *_ in rows]
        found[task] = (words, np.array(pairs), np.array([float(row[2]) for row in rows]))
    texts = [line for line in (folder / "lee.cor").read_text(encoding="latin-1").splitlines() if line.strip()]
    said = np.array([[float(v) for v in line.split()]
                     for line in (folder / "similarities0-1.txt").read_text(encoding="utf-8").splitlines()])
    # What is said of a pair stands above the diagonal.
    pairs = np.array([(i, j) for j in range(len(texts)) for i in range(j)])
    found["Lee"] = (texts, pairs, said[pairs[:, 0], pairs[:, 1]])
    return found


def ranks(values):
    """Ranks from 0 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - 0.5 * (counts + 1))[inverse]


def spearman(a, b):
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


class Similarity:
    """The tasks, tokenized for the encoders of `fetch_models.py`."""

    def __init__(self, models, folder=None):
        folder = folder or models / "similarity"
        fetch(folder)
        self.tokenizer = Tokenizer.from_file(str(models / "tokenizer.json"))
        self.tokenizer.enable_truncation(LENGTH)
        self.tokenizer.enable_padding()
        self.tasks = tasks(folder)

    def inputs(self, texts):
        encodings = self.tokenizer.encode_batch(texts)
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def __call__(self, model):
        """By task, the score of an encoder, and their mean."""
        scores = {}
        for task, (texts, pairs, said) in self.tasks.items():
            inputs = self.inputs(texts)
            embedded = mean_pool(run(str(model), inputs)[OUTPUT], inputs["attention_mask"])
            embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
            cosines = (embedded[pairs[:, 0]] * embedded[pairs[:, 1]]).sum(axis=1)
            scores[task] = 100 * spearman(said, cosines)
        return scores | {"mean": float(np.mean(list(scores.values())))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the fetched models")
    parser.add_argument("model", type=Path, nargs="+", help="encoders with the inputs of MiniLM-L6")
    arguments = parser.parse_args()
    judge = Similarity(arguments.models)
    print(json.dumps({str(model): judge(model) for model in arguments.model}, indent=2))


if __name__ == "__main__":
    exit_status(main)
