#!/usr/bin/env python3
"""Times what `margay export` writes of real models against the originals, both in onnxruntime with one thread; writes the
result file and the page of `real.py`.

    tests/tools/check_models.py --binary target/release/margay --all      brings the models into .cache/real
    benches/peers/exports.py --rounds 9                                   all that are there
    benches/peers/exports.py --models silero,rawi                         those whose names contain one of these

A model is run at the first of its sizes in `tests/tools/real_models.py`. It is exported with its dimensions open; where that is
refused, for the extents and the inputs without axes of that size. In a round both take turns, and who begins changes; times
are processor times of the thread that runs. Results of earlier calls stay until their models are timed again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from peers import ROOT, describe
from real import PAGE, RESULTS, page
from run import names, say

sys.path.insert(0, str(ROOT / "tests" / "tools"))
import program  # noqa: E402
from check_models import is_there, path_of  # noqa: E402
from real_models import MODELS, arrays  # noqa: E402


def session_of(path):
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def extents(source, inputs):
    """What `--dim` and `--fix` say of inputs: extents that the model leaves open, and inputs without axes."""
    words = []
    graph = onnx.load(source, load_external_data=False).graph
    stored, given = {i.name for i in graph.initializer}, {}
    for port in (p for p in graph.input if p.name not in stored):
        array = inputs[port.name]
        if array.ndim == 0:
            words += ["--fix", f"{port.name}={array}"]
        for axis, dim in enumerate(port.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                given[dim.dim_param or f"{port.name}_d{axis}"] = array.shape[axis]
    return words + [word for name, extent in given.items() for word in ("--dim", f"{name}={extent}")]


def exported(binary, source, path, inputs):
    """Writes the export: whether it holds for these extents alone, or why there is none."""
    for options in ([], extents(source, inputs)):
        done = subprocess.run([binary, "export", str(source), "-o", str(path), *options], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return bool(options), None
    return None, " ".join(done.stderr.split())[:200]


def calls_of(run, seconds):
    """How many calls take about so many seconds."""
    run()
    start = time.thread_time()
    run()
    return max(1, int(seconds / max(time.thread_time() - start, 1e-6)))


def time_of(run, calls):
    """Processor time of a call."""
    start = time.thread_time()
    for _ in range(calls):
        run()
    return (time.thread_time() - start) / calls


def error_of(expected, found):
    """The relative L2 norm of the difference of all outputs; `None` where they cannot be compared."""
    square, whole = 0.0, 0.0
    for x, y in zip(expected, found):
        if x.shape != y.shape or x.dtype != y.dtype:
            return None
        x, y = np.nan_to_num(x.astype(np.float64)), np.nan_to_num(y.astype(np.float64))
        square, whole = square + np.sum((x - y) ** 2), whole + np.sum(x**2)
    return float(np.sqrt(square / whole)) if whole else float(np.sqrt(square))


def counted(graph):
    """Nodes of a graph and of those inside, by operator."""
    count = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else []:
                count += counted(inner)
    return count


def difference(source, path):
    """Operators that are more or fewer in the export, the largest differences first."""
    before, after = (counted(onnx.load(p, load_external_data=False).graph) for p in (source, path))
    changes = {name: after[name] - before[name] for name in before | after if after[name] != before[name]}
    return [f"{name} {'+' if n > 0 else '−'}{abs(n)}" for name, n in sorted(changes.items(), key=lambda i: (-abs(i[1]), i[0]))]


def compared(model, args, folder, about):
    """The row of a model in the result file."""
    source, path, inputs = path_of(model, args.folder), folder / "export.onnx", arrays(model, 0)
    for_extents, refused = exported(args.binary, source, path, inputs)
    if refused:
        return {"refused": refused}
    sessions = [session_of(source), session_of(path)]
    wanted = [output.name for output in sessions[0].get_outputs()]
    runs = []
    for session in sessions:
        taken = {port.name for port in session.get_inputs()}
        runs.append(lambda session=session, given={n: a for n, a in inputs.items() if n in taken}: session.run(wanted, given))
    error = error_of(runs[0](), runs[1]())
    calls = [calls_of(run, args.seconds) for run in runs]
    rounds = []
    for number in range(args.rounds):
        order = [0, 1] if number % 2 == 0 else [1, 0]
        taken = {which: time_of(runs[which], calls[which]) for which in order}
        rounds.append([taken[0], taken[1]])
    return {
        "original_ms": 1e3 * statistics.median(r[0] for r in rounds), "export_ms": 1e3 * statistics.median(r[1] for r in rounds),
        "ratios": sorted(r[1] / r[0] for r in rounds), "error": error, "for_extents": for_extents,
        "operators": difference(source, path)[:6], "version": onnxruntime.__version__,
        "commit": about["commit"], "date": about["date"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    program.add_binary(parser)
    parser.add_argument("--models", type=names, help="parts of names; default all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each side in a round")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "real", help="where check_models.py keeps models")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    rows, about = found.setdefault("exports", {}), describe()
    for model in MODELS:
        if not is_there(model, args.folder) or args.models and not any(part in model.name for part in args.models):
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = compared(model, args, Path(folder), about)
        rows[model.name] = row
        said = row.get("refused") or f"{statistics.median(row['ratios']):.3f}, error {row['error']}"
        say(f"{model.name}: {said}")
        RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
