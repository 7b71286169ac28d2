"""Errors of raw f32 outputs against a reference: `errors.py REFERENCE FILE...` prints a JSON object by file.

`max` is the largest absolute difference, `relative` the L2 norm of the difference over that of the reference. A file
of another length, or one with numbers that are not finite where the reference is, has the error null.
"""

import json
import sys

import numpy as np


def errors(reference, values):
    if values.shape != reference.shape or not np.isfinite(values).all():
        return None
    difference = values - reference
    norm = np.linalg.norm(reference)
    return {"max": float(np.abs(difference).max()), "relative": float(np.linalg.norm(difference) / norm)}


def main():
    read = lambda path: np.fromfile(path, "<f4").astype(np.float64)
    reference = read(sys.argv[1])
    print(json.dumps({path: errors(reference, read(path)) for path in sys.argv[2:]}))


if __name__ == "__main__":
    main()
