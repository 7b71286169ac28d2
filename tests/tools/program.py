"""The program `margay`, run on arrays."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

BUILT = Path(__file__).resolve().parent.parent.parent / "target" / "release" / "margay"


def add_binary(parser):
    """The option that names the program."""
    parser.add_argument("--binary", default=str(BUILT), help="the program `margay` [default: target/release/margay]")


def run(binary, model, inputs, seconds):
    """Runs a model on inputs by name. Returns the exit status, `None` after so many seconds without an answer, what was
    said on stderr, on one line, and the outputs by name, none of a run that failed."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        np.savez(folder / "in.npz", **inputs)
        command = [binary, "run", str(model), "--inputs", "in.npz", "--outputs", "out.npz"]
        try:
            done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  errors="replace", timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return None, f"no answer within {seconds} seconds", {}
        message = " ".join(done.stderr.split())
        if done.returncode != 0:
            return done.returncode, message, {}
        with np.load(folder / "out.npz") as found:
            return 0, message, dict(found)
