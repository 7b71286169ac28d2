"""Measures what sketches keep of open_nsfw, a thin ResNet-50, on photographs; prints a table and JSON lines.

    python tests/tools/measure_images.py [--binary target/release/margay] [--share 70,50,25] [--recover SECONDS]
        [--out results.jsonl] [-- MORE OPTIONS OF compile]

The model is `yahoo_open_nsfw` of `check_models.py`, which fetches it. Its features, 1024 means over the last images, are made a
second output, the one that counts. Photographs come from packages of Debian and npm (photographs.txt). 530 crops of 53
calibrate; 2120 other crops of them, and 2536 of 634 more, are what recovery learns from; 96 crops of 12 others, desktop
backgrounds by other people, are judged: `cosine` of their features to those of the dense model, its mean; `spread`, the error
of the features relative to how they differ from their mean over the crops; and `neighbour`, the share of crops whose most
similar other crop is the same. Exit status 3: a package is not available here. Needs pillow beside the packages of the other
tools.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

import shares
from check_models import fetch_named
from downloads import debian_files, exit_status, npm_files
from evaluate import cosine, run

FEATURES = "/ReduceMean_output_0"
SIDE = 224
MEAN = np.array([104, 117, 123], np.float32)  # of blue, green and red
PHOTOGRAPHS = Path(__file__).with_name("photographs.txt")


def photographs(role, folder):
    """All photographs of a role, of any sizes."""
    packages = {}
    for line in PHOTOGRAPHS.read_text().splitlines():
        if line.startswith(f"{role} "):
            _, package, path, digest = line.split()
            packages.setdefault(package, {})[path] = digest
    found = []
    for package, files in packages.items():
        fetch, above = (npm_files, "package") if "@" in package else (debian_files, "usr/share")
        place = folder / package.replace("/", "_")
        place.mkdir(exist_ok=True)
        paths = fetch(package, {f"{above}/{path}": digest for path, digest in files.items()}, place)
        found += [Image.open(path).convert("RGB") for path in paths]
    return found


def crops(photos, count, seed):
    """So many random squares of each photograph, a fifth to all of its height, some mirrored: `[N, 224, 224, 3]`."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        for photo in photos:
            side = int(min(photo.size) * random.uniform(0.2, 1))
            left, top = (random.integers(0, extent - side + 1) for extent in photo.size)
            box = (left, top, left + side, top + side)
            pixels = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box), np.float32)[..., ::-1] - MEAN
            found.append(pixels[:, ::-1] if random.random() < 0.5 else pixels)
    return np.stack(found)


def with_features(path, place):
    """Writes the model with the features as another output."""
    model = onnx.load(path)
    features = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", 1024])
    model.graph.output.append(features)
    onnx.save(model, place)
    return place


def neighbours(features):
    """By row, the other row with the largest cosine."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    similar = rows @ rows.T
    np.fill_diagonal(similar, -1)
    return similar.argmax(axis=1)


def main():
    given = shares.arguments(__doc__, "70,50,25")
    with tempfile.TemporaryDirectory() as folder:
        learned, varied, judged = (photographs(role, Path(folder)) for role in ("learned", "varied", "judged"))
        model = with_features(fetch_named("yahoo_open_nsfw"), Path(folder) / "features.onnx")
        seen = {"input_0": crops(judged, 8, 0)}
        dense = run(str(model), seen)[FEATURES]
        spread = np.linalg.norm(dense - dense.mean(axis=0))

        def judge(path):
            found = run(str(path), seen)[FEATURES]
            return {"cosine": float(cosine(dense, found).mean()),
                    "spread": float(np.linalg.norm(found - dense) / spread),
                    "neighbour": float((neighbours(dense) == neighbours(found)).mean())}

        lessons = np.concatenate([crops(learned, 40, 2), crops(varied, 4, 3)])
        shares.measure(given, model, {"input_0": crops(learned, 10, 1)}, {"input_0": lessons}, judge, [FEATURES])


if __name__ == "__main__":
    exit_status(main)
