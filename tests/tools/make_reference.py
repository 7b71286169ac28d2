"""Writes inputs and onnxruntime's outputs for the fetched models.

For each model, batch size and length there are two files, `NAME_b2_s16.in.npz` and
`NAME_b2_s16.out.npz`, whose keys are the input and output names of the graph. Token ids are random;
rows end in a random amount of padding, except that the first has none.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime

from downloads import replace

MODELS = ("minilm_l3", "minilm_l6")
BATCHES = (2, 5)
LENGTHS = (16, 37)
SEED = 20
# The word pieces of the vocabulary; special and unused tokens come before them.
FIRST_ID, LAST_ID = 1996, 30521
CLS, SEP = 101, 102


def random_inputs(names, batch, length, rng):
    """Token ids framed by [CLS] and [SEP], and a mask that hides the padding."""
    ids = rng.integers(FIRST_ID, LAST_ID + 1, size=(batch, length))
    mask = np.ones_like(ids)
    used = rng.integers(length // 2, length + 1, size=batch)
    used[0] = length
    for row, count in enumerate(used):
        ids[row, 0], ids[row, count - 1] = CLS, SEP
        ids[row, count:] = 0
        mask[row, count:] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: known[name].astype(np.int64) for name in names}


def write_npz(path, arrays):
    def write(temporary):
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    replace(path, write)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of fetch_models.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        session = onnxruntime.InferenceSession(
            arguments.models / f"{model}.onnx", providers=["CPUExecutionProvider"]
        )
        input_names = [value.name for value in session.get_inputs()]
        output_names = [value.name for value in session.get_outputs()]
        rng = np.random.default_rng(SEED)
        for batch in BATCHES:
            for length in LENGTHS:
                inputs = random_inputs(input_names, batch, length, rng)
                outputs = dict(zip(output_names, session.run(output_names, inputs)))
                case = f"{model}_b{batch}_s{length}"
                write_npz(arguments.out / f"{case}.in.npz", inputs)
                write_npz(arguments.out / f"{case}.out.npz", outputs)


if __name__ == "__main__":
    main()
