#!/usr/bin/env python3
"""Times real models from the Python registry against onnxruntime with one thread; writes a result file and a page.

    tests/tools/check_models.py --binary target/release/margay --all      brings the models into .cache/real
    benches/peers/real.py --rounds 5                                      all that are there
    benches/peers/real.py --models silero,magika                          those whose names contain one of these
    benches/peers/real.py --report                                        the page alone, from the result file

A model is run at the first of its sizes in `tests/tools/real_models.py`. Both sides get the same ONNX file: extents bound
to those of the inputs, inputs without axes as constants, integers of 32 bits given as such of 64, all outputs in f32.
Rounds and peers are those of `run.py`; ratios are of processor time. Where margay is slower, the steps that take most of its time are noted.
Times of earlier calls stay in the result file until their models are timed again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from peers import CACHE, ROOT, Paths, Probe, Unavailable, describe
from report import digits, milliseconds, number, ratios, spread, table
from run import measure, names, say

sys.path.insert(0, str(ROOT / "tests" / "tools"))
from check_models import is_there, path_of  # noqa: E402
from real_models import MODELS, arrays  # noqa: E402

RESULTS = ROOT / "benches" / "results" / "real_models.json"
PAGE = ROOT / "docs" / "real_models.md"
PEERS = ["margay", "onnxruntime"]
BAR = 0.8
STEPS = 3

HEAD = """# Real models

*Written by `benches/peers/real.py` from `benches/results/real_models.json`; do not edit.*

Models that packages of the Python registry hold, beside onnxruntime {version} on the same ONNX files, with one thread.
**A ratio is the processor time of a run in onnxruntime over that in margay: above 1, margay is faster**; the median over
rounds in which both take turns, the smallest and the largest in brackets. Times are processor times as well, since those by
the clock hold the share of other programs; what others do to caches they do hold. The error is the relative L2 norm of the
difference of the outputs.
Models marked * round to 8 bits on the way, where a number between two steps may go either way. That outputs agree at two
sizes each is what `tests/tools/check_models.py` tests; `tests/tools/real_models.py` says where the models come from.

```
tests/tools/check_models.py --binary target/release/margay --all
benches/peers/real.py --rounds 5
benches/peers/exports.py --rounds 9
```

Machine: {cpu}, {cores} cores, {vectors}; load average when the models were timed {load}. Commit {commit}, {date}.

{summary}

"""


def prepare(model, source, folder):
    """Writes the folder of a model for the peers: its file with all extents bound, and the inputs."""
    given = arrays(model, 0)
    proto = onnx.load(source)
    # From here on constants need not be inputs.
    proto.ir_version = max(proto.ir_version, 4)
    graph = proto.graph
    constants = {name for name, array in given.items() if array.ndim == 0}
    graph.initializer.extend(numpy_helper.from_array(given[name], name) for name in sorted(constants))
    fed = {}
    stored = {i.name for i in graph.initializer}
    ports = [port for port in graph.input if port.name not in stored]
    del graph.input[:]
    casts = []
    for port in ports:
        array, name = given[port.name], port.name
        if array.dtype == np.int32:
            name, array = f"{port.name}_wide", array.astype(np.int64)
            casts.append(helper.make_node("Cast", [name], [port.name], name=f"{name}_cast", to=TensorProto.INT32))
        fed[name] = array
        graph.input.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))
    found = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, given)
    shown = []
    for port, array in zip(graph.output, found):
        name = f"{port.name}_shown"
        casts.append(helper.make_node("Cast", [port.name], [name], name=name, to=TensorProto.FLOAT))
        shown.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    nodes = [node for node in casts if node.name.endswith("_cast")] + list(graph.node)
    nodes += [node for node in casts if not node.name.endswith("_cast")]
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.output.extend(shown)
    inputs = folder / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "model.onnx")
    np.savez(inputs / "inputs.npz", **fed)
    lines = []
    for i, (name, array) in enumerate(fed.items()):
        kind = {"float32": "f32", "int64": "i64"}[array.dtype.name]
        (inputs / f"{i}.bin").write_bytes(np.ascontiguousarray(array).tobytes())
        lines.append(f"{name} {kind} {','.join(map(str, array.shape))} {i}.bin\n")
    (inputs / "index.txt").write_text("".join(lines))
    (folder / "stamp").touch()


def slow_steps(paths, name):
    """The steps of a run that take most of margay's time: what they are, and their share in it."""
    folder = paths.model(name)
    command = [paths.program("margay"), "bench", str(folder / "margay.margay"), "--inputs", str(folder / "inputs" / "inputs.npz"),
               "--threads", "1", "--rounds", "20", "--steps", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return []
    steps = json.loads(done.stdout)["models"][0]["steps"]
    total = sum(step["median_ms"] for step in steps) or 1.0
    shares = {}
    for step in steps:
        kind = step["work"].split("(")[0].split(" ")[0]
        shares[kind] = shares.get(kind, 0.0) + step["median_ms"] / total
    worst = max(steps, key=lambda step: step["median_ms"])
    kinds = sorted(shares.items(), key=lambda item: -item[1])[:STEPS]
    return [f"{kind} {100 * share:.0f}%" for kind, share in kinds] + [
        f"longest: {worst['label'][:60]} {100 * worst['median_ms'] / total:.0f}%"]


def error_of(result):
    """The relative error; 0 for outputs that are all 0 on both sides, `None` for wrong ones."""
    error = result["peers"]["margay"]["error"]
    return error and (error["relative"] if error["max"] else 0.0)


def timed(paths, model, args, probe):
    """The row of a model in the result file."""
    result = measure(paths, model.name, 1, args, probe)
    if set(PEERS) - set(result["peers"]):
        return {"left_out": result["left_out"]}
    over = ratios(result, "onnxruntime", "margay", "cpu")
    row = {
        "processor_ms": {p: milliseconds(result, p, "cpu") for p in PEERS},
        "clock_ms": {p: milliseconds(result, p) for p in PEERS},
        "ratios": over, "error": error_of(result), "rounds": len(over),
        "version": result["peers"]["onnxruntime"]["version"], "load_average": result["load_average"],
        "commit": result["commit"], "date": result["date"],
    }
    return row | ({"steps": slow_steps(paths, model.name)} if statistics.median(over) < 1 else {})


EXPORTS = """What `margay export` writes without a goal, beside the original, both in onnxruntime {version} with one thread, by
`benches/peers/exports.py`. **A ratio is the processor time of a run of the export over that of the original: above 1, the
export is slower**; the median over rounds, the smallest and the largest in brackets. The error is the relative L2 norm of the
difference of the outputs: that of squeezenet, whose weights are all equal, is one rounding of numbers of about 1e10 before a
softmax. Exports marked ¹ hold for the extents and the inputs without axes of this run alone. Commit {commit}, {date}.

{summary}

"""
SLOWER = 1.05


def of_exports(rows, rounding):
    """The section on exports: the slowest first."""
    done = {name: row for name, row in rows.items() if "ratios" in row}
    medians = {name: statistics.median(row["ratios"]) for name, row in done.items()}
    slow = sum(m > SLOWER for m in medians.values())
    refused = "".join(f" `{name}` is not exported: {row['refused']}." for name, row in sorted(rows.items()) if "refused" in row)
    summary = (f"{len(done)} models; {slow} exports take more than {SLOWER} times as long as the original; the median ratio is "
               f"{statistics.median(medians.values()):.2f}.{refused}")
    lines = []
    for name, ratio in sorted(medians.items(), key=lambda item: -item[1]):
        row = done[name]
        shown = f"**{spread(row['ratios'])}**" if ratio > SLOWER else spread(row["ratios"])
        error = "**wrong**" if row["error"] is None else digits(row["error"])
        label = name + ("*" if name in rounding else "") + ("¹" if row["for_extents"] else "")
        why = ", ".join(row["operators"]) if ratio > SLOWER else ""
        lines.append([label, number(row["original_ms"]), number(row["export_ms"]), shown, error, why])
    text = EXPORTS.format(
        version=", ".join(sorted({r["version"] for r in done.values()})), summary=summary,
        commit=", ".join(sorted({r["commit"] for r in done.values()})),
        date=", ".join(sorted({r["date"][:10] for r in done.values()})))
    head = ["model", "original, ms", "export, ms", "ratio", "error", "operators more or fewer, where it is slower"]
    return text + table(head, lines)


def page(found):
    """The page of a result file: the slowest models first."""
    rows, lost = [], []
    rounding = {m.name for m in MODELS if m.rounds}
    measured = {name: row for name, row in found["models"].items() if "ratios" in row}
    for name, row in sorted(measured.items(), key=lambda item: statistics.median(item[1]["ratios"])):
        ratio = statistics.median(row["ratios"])
        shown = f"**{spread(row['ratios'])}**" if ratio < 1 else spread(row["ratios"])
        error = "**wrong**" if row["error"] is None else digits(row["error"])
        ms = row["processor_ms"]
        rows.append([name + ("*" if name in rounding else ""), number(ms["margay"]), number(ms["onnxruntime"]), shown, error])
        if ratio < 1:
            lost.append([name, f"{ratio:.2f}", "; ".join(row.get("steps", []))])
    medians = [statistics.median(row["ratios"]) for row in measured.values()]
    slow = sum(m < BAR for m in medians)
    summary = (f"{len(measured)} models; margay is faster in {sum(m >= 1 for m in medians)}, below {BAR} times the speed of "
               f"onnxruntime in {slow}; the median ratio is {statistics.median(medians):.2f}.")
    machine, rest = found["machine"], list(measured.values())
    loads = [row["load_average"] for row in rest]
    text = HEAD.format(
        version=rest[0]["version"], cpu=machine["cpu"], cores=machine["cores"],
        vectors="AVX-512" if "avx512f" in machine["features"] else "AVX2",
        load=f"{min(loads):.1f} to {max(loads):.1f}", commit=", ".join(sorted({r["commit"] for r in rest})),
        date=", ".join(sorted({r["date"][:10] for r in rest})), summary=summary)
    text += table(["model", "margay, ms", "onnxruntime, ms", "ratio", "error"], rows)
    if lost:
        text += "\n## Where the time goes in models that are slower\n\n"
        text += table(["model", "ratio", "kinds of steps by their share of the time, and the longest step"], lost)
    if found.get("exports"):
        text += "\n## Exports\n\n" + of_exports(found["exports"], rounding)
    left_out = {name: row["left_out"] for name, row in found["models"].items() if "left_out" in row}
    if left_out:
        text += "\n## Not timed\n\n"
        text += table(["model", "why"], [[name, "; ".join(f"{p}: {w}" for p, w in why.items()).replace("|", "/")]
                                         for name, why in sorted(left_out.items())])
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=names, help="parts of names; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each peer in a round")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "real", help="where check_models.py keeps models")
    parser.add_argument("--cache", type=Path, default=CACHE, help="what is built for the peers")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="an interpreter with onnxruntime")
    parser.add_argument("--lock", type=Path, help="a file to lock during a round, for machines that are shared")
    parser.add_argument("--report", action="store_true", help="write the page and time nothing")
    args = parser.parse_args()
    args.peers = PEERS
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    paths = Paths(args.cache / "real", args.python)
    wanted = [] if args.report else [m for m in MODELS if is_there(m, args.folder)
                                     and (not args.models or any(part in m.name for part in args.models))]
    probe = None if args.report else Probe(paths)
    for model in wanted:
        try:
            prepare(model, path_of(model, args.folder), paths.model(model.name))
            row = timed(paths, model, args, probe)
        except (Unavailable, onnxruntime.capi.onnxruntime_pybind11_state.Fail) as reason:
            row = {"left_out": {"both": str(reason)[:200]}}
        found["machine"] = describe()["machine"]
        found["models"][model.name] = row
        say(f"{model.name}: {spread(row['ratios']) if 'ratios' in row else row['left_out']}")
        RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if probe:
        probe.close()
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
