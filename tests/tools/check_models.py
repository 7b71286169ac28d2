"""Runs real models from the Python registry through compiled code and compares with onnxruntime, each at two sizes.

    python tests/tools/check_models.py [--binary target/release/margay] [--all] [--update] [NAME ...]

`real_models.py` lists them. Packages above 30 MB are left out without `--all`. `tests/fixtures/real_models.txt` lists the
models that do not pass, each with the class of its reason; the check fails for a model that fails and is not listed, for
one that is listed with another reason, and for one that is listed and passes: the list may only become shorter.
`--update` writes it anew. Names choose the models that contain one of them, and show how far off they are.

An output is right if no number is off by more than 1e-3 of its largest one (and 1e-6 in all). Where numbers are rounded to
8 bits on the way, the L2 norm of the error is at most 0.1 of that of the output. onnxruntime sums products of 8-bit integers
without saturation here, as ONNX wants.

Classes of reasons:

    refused    margay says that it cannot run the model
    wrong      other numbers
    failed     a crash, or no answer within two minutes

A model whose package cannot be downloaded is skipped. The last line counts the models.
"""

import argparse
import shutil
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import failing as failing_list
import program
from build_real import build
from downloads import NotAvailable, extract, replace, sha256
from real_models import MODELS, arrays

ROOT = Path(__file__).resolve().parent.parent.parent
HEAD = "Real models that do not pass; tests/tools/check_models.py says what the reasons mean."
LIST = ROOT / "tests" / "fixtures" / "real_models.txt"
FOLDER = ROOT / ".cache" / "real"
BUILDERS = ("build_real.py", "build_minilm.py")
LARGE_MEGABYTES = 30
SECONDS = 120
SHARE, LEAST, NORM = 1e-3, 1e-6, 0.1


def path_of(model, folder):
    """Where the ONNX file of a model is, once `fetch` has brought it."""
    if model.package is None:
        return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / model.member
    return folder / f"{model.name}.onnx"


def is_there(model, folder):
    """Whether the file is the one that was made from the package as it is pinned."""
    path, stamp = path_of(model, folder), folder / f"{model.name}.stamp"
    return path.is_file() and (model.package is None or stamp.is_file() and stamp.read_text() == stamp_of(model, path))


def stamp_of(model, path):
    builder = " ".join(sha256(Path(__file__).with_name(name)) for name in BUILDERS) if model.build else "none"
    return f"package {model.package.sha256}\nmember {model.member}\nbuilder {builder}\nmodel {sha256(path)}\n"


def fetch(package, models, folder):
    """Brings the files of one package; the reason why that is not possible here, if it is not."""
    with tempfile.TemporaryDirectory() as work:
        try:
            archive = package.fetch(Path(work))
        except NotAvailable as reason:
            return str(reason)
        for model in models:
            path = path_of(model, folder)
            source = Path(work) / "member"
            extract(archive, model.member, source)
            if model.build:
                build(model.build, source, path)
            else:
                replace(path, lambda temporary: shutil.move(source, temporary))
            (folder / f"{model.name}.stamp").write_text(stamp_of(model, path))
    return None


def fetch_all(models, folder):
    """Brings the files that are missing, several packages at a time; models that cannot be had, with the reason."""
    missing = defaultdict(list)
    for model in models:
        if not is_there(model, folder):
            missing[model.package].append(model)
    with ThreadPoolExecutor(4) as pool:
        reasons = pool.map(lambda item: fetch(item[0], item[1], folder), missing.items())
        return {m.name: reason for wanted, reason in zip(missing.values(), reasons) if reason for m in wanted}


def fetch_named(name):
    """The file of one model, which is brought if it is not there.

    Raises `NotAvailable` where it cannot be had.
    """
    (model,) = [model for model in MODELS if model.name == name]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for reason in fetch_all([model], FOLDER).values():
        raise NotAvailable(reason)
    return path_of(model, FOLDER)


def expected_of(path, inputs):
    """What onnxruntime computes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs)))


def error_of(expected, found, rounds):
    """The error as a share of what is allowed; text where the outputs cannot be compared."""
    if found is None:
        return "an output is missing"
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return f"expected {expected.dtype}{expected.shape}, found {found.dtype}{found.shape}"
    if expected.size == 0:
        return 0.0
    x, y = expected.astype(np.float64), found.astype(np.float64)
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(x, y) else "other integers"
    if not np.array_equal(np.isfinite(x), np.isfinite(y)):
        return "numbers that are not finite"
    x, y = np.nan_to_num(x), np.nan_to_num(y)
    if rounds:
        return np.linalg.norm(x - y) / (NORM * np.linalg.norm(x) + LEAST)
    return np.abs(x - y).max() / (SHARE * np.abs(x).max() + LEAST)


def run_model(binary, model, folder):
    """The class of the reason why a model does not pass and what there is to say; the class is `None` if it does."""
    path, worst = path_of(model, folder), 0.0
    for size in range(len(model.sizes)):
        inputs = arrays(model, size)
        expected = expected_of(path, inputs)
        status, message, found = program.run(binary, path, inputs, SECONDS)
        if status is None:
            return "failed", message
        if status != 0:
            return "refused" if status in (2, 3) else "failed", f"size {size}: {message}"
        for name, output in expected.items():
            error = error_of(output, found.get(name), model.rounds)
            if isinstance(error, str) or not error <= 1.0:
                said = error if isinstance(error, str) else f"{error:.3g} times the error that is allowed"
                return "wrong", f"size {size}, output `{name}`: {said}"
            worst = max(worst, error)
    return None, f"at most {worst:.2g} of the error that is allowed"


def chosen(args):
    small = [m for m in MODELS if args.all or m.package is None or m.package.megabytes <= LARGE_MEGABYTES]
    return [m for m in MODELS if any(n in m.name for n in args.names)] if args.names else small


def main():
    parser = argparse.ArgumentParser(description="Runs real models and compares with onnxruntime.")
    program.add_binary(parser)
    parser.add_argument("--all", action="store_true", help="also models of large packages")
    parser.add_argument("--update", action="store_true", help="write the list of models that do not pass")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where models are kept")
    parser.add_argument("names", nargs="*", metavar="NAME", help="run the models that contain one of these")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    binary, models = str(Path(args.binary).resolve()), chosen(args)
    skipped = fetch_all(models, args.folder)
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}")
    here = [m for m in models if m.name not in skipped]
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip((m.name for m in here), pool.map(lambda m: run_model(binary, m, args.folder), here)))
    failing = {name: reason for name, (reason, _) in results.items() if reason}
    if args.names:
        for name, (reason, message) in results.items():
            print(f"{name}: {reason or 'passes'}: {message}")
        return 1 if failing else 0
    listed = failing_list.read(LIST)
    if args.update:
        unseen = {name: reason for name, reason in listed.items() if name not in results}
        listed = unseen | failing
        failing_list.write(LIST, HEAD, listed)
    wrong = failing_list.compare(results, listed)
    print(f"{len(results) - len(failing)} of {len(results)} real models pass at {sum(len(m.sizes) for m in here)} sizes")
    print(f"{len(results) - len(failing)} passed, {wrong} failed, {len(skipped)} skipped")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
