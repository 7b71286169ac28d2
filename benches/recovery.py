"""Measures what `margay recover` gives back of MiniLM-L6 with fewer linear parameters.

    python benches/recovery.py --binary target/release/margay --models .cache/models [--share 70,50,25]

For each share of the bytes of its linear layers the dense model is sketched, with the calibration text of
`tests/tools/make_calibration.py`, and recovered with the defaults on other text of the same kind (fortunes; written by the
same tool with `--samples`). What counts is the mean cosine between the sentence embeddings of the result and of the dense
model on the evaluation text (glosses of WordNet), which nothing learns from; beside it stand the tasks of
`tests/tools/similarity.py`.

Writes `benches/results/recovery.json`, with the options, seeds and loss curves, and the table of `docs/recovery.md`. Other
shares that the file of results has are kept. Run it on a machine that does nothing else: the times are limits on the clock;
`--steps` takes as many steps whatever they take.
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
from similarity import Similarity  # noqa: E402

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
    """The cosine of sentence embeddings on the evaluation text, and tasks of similarity."""

    def __init__(self, models):
        self.similarity = Similarity(models)
        self.inputs = load(models / "minilm_l6_evaluation.npz")
        self.dense = self.embed(models / "minilm_l6.onnx")

    def embed(self, model):
        return mean_pool(run(str(model), self.inputs)[OUTPUT], self.inputs["attention_mask"])

    def __call__(self, model):
        found = cosine(self.dense, self.embed(model))
        return {"cosine": {"mean": float(found.mean()), "p05": float(np.quantile(found, 0.05))},
                "similarity": self.similarity(model)}


def recovered(arguments, folder, sketched, words):
    """The recovered model, and what is told of it."""
    path = folder / "recovered.onnx"
    told = json.loads(margay(
        arguments.binary, "recover", sketched, "--teacher", arguments.models / "minilm_l6.onnx",
        "--data", arguments.models / "minilm_l6_recovery.npz", "--threads", arguments.threads,
        "--seed", arguments.seed, "--export", path, "--json", *words,
    ))
    keep = ["seed", "steps", "stop", "seconds", "trained", "samples", "hidden", "history", "before",
            "refitted", "refined", "after"]
    return path, {"options": list(words)} | {k: told[k] for k in keep}


def held_out(evaluation):
    """The cosine on passages that were held out."""
    return f"{dict(evaluation['measures'])['cosine']:.3f}" if evaluation else ""


def table(result):
    """The document's table, and how the cosine comes about."""
    dense = result["similarity"]["mean"]
    lines = ["| bytes of its linear layers | | mean cosine | 5 % quantile | similarity tasks | held out | steps | seconds |",
             "|---:|---|---:|---:|---:|---:|---:|---:|"]
    for share, found in sorted(result["shares"].items(), key=lambda item: -float(item[0])):
        run = found["run"]
        stages = [("sketched", found["sketched"], run["before"], "", ""),
                  ("layers refitted", None, run["refitted"], "", ""),
                  ("blocks refined", None, run["refined"], "", ""),
                  ("together", found["recovered"], run["after"], run["steps"], f"{run['seconds']:.0f}")]
        for name, judged, evaluation, steps, seconds in stages:
            seen = ["", "", ""]
            if judged:
                change = judged["similarity"]["mean"] - dense
                seen = [f"{judged['cosine']['mean']:.3f}", f"{judged['cosine']['p05']:.3f}", f"{change:+.1f}"]
            lines.append(f"| {share}% | {name} | {seen[0]} | {seen[1]} | {seen[2]} | {held_out(evaluation)} "
                         f"| {steps} | {seconds} |")
    machines = {}
    for share, found in result["shares"].items():
        machines.setdefault(f"{found['machine']['processor']}, {found['machine']['threads']} threads", []).append(f"{share}%")
    machines = "; ".join(f"{', '.join(shares)}: {machine}" for machine, shares in machines.items())
    scores = ", ".join(f"{task} {score:.1f}" for task, score in result["similarity"].items() if task != "mean")
    lines += ["", f"*{machines}; seed {result['seed']}. The dense model: {scores}.*"]
    if "50" in result["shares"]:
        lines += ["", "Learning together at 50%, on the passages that it held out:", "",
                  "| step | seconds | mean loss since the row before | cosine | error about the mean |",
                  "|---:|---:|---:|---:|---:|"]
        for point in result["shares"]["50"]["run"]["history"]:
            measures = dict(point["measures"])
            lines.append(f"| {point['step']} | {point['seconds']:.0f} | {point['loss']:.3f} "
                         f"| {measures['cosine']:.4f} | {measures['about_mean_l2']:.4f} |")
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
    parser.add_argument("--share", default="70,50,25", help="shares of the bytes of linear layers, in percent")
    parser.add_argument("--seconds", type=float, default=600, help="for a recovery")
    parser.add_argument("--steps", type=int, help="of learning together, in place of the time")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.report:
        write_document(json.loads(RESULT.read_text(encoding="utf-8")))
        return
    arguments.binary = str(Path(arguments.binary).resolve())
    arguments.models = arguments.models.resolve()
    judge = Judge(arguments.models)
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    result |= {
        "model": "minilm_l6", "seed": arguments.seed, "similarity": judge.similarity(arguments.models / "minilm_l6.onnx"),
    }
    machine = {"processor": processor(), "threads": arguments.threads}
    result.setdefault("shares", {})
    words = ["--max-seconds", str(arguments.seconds)]
    words += ["--steps", str(arguments.steps)] if arguments.steps else []
    for share in arguments.share.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sketched, exported = folder / "sketched.margay", folder / "sketched.onnx"
            margay(arguments.binary, "compile", arguments.models / "minilm_l6.onnx", "-o", sketched,
                   "--data", arguments.models / "minilm_l6_calibration.npz", "--seed", arguments.seed,
                   "--budget-bytes", f"{share}%", "--export", exported)
            path, run = recovered(arguments, folder, sketched, words)
            found = {"machine": machine, "sketched": judge(exported), "recovered": judge(path), "run": run}
        result["shares"][share] = found
        cosine = [found[part]["cosine"]["mean"] for part in ("sketched", "recovered")]
        print(f"{share}%: {cosine[0]:.4f} -> {cosine[1]:.4f} after {run['steps']} steps, {run['seconds']:.0f} s", flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_document(result)
    print(f"wrote {RESULT} and the table of {DOCUMENT}")


if __name__ == "__main__":
    main()
