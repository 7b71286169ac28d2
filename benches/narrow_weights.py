"""Measures MiniLM-L6 with weights of 8, 4 and 3 bits: bytes, quality and speed.

    python benches/narrow_weights.py --binary target/release/margay --models .cache/models

The model is compiled with the calibration text of `tests/tools/make_calibration.py` (fortunes), which
nothing is trained on. What counts is the mean cosine between the sentence embeddings of the result
and of the dense model on the evaluation text (glosses of WordNet), run by onnxruntime from the
exported model; beside it the same from the compiled artifact. Bytes are those of the linear layers as
they are stored, scales and padding included, as a share of those in f32. Times are medians of
processes that run the two models in turn, batch 1, one thread.

Writes `benches/results/narrow_weights.json` and the tables of `docs/narrow_weights.md`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "tools"))
sys.path.insert(0, str(ROOT / "benches"))
from evaluate import load, mean_pool  # noqa: E402
from recovery import OUTPUT, Judge, margay, processor  # noqa: E402

RESULT = ROOT / "benches" / "results" / "narrow_weights.json"
DOCUMENT = ROOT / "docs" / "narrow_weights.md"
LAYERS = 36
LENGTHS = (16, 64, 128)


def uniform(bits, rank):
    """A plan that does the same to every layer."""
    return lambda plan: plan.replace('scheme = "dense"', f'scheme = "quantized", bits = {bits}, rank = {rank}')


# What is compiled: options, whether there are samples, and a change of the plan of the dense model.
RUNS = [
    ("f32", [], False, None),
    ("bf16", ["--precision", "bf16"], False, None),
    ("int8", ["--precision", "int8"], False, None),
    ("int8 within 25%", ["--precision", "int8", "--budget-bytes", "25%"], True, None),
    ("int4, to nearest", ["--precision", "int4"], False, None),
    ("int4, error feedback", ["--precision", "int4"], True, None),
    ("int4 + rank 32", ["--precision", "int4"], True, uniform(4, 32)),
    ("int4 + rank 64", ["--precision", "int4"], True, uniform(4, 64)),
    ("int8 within 15.5%", ["--precision", "int8", "--budget-bytes", "15.5%"], True, None),
    ("int3, error feedback", ["--precision", "int4"], True, uniform(3, 0)),
    ("int8 within 11%", ["--precision", "int8", "--budget-bytes", "11%"], True, None),
    ("lowrank in f32 within 25%", ["--budget-bytes", "25%"], True, None),
]


class Bench:
    """The tool, the model, and a folder for what is made."""

    def __init__(self, arguments, folder):
        self.binary, self.models, self.folder = arguments.binary, arguments.models, folder
        self.source = arguments.models / "minilm_l6.onnx"
        self.samples = arguments.models / "minilm_l6_calibration.npz"
        self.judge = Judge(arguments.models)
        self.plan = None

    def dense_plan(self):
        """The plan that keeps everything, for these samples."""
        if self.plan is None:
            path = self.folder / "dense.toml"
            margay(self.binary, "compile", self.source, "-o", self.folder / "dense.margay", "--calibrate",
                   self.samples, "--budget-bytes", "100%", "--save-plan", path)
            self.plan = path.read_text(encoding="utf-8")
        return self.plan

    def compiled(self, name, options, samples, change, dims=()):
        stem = "".join(c if c.isalnum() else "_" for c in name)
        made, exported = self.folder / f"{stem}.margay", self.folder / f"{stem}.onnx"
        words = list(options) + [word for dim in dims for word in ("--dim", dim)]
        if samples:
            words += ["--calibrate", self.samples]
        if change:
            plan = self.folder / f"{stem}.toml"
            plan.write_text(change(self.dense_plan()), encoding="utf-8")
            words += ["--plan", plan]
        report = json.loads(margay(self.binary, "compile", self.source, "-o", made, "--export", exported,
                                   "--json", *words))
        return made, exported, report

    def embedded(self, artifact):
        """The cosine of what the artifact itself computes."""
        inputs = self.folder / "in.npz"
        np.savez(inputs, **self.judge.inputs)
        outputs = self.folder / "out.npz"
        margay(self.binary, "run", artifact, "--inputs", inputs, "--outputs", outputs)
        found = mean_pool(load(outputs)[OUTPUT], self.judge.inputs["attention_mask"])
        product = (found * self.judge.dense).sum(axis=1)
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(self.judge.dense, axis=1)
        return float((product / norms).mean())

    def quality(self, name, options, samples, change):
        dims = ("batch=32", "seq=64")
        made, exported, report = self.compiled(name, options, samples, change, dims)
        schemes = {}
        for module in report["modules"]:
            schemes[module["scheme"]] = schemes.get(module["scheme"], 0) + 1
        return {
            "name": name, "options": options, "calibrated": samples,
            "share": report["bytes_after"] / report["bytes_before"],
            "file": made.stat().st_size, "exported": exported.stat().st_size,
            "cosine": self.judge(exported), "compiled_cosine": self.embedded(made),
            "schemes": schemes, "held_out": report["held_out"],
        }

    def speed(self, runs, rounds):
        """Median times of all runs at some lengths, interleaved."""
        table = []
        dims = ("batch=1", "seq=" + ",".join(map(str, LENGTHS)))
        paths = [(run[0], self.compiled(f"{run[0]} timed", *run[1:], dims)[0]) for run in runs]
        for length in LENGTHS:
            told = json.loads(margay(self.binary, "bench", *[path for _, path in paths], "--threads", "1",
                                     "--dim", "batch=1", "--dim", f"seq={length}",
                                     "--rounds", str(rounds), "--json"))
            times = [model["median_ms"] for model in told["models"]]
            predicted = [model["predicted_ms"] for model in told["models"]]
            for (name, _), time, guess in zip(paths, times, predicted):
                table.append({"name": name, "length": length, "median_ms": time, "predicted_ms": guess,
                              "relative": time / times[0]})
        return table


def tables(result):
    lines = ["| | bytes of the layers | cosine (onnxruntime) | 5 % quantile | cosine (artifact) | file, MB |",
             "|---|---:|---:|---:|---:|---:|"]
    for r in result["quality"]:
        lines.append(f"| {r['name']} | {100 * r['share']:.2f}% | {r['cosine']['mean']:.4f} | "
                     f"{r['cosine']['p05']:.4f} | {r['compiled_cosine']:.4f} | {r['file'] / 1e6:.1f} |")
    lines += ["", "| batch 1, one thread | " + " | ".join(f"seq {n}, ms" for n in LENGTHS) + " |",
              "|---|" + "---:|" * len(LENGTHS)]
    names = dict.fromkeys(r["name"] for r in result["speed"])
    for name in names:
        rows = {r["length"]: r for r in result["speed"] if r["name"] == name}
        cells = [f"{rows[n]['median_ms']:.2f} ({rows[n]['relative']:.2f}x)" for n in LENGTHS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"*{result['machine']}; times beside those of f32 in parentheses.*"]
    return "\n".join(lines)


def write_document(result):
    begin, end = "<!-- table: benches/narrow_weights.py -->", "<!-- end of table -->"
    text = DOCUMENT.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    DOCUMENT.write_text(f"{head}{begin}\n{tables(result)}\n{end}{tail}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=ROOT / "target" / "release" / "margay")
    parser.add_argument("--models", type=Path, default=ROOT / ".cache" / "models", help="folder of the fetched models")
    parser.add_argument("--only", nargs="*", help="names of the runs to print, without writing anything")
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds of a measurement of time")
    parser.add_argument("--report", action="store_true", help="only write the tables, from the file of results")
    arguments = parser.parse_args()
    if arguments.report:
        write_document(json.loads(RESULT.read_text(encoding="utf-8")))
        return
    arguments.binary = str(Path(arguments.binary).resolve())
    arguments.models = arguments.models.resolve()
    chosen = [run for run in RUNS if arguments.only is None or run[0] in arguments.only]
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(arguments, Path(name))
        quality = []
        for run in chosen:
            quality.append(bench.quality(*run))
            print(json.dumps(quality[-1]), flush=True)
        timed = [run for run in chosen if run[0] in ("f32", "int8", "int4, error feedback",
                                                     "int4 + rank 32", "int8 within 15.5%")]
        speed = bench.speed(timed, arguments.rounds)
    result = {"machine": processor(), "quality": quality, "speed": speed}
    print(tables(result))
    if arguments.only is None:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_document(result)


if __name__ == "__main__":
    main()
