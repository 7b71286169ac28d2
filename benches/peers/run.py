#!/usr/bin/env python3
"""Compares margay with other runtimes, interleaved, and writes one result file per model and number of threads.

    benches/peers/setup.sh                                  once: Python peers, Rust peers, margay
    benches/peers/run.py --rounds 5 --threads 1,2           everything; half an hour or more
    benches/peers/run.py --models bert_base,resnet50 --peers margay,onnxruntime --threads 1
    benches/peers/report.py                                 docs/benchmarks.md from all result files

Every peer is a process of its own with the model loaded, and all of them live at once. A round first probes what the
machine can do with one thread and with all, then gives each peer in turn as many runs as fit into `--seconds`. Peers
that wait do not run. A round's ratio is the peer's median over margay's median in that round; nothing is
compared across rounds. Rounds with several threads count only if the probe shows a core for each thread, before and
after; more rounds are tried, up to ten times as many as asked for.

Outputs are compared with onnxruntime's at one thread. What is not installed is left out and said; peers that are
named with --peers must take part. Exit status 1: one of them did not, or outputs are wrong.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from peers import (CACHE, HERE, KINDS, MINILM, Paths, Peer, Probe, Unavailable, build_models, compare, describe,
                   exclusive, list_models, take_priority)

# A probe with n threads below this share of n times the probe with one means that the cores were not all there.
CORE_SHARE = 0.95
# Threads of runtimes spin for a while after a run; nobody is timed before they sleep.
PAUSE_SECONDS = 0.1
MAX_RUNS = 2000
# So many runs at least, of whoever is not slow.
MIN_RUNS = 3
SLOW_SECONDS = 2.0
# After a round that did not count; and so many rounds are tried for each that is asked for.
RETRY_SECONDS = 1.0
MAX_TRIES = 10
# Relative errors above these are no rounding.
MAX_ERROR = {"f32": 1e-4, "bf16": 1e-1}


def say(text):
    print(text, file=sys.stderr, flush=True)


def start(paths, names, model, threads):
    """The peers that take part, and why others do not."""
    peers, left_out = {}, {}
    for name in filter(lambda name: paths.takes_part(name, model), names):
        try:
            peers[name] = Peer(paths, name, model, threads)
        except Unavailable as e:
            left_out[name] = str(e)
            say(f"  left out: {name}: {e}")
    return peers, left_out


def reference(paths, model):
    """The outputs of onnxruntime at one thread, made anew when the model or the runtime may have changed."""
    path = paths.model(model) / "reference.bin"
    stamp = paths.model(model) / "stamp"
    if not path.exists() or path.stat().st_mtime < stamp.stat().st_mtime:
        peer = Peer(paths, "onnxruntime", model, 1)
        peer.run(1)
        peer.ask(f"write {path}")
        peer.close()
    return path


def warm_up(paths, model, peers, seconds):
    """Errors of everyone's outputs, and how many runs take about so many seconds."""
    files = {name: paths.model(model) / f"{name}.output.bin" for name in peers}
    counts = {}
    for name, peer in peers.items():
        peer.run(1)
        peer.ask(f"write {files[name]}")
        fastest = min(peer.run(2)["wall"])
        least = 1 if fastest > SLOW_SECONDS else MIN_RUNS
        counts[name] = min(MAX_RUNS, max(least, round(seconds / fastest)))
    found = compare(paths, reference(paths, model), files.values())
    errors = {name: found[str(file)] for name, file in files.items()}
    for file in files.values():
        file.unlink()
    return errors, counts


def cores_are_free(probe, threads):
    """Whether so many threads have a core each right now, and what the probe said with one thread and with all."""
    speeds = {str(n): probe(n) for n in sorted({1, threads})}
    return threads == 1 or speeds[str(threads)] >= CORE_SHARE * threads * probe.one_core(), speeds


def one_round(probe, peers, counts, threads, turn):
    """Everyone once, if there are cores; who begins changes from round to round."""
    free, speeds = cores_are_free(probe, threads)
    if not free:
        return {"probe": speeds, "counted": False, "times": {}}
    names = list(peers)
    shift = turn % len(names)
    times = {}
    for name in names[shift:] + names[:shift]:
        time.sleep(PAUSE_SECONDS)
        answer = peers[name].run(counts[name])
        wall = answer["wall"]
        times[name] = {"median": statistics.median(wall), "min": min(wall), "cpu": answer["cpu"], "runs": len(wall)}
    counted = threads == 1 or cores_are_free(probe, threads)[0]
    return {"probe": speeds, "counted": counted, "times": times}


def all_rounds(probe, peers, counts, threads, args):
    """Rounds until enough of them count, or until too many did not."""
    rounds = []
    while sum(r["counted"] for r in rounds) < args.rounds and len(rounds) < MAX_TRIES * args.rounds:
        if rounds and not rounds[-1]["counted"]:
            time.sleep(RETRY_SECONDS)
        with exclusive(args.lock):
            rounds.append(one_round(probe, peers, counts, threads, len(rounds)))
    return rounds


def measure(paths, model, threads, args, probe):
    """All rounds of one model with so many threads; what the result file holds."""
    peers, left_out = start(paths, args.peers or KINDS, model, threads)
    reports = [peer.report for peer in peers.values() if peer.report]
    operations = reports[0]["flops_after"] if reports else None
    result = {**describe(), "model": model, "threads": threads, "operations": operations, "left_out": left_out}
    try:
        errors, counts = warm_up(paths, model, peers, args.seconds)
        result["rounds"] = all_rounds(probe, peers, counts, threads, args)
        result["peers"] = {
            name: {
                "version": peer.ready["version"], "precision": peer.kind.precision,
                "import_seconds": peer.ready["import"], "load_seconds": peer.ready["load"],
                "peak_bytes": peer.peak_bytes(), "error": errors[name],
            }
            for name, peer in peers.items()
        }
    finally:
        for peer in peers.values():
            peer.close()
    return result


def ratios(result, peer, subject="margay"):
    """The peer's time over the subject's, for every round that counts."""
    rounds = [r["times"] for r in result["rounds"] if r["counted"]]
    return [t[peer]["median"] / t[subject]["median"] for t in rounds if peer in t and subject in t]


def summary(result):
    """A line for each peer, for whoever watches."""
    counted = sum(r["counted"] for r in result["rounds"])
    lines = [f"{result['model']}, {result['threads']} thread(s): {counted} of {len(result['rounds'])} rounds count"]
    for name, peer in result["peers"].items():
        rounds = [r["times"][name] for r in result["rounds"] if r["counted"]]
        if not rounds:
            continue
        ms = 1e3 * statistics.median(r["median"] for r in rounds)
        cpu = 1e3 * statistics.median(r["cpu"] for r in rounds)
        over = ratios(result, name)
        ratio = f"{statistics.median(over):5.2f} [{min(over):.2f}, {max(over):.2f}]" if over else "-"
        error = f"{peer['error']['relative']:.1e}" if peer["error"] else "WRONG"
        lines.append(f"  {name:16} {ms:9.3f} ms  cpu {cpu:9.3f} ms  over margay {ratio}  error {error}"
                     f"  {peer['peak_bytes'] / 1e6:6.0f} MB")
    return "\n".join(lines)


def problems(result, named):
    """Outputs that are wrong, and named peers that are missing."""
    found = [f"{name} is left out" for name in result["left_out"] if name in named]
    for name, peer in result["peers"].items():
        if peer["error"] is None or peer["error"]["relative"] > MAX_ERROR[peer["precision"]]:
            found.append(f"outputs of {name} are wrong")
    return [f"{result['model']}: {problem}" for problem in found]


def names(text):
    return [word for word in text.split(",") if word]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=names, help="names, or `all` (default); models.py lists them")
    parser.add_argument("--peers", type=names, default=[], help=f"of {', '.join(KINDS)}; default all")
    parser.add_argument("--threads", type=names, default=["1"], help="numbers of threads, such as 1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each peer in a round")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result files")
    parser.add_argument("--cache", type=Path, default=CACHE, help="models, Python, Rust peers")
    parser.add_argument("--python", type=Path, help="an interpreter with numpy, onnx and runtimes; that of the cache")
    parser.add_argument("--minilm", type=Path, default=MINILM, help="the MiniLM-L6 that scripts/test.sh makes")
    parser.add_argument("--lock", type=Path, help="a file to lock during a round, for machines that are shared")
    parser.add_argument("--priority", action="store_true", help="run before other programs; as root")
    args = parser.parse_args()
    if args.priority:
        take_priority()
    unknown = [name for name in args.peers if name not in KINDS]
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}; known are {', '.join(KINDS)}")
    paths = Paths(args.cache, args.python)
    try:
        known = list_models(paths)
        wanted = [m for m in known if m != "tiny"] if args.models in (None, ["all"]) else args.models
        unknown = [name for name in wanted if name not in known]
        if unknown:
            parser.error(f"no such model: {', '.join(unknown)}; known are {', '.join(known)}")
        models = build_models(paths, wanted, args.minilm)
        probe = Probe(paths)
    except Unavailable as e:
        sys.exit(f"error: {e}")
    for name in set(wanted) - set(models):
        say(f"left out: {name}: `{args.minilm}` is missing")
    args.out.mkdir(parents=True, exist_ok=True)
    failures = []
    for model in models:
        for threads in map(int, args.threads):
            result = measure(paths, model, threads, args, probe)
            (args.out / f"{model}-{threads}.json").write_text(json.dumps(result, indent=1) + "\n")
            print(summary(result), flush=True)
            failures += problems(result, args.peers)
    probe.close()
    if failures:
        sys.exit("error: " + "; ".join(failures))


if __name__ == "__main__":
    main()
