"""Measures what `margay recover` gives back of MiniLM-L6 at half its linear parameters.

    python benches/recovery.py --binary target/release/margay --models .cache/models

The dense model is sketched to half the bytes of its linear layers, with the calibration text of
`tests/tools/make_calibration.py`. Then it is recovered on other text of the same kind (fortunes;
written by the same tool with `--samples`), layer by layer and for several times. What counts is the
mean cosine between the sentence embeddings of the result and of the dense model on the evaluation
text (glosses of WordNet), which nothing learns from.

Writes `benches/results/recovery.json`, with the options, seeds and loss curves, and the table of
`docs/recovery.md`. Run it on a machine that does nothing else: the times are limits on the clock.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tests" / "tools"
sys.path.insert(0, str(TOOLS))
from evaluate import cosine, load, mean_pool, run  # noqa: E402

OUTPUT = "last_hidden_state"
RESULT = ROOT / "benches" / "results" / "recovery.json"
DOCUMENT = ROOT / "docs" / "recovery.md"
MARKS = ("<!-- table: benches/recovery.py -->", "<!-- end of table -->")


def margay(binary, *words):
    done = subprocess.run([binary, *map(str, words)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"error: `margay {' '.join(map(str, words))}`: {done.stderr.strip()[-600:]}")
    return done.stdout


class Judge:
    """The cosine of sentence embeddings on the evaluation text."""

    def __init__(self, models):
        self.inputs = load(models / "minilm_l6_evaluation.npz")
        self.dense = self.embed(models / "minilm_l6.onnx")

    def embed(self, model):
        return mean_pool(run(str(model), self.inputs)[OUTPUT], self.inputs["attention_mask"])

    def __call__(self, model):
        found = cosine(self.dense, self.embed(model))
        return {"mean": float(found.mean()), "p05": float(np.quantile(found, 0.05))}


def recovered(arguments, judge, folder, name, words):
    path = folder / f"{name}.onnx"
    told = json.loads(margay(
        arguments.binary, "recover", folder / "sketched.onnx",
        "--teacher", arguments.models / "minilm_l6.onnx", "--data", arguments.data,
        "--threads", arguments.threads, "--seed", arguments.seed, "--export", path, "--json", *words,
    ))
    keep = ["seed", "steps", "stop", "seconds", "trained", "samples", "hidden", "history", "before",
            "refitted", "after"]
    return {"name": name, "options": list(words), "cosine": judge(path)} | {k: told[k] for k in keep}


def table(result):
    """The document's table, and how the cosine comes about."""
    rows = [("plain SVD at the same bytes", "", result["plain_svd"], ""),
            ("sketched (c0)", "", result["sketched"], "")]
    for r in result["runs"]:
        rows.append((r["name"], str(r["steps"]), r["cosine"], f"{r['seconds']:.0f}"))
    lines = ["| | steps | mean cosine | 5 % quantile | seconds |", "|---|---:|---:|---:|---:|"]
    for name, steps, found, seconds in rows:
        lines.append(f"| {name} | {steps} | {found['mean']:.4f} | {found['p05']:.4f} | {seconds} |")
    machine = result["machine"]
    lines += ["", f"*{machine['processor']}, {machine['threads']} threads, seed {result['seed']}; "
                  f"{result['samples']} passages of text.*"]
    longest = max(result["runs"], key=lambda run: run["steps"])
    if longest["history"]:
        lines += ["", f"The run called *{longest['name']}*, on the passages that it held out:", "",
                  "| step | seconds of learning together | mean loss since the row before | cosine | relative L2 error |",
                  "|---:|---:|---:|---:|---:|"]
        every = max(1, len(longest["history"]) // 9)
        for point in [*longest["history"][:-1:every], longest["history"][-1]]:
            measures = dict(point["measures"])
            lines.append(f"| {point['step']} | {point['seconds']:.0f} | {point['loss']:.3f} "
                         f"| {measures['cosine']:.4f} | {measures['relative_l2']:.4f} |")
    return "\n".join(lines)


def write_document(result):
    text = DOCUMENT.read_text(encoding="utf-8")
    head, rest = text.split(MARKS[0])
    _, tail = rest.split(MARKS[1])
    DOCUMENT.write_text(f"{head}{MARKS[0]}\n{table(result)}\n{MARKS[1]}{tail}", encoding="utf-8")


def processor():
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=ROOT / "target" / "release" / "margay")
    parser.add_argument("--models", type=Path, default=ROOT / ".cache" / "models", help="folder of the fetched models")
    parser.add_argument("--report", action="store_true", help="only write the table, from the file of results")
    parser.add_argument("--samples", type=int, default=16384, help="passages to learn from")
    parser.add_argument("--minutes", type=float, nargs="*", default=[1, 2, 5, 10])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.report:
        write_document(json.loads(RESULT.read_text(encoding="utf-8")))
        return
    arguments.binary = str(Path(arguments.binary).resolve())
    arguments.models = arguments.models.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = [sys.executable, TOOLS / "make_calibration.py", "--models", arguments.models,
                "--out", folder, "--samples", str(arguments.samples)]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        arguments.data = folder / "minilm_l6_recovery.npz"
        source, sketched = arguments.models / "minilm_l6.onnx", folder / "sketched.onnx"
        margay(arguments.binary, "compile", source, "-o", folder / "sketched.margay",
               "--calibrate", arguments.models / "minilm_l6_calibration.npz",
               "--budget-bytes", "50%", "--export", sketched)
        plain = folder / "plain.onnx"
        subprocess.run([sys.executable, TOOLS / "plain_svd.py", "--model", source, "--ratio", "0.5",
                        "--out", plain], check=True, stdout=subprocess.DEVNULL)
        judge = Judge(arguments.models)
        result = {
            "model": "minilm_l6", "budget": "50% of the bytes of linear layers",
            "seed": arguments.seed, "samples": arguments.samples,
            "machine": {"processor": processor(), "threads": arguments.threads},
            "plain_svd": judge(plain), "sketched": judge(sketched), "runs": [],
        }
        jobs = [("layers only", ["--layers-only"])]
        jobs += [(f"{m:g} min", ["--max-seconds", str(60 * m)]) for m in arguments.minutes]
        for job, words in jobs:
            found = recovered(arguments, judge, folder, job, words)
            result["runs"].append(found)
            print(f"{job}: {found['cosine']['mean']:.4f} after {found['steps']} steps", flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_document(result)
    print(f"wrote {RESULT} and the table of {DOCUMENT}")


if __name__ == "__main__":
    main()
