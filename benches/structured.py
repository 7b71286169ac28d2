#!/usr/bin/env python3
"""Compares forms of structured weights on MiniLM-L3, at as many numbers.

    cargo build --release
    .cache/venv/bin/python benches/structured.py --binary target/release/margay --models .cache/models

Every linear layer takes a form with at most 50% and 25% of its numbers (positions count as numbers), fitted to the calibration
text of `tests/tools/make_calibration.py`. The error of a layer is relative to its output, on that text, as the report of
`margay compile` predicts it; that of the model is measured on the samples that were held out. A form that does
not exist for a layer leaves it dense, and the row says for how many.

Writes `benches/results/structured.json`, the table between the marks in `docs/structured.md`, and
`docs/structured.svg`. `--report` writes the last two from the file of results alone.
"""

import argparse
import json
import math
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches/results/structured.json"
DOCUMENT = ROOT / "docs/structured.md"
PLOT = ROOT / "docs/structured.svg"
BEGIN, END = "<!-- begin: benches/structured.py -->", "<!-- end -->"
SHARES = (0.5, 0.25)
KINDS = ("attention/self", "attention/output", "intermediate", "output")


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


def lowrank(m, n, most):
    return f"rank = {most // (m + n)}"


def lowrank_diag(m, n, most):
    return f"rank = {(most - m) // (m + n)}" if m == n else None


def lowrank_inputs(m, n, most):
    """A quarter of the numbers are whole rows."""
    inputs = most // 4 // (n + 1)
    return f"rank = {(most - inputs * (n + 1)) // (m + n)}, inputs = {inputs}"


def lowrank_entries(m, n, most):
    """A quarter of the numbers are entries and their positions."""
    entries = max(1, most // 4 // (2 * n))
    return f"rank = {(most - entries * 2 * n) // (m + n)}, entries = {entries}"


def kronecker(m, n, most):
    """Blocks of about the shape of the square root of the weight's."""
    p = min(divisors(m), key=lambda d: abs(math.log(d * d / m)))
    r = min(divisors(n), key=lambda d: abs(math.log(d * d / n)))
    return f"block = [{p}, {r}], terms = {most // (m // p * (n // r) + p * r)}"


def monarch(m, n, most):
    """Four blocks a side, of as great a rank as fits."""
    return f"blocks = [4, 4], rank = {most // (4 * (m + n))}"


def extents(n):
    """Two factors of about the same size."""
    first = min(divisors(n), key=lambda d: abs(math.log(d * d / n)))
    return sorted([first, n // first])


def tt(m, n, most):
    """Three cores, of the greatest rank that fits."""
    a, b = extents(m)
    c, d = extents(n)
    inputs, outputs = [a, *extents(b)], [c, *extents(d)]

    def numbers(rank):
        modes = [i * o for i, o in zip(inputs, outputs)]
        before, total = 1, 0
        for k, mode in enumerate(modes):
            after = 1 if k == 2 else min(rank, before * mode, math.prod(modes[k + 1:]))
            total += before * mode * after
            before = after
        return total

    rank = max((r for r in range(1, 4096) if numbers(r) <= most), default=1)
    return f"inputs = {inputs}, outputs = {outputs}, rank = {rank}"


FORMS = [
    ("lowrank", "lowrank", lowrank),
    ("lowrank-diag", "lowrank-diag", lowrank_diag),
    ("lowrank-sparse, inputs", "lowrank-sparse", lowrank_inputs),
    ("lowrank-sparse, entries", "lowrank-sparse", lowrank_entries),
    ("kronecker", "kronecker", kronecker),
    ("monarch", "monarch", monarch),
    ("tt", "tt", tt),
]


def kind(name):
    return next(k for k in KINDS if f"/{k}/" in name)


def compiled(arguments, folder, words):
    command = [arguments.binary, "compile", arguments.models / "minilm_l3.onnx", "-o", folder / "made.margay", "--calibrate",
               arguments.models / "minilm_l3_calibration.npz", "--cache", folder / "cache", "--json", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def measure(arguments):
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        dense = folder / "dense.toml"
        report = compiled(arguments, folder, ["--budget-bytes", "100%", "--save-plan", dense])
        head = dense.read_text(encoding="utf-8").split("[modules]")[0]
        layers = [m for m in report["modules"] if m["kind"] == "linear" and any(f"/{k}/" in m["name"] for k in KINDS)]
        for share in SHARES:
            for name, scheme, form in FORMS:
                lines = []
                for layer in layers:
                    settings = form(layer["d_in"], layer["d_out"], int(share * layer["d_in"] * layer["d_out"]))
                    if settings:
                        lines.append(f'"{layer["name"]}" = {{ scheme = "{scheme}", {settings} }}')
                plan = folder / "plan.toml"
                plan.write_text(head + "[modules]\n" + "\n".join(lines) + "\n", encoding="utf-8")
                found = compiled(arguments, folder, ["--plan", plan])
                sketched = [m for m in found["modules"] if m["scheme"] == scheme]
                errors = {}
                for layer in sketched:
                    errors.setdefault(kind(layer["name"]), []).append(layer["layer_error"])
                rows.append({
                    "form": name, "share": share, "layers": len(sketched), "of": len(layers),
                    "errors": {k: math.sqrt(sum(e * e for e in v) / len(v)) for k, v in errors.items()},
                    "predicted": math.sqrt(sum(m["layer_error"] ** 2 for m in sketched) / len(layers)),
                    "measured": found["held_out"]["relative_l2"],
                    "predicted_ms": found["predicted_ms_after"] / found["predicted_ms_before"],
                })
                print(json.dumps(rows[-1]), flush=True)
                RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def table(rows):
    lines = ["| numbers | form | layers | query, key, value | attention output | up | down | model | predicted time |",
             "|---|---|---|---|---|---|---|---|---|"]
    for share in SHARES:
        same = [row for row in rows if row["share"] == share]
        for row in same:
            errors = []
            for k in KINDS:
                # The least of forms that are there for the kind.
                least = min(r["errors"].get(k, math.inf) for r in same)
                error = row["errors"].get(k)
                text = "-" if error is None else f"{error:.3f}"
                errors.append(f"**{text}**" if error == least else text)
            lines.append(f"| {share:.0%} | {row['form']} | {row['layers']} of {row['of']} | " + " | ".join(errors)
                         + f" | {row['measured']:.3f} | {row['predicted_ms']:.2f} |")
    return "\n".join(lines)


def plot(rows):
    """The measured error of the model against the predicted one of its layers, both with logarithmic axes."""
    width, height, left, bottom, right, top = 560, 400, 60, 350, 390, 20
    logs = {key: [math.log10(row[key]) for row in rows] for key in ("predicted", "measured")}
    ends = {key: (min(values) - 0.05, max(values) + 0.05) for key, values in logs.items()}
    share = lambda key, v: (math.log10(v) - ends[key][0]) / (ends[key][1] - ends[key][0])  # noqa: E731
    x = lambda v: left + share("predicted", v) * (right - left)  # noqa: E731
    y = lambda v: bottom - share("measured", v) * (bottom - top)  # noqa: E731
    colours = ["#1f77b4", "#17becf", "#2ca02c", "#98a820", "#d62728", "#9467bd", "#ff7f0e"]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" fill="none" stroke="#444"/>']
    for tick in [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5, 2.0]:
        if 0 < share("predicted", tick) < 1:
            parts.append(f'<line x1="{x(tick):.1f}" y1="{bottom}" x2="{x(tick):.1f}" y2="{bottom + 4}" stroke="#444"/>'
                         f'<text x="{x(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:g}</text>')
        if 0 < share("measured", tick) < 1:
            parts.append(f'<line x1="{left - 4}" y1="{y(tick):.1f}" x2="{left}" y2="{y(tick):.1f}" stroke="#444"/>'
                         f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{height - 12}" text-anchor="middle">error of the layers, predicted (root mean square)</text>')
    parts.append(f'<text x="16" y="{(top + bottom) / 2}" text-anchor="middle" transform="rotate(-90 16 {(top + bottom) / 2})">'
                 "error of the outputs of the model, measured</text>")
    measured = [name for name, _, _ in FORMS if any(row["form"] == name for row in rows)]
    for i, name in enumerate(measured):
        colour, at = colours[i], top + 10 + 20 * i
        parts.append(f'<rect x="{right + 14}" y="{at - 5}" width="10" height="10" fill="{colour}"/>'
                     f'<text x="{right + 30}" y="{at + 4}">{name}</text>')
        for row in rows:
            if row["form"] == name:
                cx, cy = x(row["predicted"]), y(row["measured"])
                fill = colour if row["share"] == SHARES[0] else "white"
                parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2"/>')
    at = top + 10 + 20 * len(measured) + 10
    for text, fill in ((f"{SHARES[0]:.0%} of the numbers", "#444"), (f"{SHARES[1]:.0%} of the numbers", "white")):
        parts.append(f'<circle cx="{right + 19}" cy="{at}" r="5" fill="{fill}" stroke="#444" stroke-width="2"/>'
                     f'<text x="{right + 30}" y="{at + 4}">{text}</text>')
        at += 20
    return "\n".join(parts + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/margay")
    parser.add_argument("--models", type=Path, default=ROOT / ".cache/models")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report:
        measure(arguments)
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = DOCUMENT.read_text(encoding="utf-8")
    marked = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not marked.search(text):
        raise SystemExit(f"{DOCUMENT} has no marks")
    DOCUMENT.write_text(marked.sub(lambda _: f"{BEGIN}\n\n{table(rows)}\n\n{END}", text), encoding="utf-8")
    PLOT.write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
