"""Makes a corpus for the programs in tests/fuzz of the node cases of the package `onnx`.

    python tests/tools/fuzz_corpus.py --out tests/fuzz/corpus [--binary target/release/margay] [--most BYTES]

Every case whose model is small is copied; what the program compiles of it gives the texts of graphs and programs, the
artifact, and the plan. Files are named by their contents, so that a corpus may be added to. Seeds made in Rust come from
the example `hostile_run` of margay-tests; docs/fuzzing.md has both commands. The last line counts the files.
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

import program

SECONDS = 60
TARGETS = ("onnx", "graph_text", "program_text", "artifact", "plan", "arrays")


def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return sorted(load_model_tests(kind="node"), key=lambda case: case.name)


def keep(out, target, content, most):
    """Writes a file of a corpus, unless it is large or there."""
    if len(content) <= most:
        (out / target / hashlib.blake2b(content, digest_size=8).hexdigest()).write_bytes(content)


def arrays_of(case):
    """The first inputs of a case as an archive; none where one is no array of numbers."""
    try:
        inputs = case.data_sets[0][0]
        found = {f"x{i}": np.asarray(value) for i, value in enumerate(inputs)}
    except (ValueError, TypeError, IndexError):
        return None
    if any(array.dtype.kind not in "biuf" for array in found.values()):
        return None
    archive = io.BytesIO()
    np.savez_compressed(archive, **found)
    return archive.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    program.add_binary(parser)
    parser.add_argument("--most", type=int, default=1 << 16, help="bytes of a file, at most")
    args = parser.parse_args()
    for target in TARGETS:
        (args.out / target).mkdir(parents=True, exist_ok=True)
    for case in cases():
        model = case.model.SerializeToString()
        if len(model) > args.most:
            continue
        keep(args.out, "onnx", model, args.most)
        if (archive := arrays_of(case)) is not None:
            keep(args.out, "arrays", archive, args.most)
        with tempfile.TemporaryDirectory() as folder:
            compile_one(args, model, Path(folder))
    counts = {target: len(list((args.out / target).iterdir())) for target in TARGETS}
    print(", ".join(f"{count} {target}" for target, count in counts.items()))


def compile_one(args, model, folder):
    """Compiles a model, and keeps what that makes; a model that is refused gives nothing."""
    path, artifact, dump, plan = (folder / name for name in ("m.onnx", "m.margay", "dump", "plan.toml"))
    path.write_bytes(model)
    command = [args.binary, "compile", path, "-o", artifact, "--dump-dir", dump, "--save-plan", plan]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return
    if done.returncode != 0:
        return
    keep(args.out, "artifact", artifact.read_bytes(), args.most)
    keep(args.out, "plan", plan.read_bytes(), args.most)
    for text in dump.iterdir():
        if text.suffix == ".ir":
            keep(args.out, "graph_text", text.read_bytes(), args.most)
        elif text.name.startswith("program"):
            keep(args.out, "program_text", text.read_bytes(), args.most)


if __name__ == "__main__":
    sys.exit(main())
