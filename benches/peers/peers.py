"""The peers: how each is started, spoken to and described. Standard library alone.

A peer is a process of its own that holds one loaded model; `protocol.rs` says how it is spoken to.
"""

import contextlib
import datetime
import fcntl
import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache" / "peers"
MINILM = ROOT / ".cache" / "models" / "minilm_l6.onnx"


class Unavailable(Exception):
    """A peer that is not installed, or that refuses a model; the message says which."""


@dataclass(frozen=True)
class Kind:
    """What is compared with what."""

    precision: str
    # The file of the model that it runs; where a model lacks it, the peer has no part.
    file: str = "model.onnx"
    # Arguments of `margay compile`; None for everyone else.
    compile: tuple[str, ...] | None = None


# All peers in the order of their turns.
KINDS = {
    "margay": Kind("f32", compile=()),
    "onnxruntime": Kind("f32"),
    "onnxruntime-mha": Kind("f32", file="mha.onnx"),
    "openvino": Kind("f32"),
    "rten": Kind("f32"),
    "tract": Kind("f32"),
    "margay-bf16": Kind("bf16", compile=("--precision", "bf16")),
    "openvino-bf16": Kind("bf16"),
}


class Paths:
    """Where programs, models and Python are."""

    def __init__(self, cache, python=None):
        self.cache = Path(cache).resolve()
        self.target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
        # Not resolved: an interpreter finds its packages by the path it is called by.
        self.python = Path(python or self.cache / "venv" / "bin" / "python").absolute()

    def program(self, name):
        """A program of this repository, or one that setup.sh built into the cache."""
        ours = name.startswith("margay")
        path = (self.target if ours else self.cache / "target") / "release" / name
        if not path.exists():
            raise Unavailable(f"`{path}` is missing: run benches/peers/setup.sh")
        return str(path)

    def interpreter(self):
        if not self.python.exists():
            raise Unavailable(f"`{self.python}` is missing: run benches/peers/setup.sh")
        return str(self.python)

    def model(self, name):
        """The folder of a model."""
        return self.cache / name

    def takes_part(self, peer, model):
        """Whether the model has the file that this peer runs."""
        return (self.model(model) / KINDS[peer].file).exists()


def compile_model(paths, name, flags, output):
    """Compiles a model with `margay compile`; its report, and the seconds it took by the clock and of processors."""
    report = output.with_suffix(".json")
    command = [paths.program("margay"), "compile", str(paths.model(name) / "model.onnx"), "-o", str(output),
               "--report", str(report), *flags]
    done = run_program(command)
    return {"report": json.loads(report.read_text()), **done}


def run_program(command):
    """Runs a program to its end: seconds by the clock and of processors, and the most memory it held.

    The memory is never below that of this process, which the program starts as a copy of.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode != 0:
        raise Unavailable(error.strip().splitlines()[0] if error.strip() else f"status {status}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * 1024}


class Peer:
    """A running peer."""

    def __init__(self, paths, peer, model, threads, compiled=False):
        """Starts it and waits until the model is loaded. margay's peers compile the model first, unless it is."""
        self.peer, self.kind = peer, KINDS[peer]
        folder = paths.model(model)
        file = folder / self.kind.file
        self.report = None
        if self.kind.compile is not None:
            file = folder / f"{peer}.margay"
            if not compiled:
                self.report = compile_model(paths, model, self.kind.compile, file)["report"]
            command = [paths.program("margay-peer")]
        elif peer in ("rten", "tract"):
            command = [paths.program(f"{peer}-peer")]
        else:
            runtime = peer.removesuffix("-mha")
            command = [paths.interpreter(), str(HERE / "python_peer.py"), runtime]
        self.errors = folder / f"{peer}.stderr"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, str(file), str(threads), str(folder / "inputs")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        self.ready = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.close()
            lines = [line for line in self.errors.read_text().splitlines() if line.strip()]
            status = self.process.returncode
            silent = f"{self.peer} was ended by signal {-status}" if status < 0 else f"{self.peer} ended without a word"
            raise Unavailable((lines[-1] if lines else silent)[:300])
        return json.loads(line)

    def ask(self, request):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self._answer()

    def run(self, count):
        """Seconds of each of `count` runs, and the mean seconds of processor time."""
        return self.ask(f"run {count}")

    def peak_bytes(self):
        """The most memory it has held so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("/proc has no VmHWM")

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Probe:
    """The speed of fused multiply-adds at this moment."""

    def __init__(self, paths):
        self.process = subprocess.Popen(
            [paths.program("margay-probe")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.of_one = []

    def __call__(self, threads):
        """Operations per second with so many threads."""
        self.process.stdin.write(f"{threads}\n")
        self.process.stdin.flush()
        speed = float(self.process.stdout.readline())
        if threads == 1:
            self.of_one.append(speed)
        return speed

    def one_core(self):
        """What a core can do: the last probe of one thread, or the usual one where the last was held up."""
        return max(self.of_one[-1], statistics.median(self.of_one))

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def build_models(paths, names, minilm):
    """Builds the models that the cache lacks; those that are there then."""
    command = [paths.interpreter(), str(HERE / "models.py"), "--cache", str(paths.cache), *names]
    if Path(minilm).exists():
        command += ["--minilm", str(minilm)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [name for name in names if (paths.model(name) / "stamp").exists()]


def list_models(paths):
    command = [paths.interpreter(), str(HERE / "models.py"), "--list"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def compare(paths, reference, files):
    """Errors of raw outputs against a reference, by the names of the files."""
    command = [paths.interpreter(), str(HERE / "errors.py"), str(reference), *map(str, files)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def git(*words):
    """What git says; nothing where there is no repository."""
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()


def describe():
    """The machine, the day and the source: what a result file says of itself."""
    cpu = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    changed = git("status", "--porcelain", "-uno", "--", ".", ":!benches/peers/results", ":!docs")
    return {
        "machine": {
            "cpu": cpu.get("model name", platform.processor()),
            "family": cpu.get("cpu family"), "model": cpu.get("model"),
            "features": sorted(f for f in cpu.get("flags", "").split() if f.startswith(("avx", "fma", "amx"))),
            "cores": os.cpu_count(), "kernel": platform.release(),
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        # With a plus where the sources are not those of the commit.
        "commit": git("rev-parse", "--short=12", "HEAD") + ("+" if changed else ""),
        "load_average": os.getloadavg()[0],
    }


def take_priority():
    """Puts this process and the peers it will start before other programs; needs to be root.

    Linux shares the processor between sessions before it looks at single processes.
    """
    with contextlib.suppress(PermissionError):  # it leads a session already
        os.setsid()
    os.nice(-10)
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/autogroup").write_text("-15")


@contextlib.contextmanager
def exclusive(path):
    """Holds a lock on a file, if there is one to hold."""
    if path is None:
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
