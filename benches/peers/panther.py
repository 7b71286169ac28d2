#!/usr/bin/env python3
"""Times the layers of Panther's grids on one thread of the processor: dense, sketched by a plan, and both in onnxruntime.

    benches/peers/setup.sh --python-only
    .cache/peers/venv/bin/python benches/peers/panther.py             the whole grid
    .cache/peers/venv/bin/python benches/peers/panther.py --quick     a few layers
    .cache/peers/venv/bin/python benches/peers/panther.py --report    the table from the file of results alone

Layers, of random weights: linear ones (batch 64), convolutions over images of 64 x 64, and attention of 512 numbers and 8 heads
with its four projections. Each is an ONNX file; `margay compile --plan` sketches it and exports what it made, which onnxruntime
runs too. A step is forward and backward: `margay differentiate` by the input and all weights that are trained, which are inputs
of the compiled step, as the states of a training step are. Sketches that do not take fewer numbers than the weight
are left out, as in Panther's grid.

Everything of a layer lives at once, each in a process of its own, and takes turns: a round gives each a few runs and keeps the
median. Ratios are those of a round; the table has the median of each over the rounds, and says by `slower` where a sketch takes
longer than the dense layer, and whether the plan's prediction said so. Panther's own column is a constant: what its layer
gained over torch's on a processor of the same class, from `PANTHER`.

Written are `benches/results/panther.json` and the table between the marks in `docs/panther.md`. The whole grid leaves out the
kernels of 5 x 5 and 9 x 9 of 2048 channels, and linear layers above 8192, which take minutes each when dense.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from models import Builder, attend, dense
from peers import CACHE, HERE, ROOT, Paths, Peer, Unavailable, describe, run_program

RESULTS = ROOT / "benches" / "results" / "panther.json"
DOCUMENT = ROOT / "docs" / "panther.md"
MARKS = "<!-- begin: benches/peers/panther.py -->", "<!-- end -->"

BATCH, IMAGE, WIDTH, HEADS = 64, 64, 512, 8
# A turn ends after so many seconds or runs, whichever comes first; one run at least.
TURN_SECONDS, TURN_RUNS = 0.04, 50

# How often as fast as torch's dense layer Panther's is, forward and in a step, at one thread: Panther 88e9998 built for the
# processor, torch 2.15. Linear layers at batch 32, attention against the fused one.
PANTHER = {
    "linear 8192": {"1x16": (21.7, 64.4), "1x32": (44.0, 45.4), "1x64": (19.1, 30.6), "1x128": (15.5, 17.9),
                    "1x256": (8.3, 9.4), "1x512": (4.3, 4.7), "2x16": (13.8, 48.7), "2x32": (25.2, 32.6),
                    "2x64": (15.1, 18.2), "2x128": (8.1, 9.8), "2x256": (4.6, 6.5), "2x512": (2.4, 2.9),
                    "3x16": (29.2, 40.8), "3x32": (10.0, 24.7), "3x64": (10.8, 12.2), "3x128": (5.8, 6.6),
                    "3x256": (2.8, 3.3), "3x512": (1.6, 2.0)},
    "conv 9x9 64-256": {"1x8": (12.9, 10.6), "1x16": (7.3, 7.3), "3x16": (2.6, 2.6)},
    "conv 3x3 64-256": {"1x8": (4.6, 2.6), "1x16": (3.5, 3.8), "3x16": (1.4, 1.6)},
    "conv 3x3 256-2048": {"1x16": (7.9, 11.5), "1x32": (6.5, 9.2), "3x32": (3.7, 4.7)},
    "attention 512": {"softmax 64": (1.2, 1.2), "softmax 256": (0.6, 0.7), "relu 64": (1.5, 1.3),
                      "relu 256": (0.8, 0.9)},
    "attention 2048": {"softmax 64": (1.7, 2.6), "softmax 256": (0.9, 1.2), "relu 64": (2.0, 2.6),
                       "relu 256": (1.3, 1.8)},
    "attention 8192": {"softmax 64": (7.4, 8.2), "softmax 256": (2.1, 2.7), "relu 64": (8.1, 9.3),
                       "relu 256": (2.9, 3.8)},
}


def say(text):
    print(text, file=sys.stderr, flush=True)


# Layers


def linear(width):
    b = Builder(f"linear{width}")
    b.output(dense(b, b.normal_input("x", (BATCH, width)), width, width, width ** -0.5), [BATCH, width])
    return b, "MatMul_0"


def conv(kernel, channels, outputs):
    b = Builder(f"conv{kernel}_{channels}_{outputs}")
    x = b.normal_input("x", (1, channels, IMAGE, IMAGE))
    weight = b.normal((outputs, channels, kernel, kernel), (channels * kernel * kernel) ** -0.5)
    y = b.op("Conv", x, weight, b.normal((outputs,), 0.05), kernel_shape=[kernel, kernel],
             pads=[kernel // 2] * 4)
    b.output(y, [1, outputs, IMAGE, IMAGE])
    return b, "Conv_0"


def attention(length):
    b = Builder(f"attention{length}")
    x = b.normal_input("x", (1, length, WIDTH))
    q, k, v = (dense(b, x, WIDTH, WIDTH, WIDTH ** -0.5) for _ in range(3))
    y = attend(b, q, k, v, HEADS, WIDTH // HEADS)
    site = next(n.name for n in reversed(b.nodes) if n.op_type == "MatMul")
    b.output(dense(b, y, WIDTH, WIDTH, WIDTH ** -0.5), [1, length, WIDTH])
    return b, site


def sketches(ranks, inner, outer, each):
    """Terms and ranks at which a sketch takes fewer numbers than the weight; by what plans and tables call them."""
    fits = [(terms, rank) for terms in (1, 2, 3) for rank in ranks
            if 2 * terms * rank * (each + outer) < inner * outer]
    return {f"{terms}x{rank}": f'scheme = "panther", terms = {terms}, rank = {rank}, copy = "random"'
            for terms, rank in fits}


def features(counts):
    return {f"{kernel} {count}": f'scheme = "favor", features = {count}, kernel = "{kernel}"'
            for kernel in ("softmax", "relu") for count in counts}


def grid(quick):
    """Layers by name: what builds one, and its sketches."""
    found = {}
    for width in [256, 1024] if quick else [256, 512, 1024, 2048, 4096, 8192]:
        ranks = [16, 64] if quick else [16, 64, 256, 512] if width == 8192 else [16, 32, 64, 128, 256, 512]
        found[f"linear {width}"] = (lambda width=width: linear(width), sketches(ranks, width, width, width))
    convs = [(3, 64, 64)] if quick else [
        *((kernel, *pair) for kernel in (3, 5, 9) for pair in [(64, 64), (64, 256), (256, 256)]), (3, 256, 2048)]
    for kernel, channels, outputs in convs:
        inner = channels * kernel * kernel
        found[f"conv {kernel}x{kernel} {channels}-{outputs}"] = (
            lambda shape=(kernel, channels, outputs): conv(*shape), sketches([8, 16, 32], inner, outputs, inner))
    for length in [512] if quick else [512, 2048, 8192]:
        found[f"attention {length}"] = (
            lambda length=length: attention(length), features([64] if quick else [64, 128, 256]))
    return found


# Programs


class Layer(Peer):
    """A process that holds one program of a layer."""

    def __init__(self, command, errors):
        self.peer, self.errors = Path(command[0]).name, errors
        with errors.open("w") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True)
        self.ready = self._answer()


def write_inputs(folder, arrays):
    folder.mkdir(parents=True)
    lines = []
    for i, (name, array) in enumerate(arrays.items()):
        if " " in name:
            raise ValueError(f"`{name}` has a space")
        (folder / f"{i}.bin").write_bytes(np.ascontiguousarray(array, np.float32).tobytes())
        lines.append(f"{name} f32 {','.join(map(str, array.shape))} {i}.bin\n")
    (folder / "index.txt").write_text("".join(lines))


def is_trained(tensor):
    """Whether a constant of an exported model is trained: several floats that a sketch does not keep as they are."""
    several = int(np.prod(tensor.dims, dtype=np.int64)) > 1
    return several and tensor.data_type == onnx.TensorProto.FLOAT and "/random" not in tensor.name


def write_step(program, source, folder, x):
    """Writes forward and backward of a model, with its weights as inputs, and these; returns the file."""
    model = onnx.load(source)
    arrays, renamed = {"x": x}, {}
    for tensor in filter(is_trained, list(model.graph.initializer)):
        plain = f"weight{len(renamed)}"
        renamed[tensor.name], arrays[plain] = plain, onnx.numpy_helper.to_array(tensor)
        model.graph.initializer.remove(tensor)
        model.graph.input.append(onnx.helper.make_tensor_value_info(plain, tensor.data_type, tensor.dims))
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    onnx.save(model, folder / "trained.onnx")
    run_program([program, "differentiate", str(folder / "trained.onnx"), "-o", str(folder / "step.onnx"),
                 "--by", ",".join(arrays)])
    random = np.random.Generator(np.random.Philox(1))
    for port in onnx.load(folder / "step.onnx", load_external_data=False).graph.input:
        if port.name not in arrays:
            shape = [d.dim_value for d in port.type.tensor_type.shape.dim]
            arrays[port.name] = random.standard_normal(shape, dtype=np.float32)
    write_inputs(folder / "step-inputs", arrays)
    return folder / "step.onnx"


def programs(paths, folder, build, sketches):
    """All programs of a layer, by the name of the form and what it does, and predicted times of the forms."""
    margay, peer = paths.program("margay"), paths.program("margay-peer")
    builder, site = build()
    source = folder / "dense.onnx"
    onnx.save(builder.model(), source)
    write_inputs(folder / "inputs", builder.arrays)
    digest = json.loads(subprocess.run([margay, "inspect", str(source), "--json"], check=True, capture_output=True,
                                       text=True).stdout)["hash"]
    started, predicted = {}, {}

    def start(name, what, command):
        started[name, what] = Layer(command, folder / f"{what}.stderr")

    for name, settings in {"dense": None, **sketches}.items():
        own = folder / name.replace(" ", "-")
        own.mkdir()
        plan, model, report = own / "plan.toml", own / "model.onnx", own / "report.json"
        module = f'"{site}" = {{ {settings} }}' if settings else ""
        plan.write_text(f'[plan]\nversion = 1\nmodel = "{digest}"\ntarget-cpu = ""\ncost-model = ""\nseed = 0\n'
                        f"[modules]\n{module}\n")
        run_program([margay, "compile", str(source), "--plan", str(plan), "-o", str(own / "model.margay"),
                     "--export", str(model), "--report", str(report)])
        told = json.loads(report.read_text())
        predicted[name] = told["predicted_ms_after"]
        if settings and not any(m["scheme"] != "dense" for m in told["modules"]):
            raise Unavailable(f"the plan left `{site}` dense: {told['remarks']}")
        start(name, "forward", [peer, str(own / "model.margay"), "1", str(folder / "inputs")])
        start(name, "onnxruntime", [sys.executable, str(HERE / "python_peer.py"), "onnxruntime", str(model), "1",
                                    str(folder / "inputs")])
        step = write_step(margay, model, own, builder.arrays["x"])
        run_program([margay, "compile", str(step), "-o", str(own / "step.margay")])
        start(name, "step", [peer, str(own / "step.margay"), "1", str(own / "step-inputs")])
    return started, predicted


def timed(started, rounds):
    """Medians of the turns of each, a list over the rounds."""
    found = {key: [] for key in started}
    counts = {}
    for turn in range(rounds + 1):
        for key, layer in started.items():
            wall = layer.run(counts.get(key, 1))["wall"]
            median = statistics.median(wall)
            counts[key] = max(1, min(TURN_RUNS, round(TURN_SECONDS / median)))
            if turn > 0:
                found[key].append(1e3 * median)
    return found


def measure(paths, quick, rounds):
    layers, began = {}, time.monotonic()
    for name, (build, forms) in grid(quick).items():
        with tempfile.TemporaryDirectory() as folder:
            started, predicted = programs(paths, Path(folder), build, forms)
            try:
                times = timed(started, rounds)
            finally:
                for layer in started.values():
                    layer.close()
        layers[name] = {form: {"predicted_ms": predicted[form],
                               **{f"{what}_ms": times[form, what] for what in ("forward", "onnxruntime", "step")}}
                        for form in ["dense", *forms]}
        say(f"{name}: {len(forms)} sketches, {time.monotonic() - began:.0f} s so far")
    return layers


# The table


def ratio(one, other):
    """How often the second fits into the first, the median over rounds."""
    return statistics.median(a / b for a, b in zip(one, other))


def table(results):
    lines = [f"One thread of {results['machine']['cpu']}, {results['rounds']} rounds"
             f"{', the quick part of the grid' if results['quick'] else ''}. Milliseconds of the dense layer, and of each "
             "sketch, terms x rank or kernel and features; in brackets how often as fast as the dense layer. *Step* is forward and "
             "backward. *Against onnxruntime* compares the sketched layer with the same graph there.",
             "", "| layer | form | forward | step | against onnxruntime | Panther, of torch's | slower |",
             "|---|---|---:|---:|---:|---:|---|"]
    slower, count, unforeseen = [], 0, []
    for name, forms in results["layers"].items():
        base = forms["dense"]
        for form, found in forms.items():
            peers = f"{ratio(found['onnxruntime_ms'], found['forward_ms']):.2f}"
            cells = [f"{statistics.median(found[f'{what}_ms']):.3g}" for what in ("forward", "step")]
            notes, known = [], ""
            if form != "dense":
                count += 1
                gains = {what: ratio(base[f"{what}_ms"], found[f"{what}_ms"]) for what in ("forward", "step")}
                cells = [f"{cell} ({gain:.2f})" for cell, gain in zip(cells, gains.values())]
                for what, gain in gains.items():
                    if gain < 1:
                        notes.append(what)
                if gains["forward"] < 1:
                    foreseen = found["predicted_ms"] >= base["predicted_ms"]
                    notes[0] += " (as predicted)" if foreseen else " (not predicted)"
                    if not foreseen:
                        unforeseen.append(f"{name} {form}")
                if notes:
                    slower.append(f"{name} {form}")
                if (panther := PANTHER.get(name, {}).get(form)) is not None:
                    known = f"{panther[0]}, step {panther[1]}"
            lines.append(f"| {name} | {form} | {' | '.join(cells)} | {peers} | {known} | {', '.join(notes)} |")
    lines += ["", f"{len(slower)} of {count} sketches are slower than their dense layer, forward or in a step; where the plan had "
              f"predicted a forward run to be faster and it is slower: {', '.join(unforeseen) or 'none'}."]
    return "\n".join(lines)


def write(results):
    text = DOCUMENT.read_text()
    begin, end = (text.index(mark) for mark in MARKS)
    DOCUMENT.write_text(f"{text[:begin + len(MARKS[0])]}\n\n{table(results)}\n\n{text[end:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few layers; prints the table and writes no file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="write the table of the results that are there")
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args()
    if not args.report:
        try:
            layers = measure(Paths(args.cache), args.quick, args.rounds)
        except Unavailable as e:
            sys.exit(f"error: {e}")
        results = {**describe(), "rounds": args.rounds, "quick": args.quick, "layers": layers}
        if args.quick:
            return print(table(results))
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
