#!/usr/bin/env python3
"""What is paid beside the runs: the way to a first output, memory, compilation. Writes costs.json.

    benches/peers/costs.py --rounds 5

- start: from the start of a process to its first output, for 256 MB of weights (linear8192_b32) with everything in
  the page cache. `margay run` reads inputs, checks the hashes of the weights, runs and writes a file of outputs; the
  peers are the processes of run.py, asked for one run. The import of Python packages is told apart.
- memory: the most that `margay run` holds at attention over 8192 positions; the peers' is in the files of run.py.
- compile: `margay compile`, seconds by the clock and of processor time.

Peers take turns as in run.py, one thread each; every number is kept.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from peers import (CACHE, HERE, MINILM, Paths, Peer, Unavailable, build_models, compile_model, describe,
                   exclusive, run_program, take_priority)

START = "linear8192_b32"
LONG = "attention_n8192"
COMPILED = ["bert_base", "minilm_l6"]
# What takes part in the start; variants would repeat their runtimes.
STARTED = ["margay", "onnxruntime", "openvino", "rten", "tract"]


def margay_run(paths, model):
    """One `margay run` of a compiled model at one thread."""
    folder = paths.model(model)
    return run_program([
        paths.program("margay"), "run", str(folder / "margay.margay"), "--threads", "1",
        "--inputs", str(folder / "inputs" / "inputs.npz"), "--outputs", str(folder / "outputs.npz")])


def first_output(paths, name):
    """A peer's process until its first output."""
    began = time.perf_counter()
    peer = Peer(paths, name, START, 1, compiled=True)
    peer.run(1)
    total = time.perf_counter() - began
    times = {"wall": total, "import": peer.ready["import"], "load": peer.ready["load"],
             "peak_bytes": peer.peak_bytes()}
    peer.close()
    return times


def starts(paths, rounds, lock):
    """Rounds of starts, by name; the first of each fills the page cache and does not count."""
    found = {}
    programs = {"margay run": lambda: margay_run(paths, START)}
    programs |= {name: lambda name=name: first_output(paths, name) for name in STARTED}
    for turn in range(rounds + 1):
        with exclusive(lock):
            for name, start in list(programs.items()):
                try:
                    times = start()
                except Unavailable as e:
                    print(f"left out: {name}: {e}", file=sys.stderr)
                    del programs[name]
                    continue
                if turn > 0:
                    found.setdefault(name, []).append(times)
    return found


def compilations(paths, model, rounds, lock):
    found = []
    for _ in range(rounds):
        with exclusive(lock):
            done = compile_model(paths, model, (), paths.model(model) / "margay.margay")
        found.append({"wall": done["wall"], "cpu": done["cpu"], "peak_bytes": done["peak_bytes"]})
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result file")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--minilm", type=Path, default=MINILM)
    parser.add_argument("--lock", type=Path, help="a file to lock during a round, for machines that are shared")
    parser.add_argument("--priority", action="store_true", help="run before other programs; as root")
    args = parser.parse_args()
    if args.priority:
        take_priority()
    paths = Paths(args.cache)
    try:
        models = build_models(paths, [START, LONG, *COMPILED], args.minilm)
        result = describe()
        compiled = {model: compilations(paths, model, args.rounds, args.lock) for model in models}
        result["compile"] = {model: compiled[model] for model in models if model in COMPILED}
        result["start"] = starts(paths, args.rounds, args.lock)
        result["memory"] = {LONG: margay_run(paths, LONG)["peak_bytes"]}
    except Unavailable as e:
        sys.exit(f"error: {e}")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "costs.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
