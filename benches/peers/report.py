#!/usr/bin/env python3
"""Writes docs/benchmarks.md from the result files, all cases included, whoever wins.

    benches/peers/report.py [--results FOLDER] [--out FILE]

A ratio is the peer's time over margay's, so that numbers above 1 mean that margay is faster. It is the median of the
ratios of the rounds that count, with the smallest and the largest.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from peers import HERE, KINDS, ROOT

HEAD = """# Benchmarks

*Written by `benches/peers/report.py` from the files in `benches/peers/results`; do not edit.*

margay beside other runtimes on the same ONNX files, in one sitting on one machine. **A ratio is the time of the
other runtime over margay's: above 1, margay is faster.** It is taken within a round, where all take turns; shown
are the median over the rounds and, in brackets, the smallest and the largest; bold where margay is slower. Next
to every speed stands the error: the relative L2 norm of the difference to onnxruntime's f32 outputs. Weights are
random (those of MiniLM-L6, which `scripts/test.sh` makes, excepted), so the tables say how fast a graph runs, not
how well a sketch approximates.

To run it all again:

```
benches/peers/setup.sh                              # margay, and the peers in pinned versions
benches/peers/run.py --rounds 5 --threads 1,2       # --models and --peers select
benches/peers/costs.py                              # start, memory, compilation
benches/peers/report.py                             # this page
```

How it is measured:

- Every runtime is a process of its own with the model loaded; all of them live at once, and those that wait do not
  run. A round gives each in turn as many runs as fit into about 0.7 s, and who begins changes.
- All get what is fast and plain to use. margay runs a compiled artifact in place; onnxruntime has inputs and outputs
  bound (IOBinding); openvino has one request with its tensors set, one stream, the latency hint; rten has weights
  prepacked and inputs as views; tract is optimized for the shapes. All shapes are static. Linear layers are MatMul
  and Add, which all of them pack in advance.
- `openvino` is asked for f32; `openvino-bf16` is openvino as it comes, which rounds to bf16 where the processor can.
  It is compared with margay in bf16 where that was measured, else with margay in f32.
- Before each round a probe measures fused multiply-adds with one thread and with all. A round with two threads counts
  only if the probe with two reaches 1.9 times the probe with one, before and after: otherwise the second core
  was not there.
  *Of peak* is a rate of operations over the probe of the same round; operations are those of products, convolutions
  and attention.
- *ms* is the median over rounds of the median of a round, by the clock. Where other programs use the machine it holds
  their share too; the ratios of processor time, in the tables of details, do not.
"""

GROUPS = {
    "Transformers": ["bert_base", "bert_base_quarter", "minilm_l6"],
    "Convolutions": ["resnet50", "resnet50_b8"],
    "Linear layers": ["linear8192_b1", "linear8192_b32", "panther_l1k16", "panther_l3k64", "gemm_128x768x768",
                      "gemm_128x3072x768", "gemm_128x768x3072", "gemm_512x1024x1024"],
    "Attention": ["attention_n512", "attention_n2048", "attention_n8192"],
}

ABOUT = {
    "bert_base": "BERT-base, 128 tokens",
    "bert_base_quarter": "BERT-base with every linear layer of rank 96 or 160: a quarter of the weights",
    "minilm_l6": "all-MiniLM-L6-v2, 128 tokens",
    "resnet50": "ResNet-50, one image",
    "resnet50_b8": "ResNet-50, eight images",
    "linear8192_b1": "8192 to 8192, one row",
    "linear8192_b32": "8192 to 8192, 32 rows",
    "panther_l1k16": "8192 to 32 to 8192, 32 rows: Panther's sketch, l = 1, k = 16",
    "panther_l3k64": "8192 to 384 to 8192, 32 rows: Panther's sketch, l = 3, k = 64",
    **{f"gemm_{m}x{n}x{k}": f"[{m}, {k}] by a constant [{k}, {n}]"
       for m, n, k in [(128, 768, 768), (128, 3072, 768), (128, 768, 3072), (512, 1024, 1024)]},
    **{f"attention_n{n}": f"softmax attention, 8 heads of 64, {n} positions" for n in [512, 2048, 8192]},
}

# What a sketch of a model is: shown against the dense one.
SKETCHES = [("bert_base", "bert_base_quarter"), ("linear8192_b32", "panther_l1k16"),
            ("linear8192_b32", "panther_l3k64")]


@dataclass(frozen=True)
class Target:
    """What a row is held to: so many times as fast as the fastest of these peers, and a share of the peak."""

    factor: float
    peers: tuple[str, ...]
    share: float | None = None

    def text(self):
        words = f"≥ {self.factor:g} × " + (
            self.peers[0] if len(self.peers) == 1 else f"the fastest of {', '.join(self.peers)}")
        return words + (f", ≥ {100 * self.share:g}% of peak" if self.share else "")

    def met(self, result, subject):
        """True, False, or None where it was not measured."""
        over = fastest_ratios(result, self.peers, subject)
        if not over:
            return None
        share = peak_share(result, subject)
        if self.share and share is None:
            return None
        return statistics.median(over) >= self.factor and (not self.share or share >= self.share)


ORT, OPENVINO, MHA = "onnxruntime", "openvino", "onnxruntime-mha"
SAME = (Target(1.0, (ORT,)), Target(1.0, (OPENVINO,)))
WIDE = (Target(1.1, (ORT,)), None)
GEMM = (Target(1.0, (ORT,), share=0.88), None)
LONG = (Target(1.0, (ORT, MHA, OPENVINO)), Target(1.2, (ORT, MHA, OPENVINO)))
# By group or model: a bar that must be met, and a goal beyond it.
TARGETS = {
    "Transformers": SAME, "Convolutions": SAME, "Linear layers": WIDE, "Attention": LONG,
    **{model: GEMM for model in GROUPS["Linear layers"] if model.startswith("gemm")},
}
BF16 = Target(0.9, ("openvino-bf16",))
MEMORY_BAR_BYTES = 300e6


def counted(result):
    return [r for r in result["rounds"] if r["counted"]]


def subject_of(result, peer):
    """margay in the precision of the peer, where it was measured."""
    same = [name for name, kind in KINDS.items()
            if kind.compile is not None and kind.precision == KINDS[peer].precision]
    return next((name for name in same if name in result["peers"]), "margay")


def ratios(result, peer, subject, clock="median"):
    times = [r["times"] for r in counted(result)]
    return [t[peer][clock] / t[subject][clock] for t in times if peer in t and subject in t]


def fastest_ratios(result, peers, subject):
    """Of the fastest of several peers, in every round; empty unless one of them was measured."""
    return [min(column) for column in zip(*filter(None, (ratios(result, p, subject) for p in peers)))]


def milliseconds(result, peer, clock="median"):
    times = [r["times"][peer][clock] for r in counted(result) if peer in r["times"]]
    return 1e3 * statistics.median(times) if times else None


def peak_share(result, peer):
    """The peer's rate of operations over the probe of the same round."""
    threads = str(result["threads"])
    if not result["operations"]:
        return None
    shares = [result["operations"] / r["times"][peer]["median"] / r["probe"][threads]
              for r in counted(result) if peer in r["times"] and r["probe"][threads] > 0]
    return statistics.median(shares) if shares else None


def spread(values):
    if not values:
        return "–"
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def marked(values):
    """The same, bold where margay is slower."""
    return f"**{spread(values)}**" if values and statistics.median(values) < 1 else spread(values)


def number(value):
    """Three digits that matter."""
    return "–" if value is None else f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def verdict(met):
    return {True: "met", False: "**missed**", None: "not measured"}[met]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def error_text(peer):
    return digits(peer["error"]["relative"]) if peer["error"] else "**wrong**"


def digits(error):
    return f"{error:.0e}" if error else "0"


def target_cell(target, result, subject):
    return "" if target is None else f"{target.text()}: {verdict(target.met(result, subject))}"


def overview(results, group, models, threads):
    """A row for each model: margay's time and error, the ratios of the peers in f32, bar and goal."""
    found = [results[model, threads] for model in models if (model, threads) in results]
    columns = [p for p, k in KINDS.items() if k.precision == "f32" and k.compile is None]
    columns = [p for p in columns if any(p in r["peers"] for r in found)]
    rows = []
    for result in found:
        model = result["model"]
        bar, goal = TARGETS.get(model, TARGETS.get(group, (None, None)))
        share = peak_share(result, "margay")
        rows.append([
            f"{ABOUT.get(model, model)}", number(milliseconds(result, "margay")),
            f"{100 * share:.0f}%" if share else "–", error_text(result["peers"]["margay"]),
            *(marked(ratios(result, p, "margay")) for p in columns),
            target_cell(bar, result, "margay"), target_cell(goal, result, "margay"),
        ])
    return table(["model", "margay, ms", "of peak", "error", *columns, "bar", "goal"], rows) if rows else ""


def losses(results):
    """Every f32 case in which margay is slower, the worst first."""
    rows = []
    for (model, threads), result in results.items():
        for peer in result["peers"]:
            over = ratios(result, peer, "margay")
            if KINDS[peer].precision == "f32" and over and statistics.median(over) < 1:
                row = [ABOUT.get(model, model), str(threads), peer, spread(over)]
                rows.append((statistics.median(over), row))
    if not rows:
        return "Nowhere among these cases.\n"
    return table(["model", "threads", "faster is", "ratio"], [row for _, row in sorted(rows)])


def narrow(results, threads):
    """The same in bf16, where it was measured."""
    rows = []
    for result in (r for (_, t), r in results.items() if t == threads):
        if "openvino-bf16" not in result["peers"]:
            continue
        subject = subject_of(result, "openvino-bf16")
        rows.append([
            ABOUT.get(result["model"], result["model"]), subject, number(milliseconds(result, subject)),
            error_text(result["peers"][subject]), spread(ratios(result, "openvino-bf16", subject)),
            error_text(result["peers"]["openvino-bf16"]),
            target_cell(BF16 if result["model"] == "bert_base" else None, result, subject),
        ])
    head = ["model", "compared", "ms", "error", "openvino-bf16", "its error", "bar"]
    return table(head, rows) if rows else ""


def sketches(results, threads):
    rows = []
    for dense, sketch in SKETCHES:
        if (dense, threads) not in results or (sketch, threads) not in results:
            continue
        dense, sketch = results[dense, threads], results[sketch, threads]
        best = milliseconds(sketch, "margay")
        for peer in sketch["peers"]:
            slow, fast = milliseconds(dense, peer) if peer in dense["peers"] else None, milliseconds(sketch, peer)
            if KINDS[peer].precision == "f32" and slow and fast and best:
                rows.append([ABOUT[sketch["model"]], peer, number(slow), number(fast), f"{slow / fast:.1f}",
                             f"{slow / best:.1f}"])
    head = ["sketch", "runtime", "dense, ms", "sketched, ms", "gain", "its dense over margay's sketched"]
    return table(head, rows) if rows else ""


def details(result):
    rows = []
    for name, peer in result["peers"].items():
        subject = subject_of(result, name)
        share = peak_share(result, name)
        error = peer["error"]
        rows.append([
            f"{name} {peer['version']}", number(milliseconds(result, name)), number(milliseconds(result, name, "cpu")),
            f"{100 * share:.0f}%" if share else "–",
            *((spread(ratios(result, name, subject, clock)) if subject != name else "") for clock in ("median", "cpu")),
            error_text(peer), digits(error["max"]) if error else "–", number(peer["load_seconds"]),
            number(peer["peak_bytes"] / 1e6),
        ])
    for name, reason in result["left_out"].items():
        rows.append([name, f"left out: {reason.replace('|', '/')}", *[""] * 8])
    head = ["runtime", "ms", "processor ms", "of peak", "ratio", "ratio of processor time", "error", "largest error",
            "load, s", "peak memory, MB"]
    seen = counted(result)
    probes = [r["probe"] for r in result["rounds"]]
    probe = ", ".join(f"{n} thread(s) {statistics.median(p[n] for p in probes) / 1e9:.0f} GFLOP/s" for n in probes[0])
    return (f"**{ABOUT.get(result['model'], result['model'])}**, {result['threads']} thread(s): {len(seen)} of "
            f"{len(result['rounds'])} rounds count; probe {probe}; {result['date']}, commit {result['commit']}\n\n"
            + table(head, rows))


def costs(found):
    """What is paid beside the runs."""
    rows = []
    for name, starts in found["start"].items():
        median = lambda key: statistics.median(s[key] for s in starts) if key in starts[0] else None
        wall, imported = median("wall"), median("import")
        rows.append([name, number(wall), number(wall - imported) if imported else "same", number(median("load")),
                     number(median("peak_bytes") / 1e6)])
    text = "## Start\n\nFrom the start of a process to its first output: 8192 to 8192, 32 rows, 256 MB of weights "
    text += "in the page cache, one thread. `margay run` also checks the hashes of all weights and writes a file of "
    text += "outputs.\n\n"
    head = ["process", "s to first output", "without the import of packages", "load alone, s", "peak memory, MB"]
    text += table(head, rows)
    text += "\n## Memory\n\nThe most that `margay run` holds at softmax attention over 8192 positions: "
    peak = next(iter(found["memory"].values()))
    text += f"{peak / 1e6:.0f} MB (bar: below {MEMORY_BAR_BYTES / 1e6:.0f} MB, {verdict(peak < MEMORY_BAR_BYTES)}). "
    text += "The peers' peaks are in the details.\n\n"
    rows = []
    for model, done in found["compile"].items():
        rows.append([ABOUT[model], *(number(statistics.median(d[key] for d in done)) for key in ("wall", "cpu")),
                     number(statistics.median(d["peak_bytes"] for d in done) / 1e6)])
    text += "## Compilation\n\n`margay compile` without a goal, to an artifact on disk. The others compile when "
    text += "they load; see *load* in the details.\n\n"
    return text + table(["model", "s", "processor s", "peak memory, MB"], rows)


def machine(results):
    lines = sorted({
        f"{r['machine']['cpu']} (family {r['machine']['family']}, model {r['machine']['model']}; "
        f"{'AVX-512' if 'avx512f' in r['machine']['features'] else 'AVX2'}), {r['machine']['cores']} cores, "
        f"Linux {r['machine']['kernel']}" for r in results})
    commits = sorted({f"{r['commit']} ({r['date'][:10]})" for r in results})
    return "Machine: " + "; ".join(lines) + ". Commit: " + ", ".join(commits) + ".\n"


def page(results, found_costs):
    parts = [HEAD, machine(results.values())]
    grouped = [model for models in GROUPS.values() for model in models]
    groups = GROUPS | {"Others": sorted({model for model, _ in results} - set(grouped))}
    order = [model for models in groups.values() for model in models]
    results = {key: results[key] for key in sorted(results, key=lambda key: (order.index(key[0]), key[1]))}
    threads = sorted({threads for _, threads in results})
    for group, models in groups.items():
        tables = [(n, overview(results, group, models, n)) for n in threads]
        if any(text for _, text in tables):
            parts.append(f"## {group}\n")
            parts += [f"{n} thread(s):\n\n{text}" for n, text in tables if text]
    parts += ["## Where margay is slower, in f32\n", losses(results)]
    for title, make in [("Precision bf16", narrow), ("Sketched and dense", sketches)]:
        tables = [(n, make(results, n)) for n in threads]
        if any(text for _, text in tables):
            parts.append(f"## {title}\n")
            parts += [f"{n} thread(s):\n\n{text}" for n, text in tables if text]
    if found_costs:
        parts.append(costs(found_costs))
    parts.append("## Details\n")
    parts += map(details, results.values())
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    args = parser.parse_args()
    results, found_costs = {}, None
    for path in sorted(args.results.glob("*.json")):
        found = json.loads(path.read_text())
        if path.name == "costs.json":
            found_costs = found
        else:
            results[found["model"], found["threads"]] = found
    if not results:
        parser.exit(1, f"error: no result files in `{args.results}`\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(results, found_costs))


if __name__ == "__main__":
    main()
