"""Times the crate margay-randnla beside scipy and scikit-learn, and writes the results into docs/randnla.md.

    python benches/peers/randnla.py [--rounds 5] [--full]

needs numpy, scipy and scikit-learn. All run on one thread; times are processor times of that thread. A round runs every
case of every library once, one after the other; the table has medians over rounds, and least and greatest in brackets.
`--full` also runs the decomposition of 4096 x 4096 by faer, which takes minutes; otherwise its time follows from that of
2048 x 2048, times 8.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

for variable in ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]:
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import scipy  # noqa: E402
import scipy.linalg  # noqa: E402
import sklearn  # noqa: E402
from sklearn.utils.extmath import randomized_svd  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benches" / "results" / "randnla.json"
DOCUMENT = ROOT / "docs" / "randnla.md"
BEGIN, END = "<!-- begin: benches/peers/randnla.py -->", "<!-- end -->"


def measured(parts):
    """What the example `measure` prints, by case."""
    command = ["cargo", "run", "--release", "--offline", "--quiet", "-p", "margay-randnla", "--example", "measure", "--", *parts]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines)}


def seconds(work):
    before = time.process_time()
    work()
    return time.process_time() - before


def peers():
    """Cases of other libraries, by name, as functions without arguments; inputs are made once."""
    random = np.random.default_rng(1)

    def falling(rows, columns, kind):
        draw = random.standard_normal((rows, columns)) / (1.0 + np.arange(columns))
        return np.asfortranarray(draw, dtype=kind)

    square, square32 = falling(4096, 4096, np.float64), falling(4096, 4096, np.float32)
    cases = {}
    for q in [2, 7]:
        cases[f"sklearn_rsvd_q{q}_f64_4096"] = lambda q=q: randomized_svd(
            square, 64, n_oversamples=10, n_iter=q, random_state=0
        )
    cases["sklearn_rsvd_q2_f32_4096"] = lambda: randomized_svd(
        square32, 64, n_oversamples=10, n_iter=2, random_state=0
    )
    for kind in [np.float64, np.float32]:
        name = {np.float64: "f64", np.float32: "f32"}[kind]
        tall = falling(16384, 256, kind)
        right = random.standard_normal(16384).astype(kind)
        cases[f"scipy_geqp3_{name}_16384x256"] = lambda tall=tall: scipy.linalg.qr(
            tall, mode="r", pivoting=True, check_finite=False
        )
        cases[f"scipy_geqp3_q_{name}_16384x256"] = lambda tall=tall: scipy.linalg.qr(
            tall, mode="economic", pivoting=True, check_finite=False
        )
        cases[f"scipy_geqrf_q_{name}_16384x256"] = lambda tall=tall: scipy.linalg.qr(
            tall, mode="economic", check_finite=False
        )
        cases[f"scipy_lstsq_{name}_16384x256"] = lambda tall=tall, right=right: scipy.linalg.lstsq(
            tall, right, lapack_driver="gelsd", check_finite=False
        )
        factor = random.standard_normal((2048, 2048)).astype(kind)
        cases[f"numpy_product_{name}_2048"] = lambda factor=factor: factor @ factor
    gaussian = np.asfortranarray(random.standard_normal((2048, 2048)))
    cases["scipy_geqp3_q_f64_2048"] = lambda: scipy.linalg.qr(gaussian, pivoting=True, check_finite=False)
    return cases


# What is compared: row, ours, theirs, and the factor that is asked for.
ROWS = [
    ("RSVD 4096², k = 64, 2 power iterations, f64", "rsvd_q2_f64_4096", "sklearn_rsvd_q2_f64_4096", "scikit-learn `randomized_svd`"),
    ("RSVD 4096², k = 64, 7 power iterations, f64", "rsvd_q7_f64_4096", "sklearn_rsvd_q7_f64_4096", "scikit-learn `randomized_svd` (its default)"),
    ("RSVD 4096², k = 64, 2 power iterations, f32", "rsvd_q2_f32_4096", "sklearn_rsvd_q2_f32_4096", "scikit-learn `randomized_svd`"),
    ("RSVD 4096², k = 64, 2 power iterations, f64", "rsvd_q2_f64_4096", "svd_f64_4096", "faer, all singular vectors"),
    ("CQRRPT 16384 x 256 with Q, f64", "cqrrpt_f64_16384x256", "scipy_geqp3_f64_16384x256", "scipy pivoted QR, without Q"),
    ("CQRRPT 16384 x 256 with Q, f64", "cqrrpt_f64_16384x256", "scipy_geqp3_q_f64_16384x256", "scipy pivoted QR, with Q"),
    ("CQRRPT 16384 x 256 with Q, f32", "cqrrpt_f32_16384x256", "scipy_geqp3_f32_16384x256", "scipy pivoted QR, without Q"),
    ("CQRRT 16384 x 256, f64", "cqrrt_f64_16384x256", "scipy_geqrf_q_f64_16384x256", "scipy QR, with Q"),
    ("shifted Cholesky QR 3 16384 x 256, f64", "scholqr3_f64_16384x256", "scipy_geqrf_q_f64_16384x256", "scipy QR, with Q"),
    ("BQRRP 2048² with Q, f64", "bqrrp_f64_2048", "scipy_geqp3_q_f64_2048", "scipy pivoted QR, with Q"),
    ("least squares 16384 x 256, f64", "lstsq_f64_16384x256", "scipy_lstsq_f64_16384x256", "scipy `lstsq` (gelsd)"),
    ("product 2048³, f64 (faer)", "product_f64_2048", "numpy_product_f64_2048", "numpy (OpenBLAS)"),
    ("product 2048³, f32 (faer)", "product_f32_2048", "numpy_product_f32_2048", "numpy (OpenBLAS)"),
]


def spread(values):
    return f"{statistics.median(values):.4g} ({min(values):.3g}–{max(values):.3g})"


def table(results, projected):
    lines = [
        "| | seconds | beside | seconds | times as fast |",
        "|---|---|---|---|---|",
    ]
    for row, ours, theirs, name in ROWS:
        a, b = results[ours], results[theirs]
        ratio = statistics.median(b) / statistics.median(a)
        note = " (8 times that of 2048²)" if theirs == "svd_f64_4096" and projected else ""
        lines.append(f"| {row} | {spread(a)} | {name}{note} | {spread(b)} | {ratio:.2f} |")
    lines += [
        "",
        "Sketches of 16384 x 1024 to 1024 rows: bytes of the operand read and of the result written, in a second, and their",
        "share of what a copy of the operand moves, read and written, in the same round.",
        "",
        "| | f64, columns together | f64, rows together | f32, columns together | f32, rows together |",
        "|---|---|---|---|---|",
    ]
    titles = {"srht": "SRHT", "sjlt1": "CountSketch", "sjlt4": "SJLT, 4 entries", "sjlt8": "SJLT, 8 entries"}
    for law, title in titles.items():
        cells = []
        for kind in ["f64", "f32"]:
            copies = results[f"copy_{kind}_bandwidth"]
            for layout in ["columns", "rows"]:
                moved = results[f"{law}_{kind}_{layout}_bandwidth"]
                share = statistics.median(m / c for m, c in zip(moved, copies))
                cells.append(f"{statistics.median(moved) / 1e9:.2f} GB/s ({share:.0%})")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    copies = [f"{kind} {statistics.median(results[f'copy_{kind}_bandwidth']) / 1e9:.2f} GB/s" for kind in ["f64", "f32"]]
    lines += ["", f"A copy moves: {', '.join(copies)}."]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="decompose 4096 x 4096 by faer, too")
    arguments = parser.parse_args()
    cases = peers()
    results = {}

    def add(found):
        for name, value in found.items():
            results.setdefault(name, []).append(value)

    for work in cases.values():
        work()
    for _ in range(arguments.rounds):
        add(measured(["rsvd", "cqrr", "scholqr3", "lstsq", "bqrrp", "product", "srht", "sjlt"]))
        add({name: seconds(work) for name, work in cases.items()})
    if arguments.full:
        add(measured(["svd_f64_4096"]))
    else:
        add({"svd_f64_4096": 8 * measured(["svd_f64_2048"])["svd_f64_2048"]})
    processor = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}, scikit-learn {sklearn.__version__}"
    RESULTS.write_text(
        json.dumps({"processor": processor, "versions": versions, "projected": not arguments.full, "seconds": results}, indent=1)
        + "\n"
    )
    text = (
        f"{processor}, one thread, {versions}; medians of {arguments.rounds} rounds, least and greatest in brackets.\n\n"
        + table(results, not arguments.full)
    )
    before, rest = DOCUMENT.read_text().split(BEGIN)
    after = rest.split(END, 1)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    print(text)


if __name__ == "__main__":
    main()
