"""Measures what sketches keep of open_nsfw, a thin ResNet-50, on photographs; prints a table and JSON lines.

    python tests/tools/measure_images.py [--binary target/release/margay] [--share 70,50,25] [--recover SECONDS]
        [--out results.jsonl] [-- MORE OPTIONS OF compile]

The model is `yahoo_open_nsfw` of `check_models.py`, which fetches it. Its features, 1024 means over the last images, are made a
second output, the one that counts. Photographs are desktop backgrounds of Debian's packages. 190 crops of those of
lomiri-wallpapers calibrate, and 760 others are what recovery learns from; 96 crops of those of mate-backgrounds, by other
people, are judged: `cosine` of their features to those of the dense model, its mean; `spread`, the error of the features relative
to how they differ from their mean over the crops; and `neighbour`, the share of crops whose most similar other crop is the
same. Exit status 3: a package is not available here. Needs pillow beside the packages of the other tools.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

import shares
from check_models import fetch_named
from downloads import debian_files, exit_status
from evaluate import cosine, run

FEATURES = "/ReduceMean_output_0"
SIDE = 224
MEAN = np.array([104, 117, 123], np.float32)  # of blue, green and red
# By package, photographs below usr/share/backgrounds, with the SHA-256 of each.
LEARNED = {
    "lomiri-wallpapers-16.04": {
        "Bridge_by_Sander_Klootwijk.jpg":
            "bd86b081f9975e2b83527f71e49b9271a8ab40885428395969d9f7d834d7f050",
        "Dragonfly_by_Bolly.jpg":
            "af5af17841009732def24b09bb1e669a1b09d2b4bdeee7812c371101c30d2bb3",
        "Picture_0B_by_freespace.jpg":
            "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad",
        "Picture_1A_by_freespace.jpg":
            "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b",
        "Wine_by_Jakkub_Mede.jpg":
            "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74",
        "aitzgorri_by_Aitzol_Berasategi.jpg":
            "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36",
        "analogpattern_by_Peter_Nerlich.jpg":
            "15372488a192b2be2eafc67bd3ed31cbfca19abe3929e925607fcbc9cb4d4202",
        "free_by_Peter_Nerlich.jpg":
            "85a5453c2fed514c75973016f3d862aca62eb7ca087618822469274ac1092373",
        "friends_by_Aitzol_Berasategi.jpg":
            "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d",
        "greentock_by_Peter_Nerlich.jpg":
            "e7b20e2db9dcd6e2b278ca55873c2110b35d89cd38b04d0b18728726888e6889",
        "life_by_Aitzol_Berasategi.jpg":
            "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg":
            "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
        "seeding_by_Clements_Engelhardt.jpg":
            "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
        "sunset_by_Aitzol_Berasategi.jpg":
            "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18",
        "umang_by_Abhishek_Mudgal.jpg":
            "bfb425545e77e9f0eb1b037b607fc9ed4a446f3b0f04aa2879be3556073c57ef",
    },
    "lomiri-wallpapers-20.04": {
        "Fossa_by_Jasper_Roks.jpg":
            "4e1f6bfd73f374ac28adbf37d5f9f7ce847dccba71e860f0ff50509316be1f82",
        "Infinite-Sea_by_Aury88.jpg":
            "9319dfb3651833881339a8d9b769b99efaf474969e6cd58e427eb2524aca8e8a",
        "Kleiber_by_Lukas_Baubkus.jpg":
            "6572410c09f4492c74ccadde133565a14c0161617d5917d4c820c66d65a44ba7",
        "Painting-Colors_by__herobrine7gamer.jpg":
            "dc688df829e177f23d5e2761a198d2e44e477e4b3b3c750661052c89f7abc46c",
    },
}
JUDGED = {
    "mate-backgrounds": {
        "mate/nature/Aqua.jpg":
            "5c30118205982da441bf7e6a1ada636a8a0be879408140b3148280c665ed6bce",
        "mate/nature/Blinds.jpg":
            "f7aac0dcc2e06d0491643e84df3da1d9db7c4610f58806a880d56e074799f600",
        "mate/nature/Dune.jpg":
            "8a67c2cb0be8c46b70c237311a4fa4d2b4ac7d39568135384787801fa5cc9a91",
        "mate/nature/FreshFlower.jpg":
            "972b0a0c4e5e3fa93f4f244fc84bc64b121a5eac3aaa5856f1308c1f38a02f8e",
        "mate/nature/Garden.jpg":
            "d3095ee09d425ef23d27155412136cf14fc3c9af76ca58b452f55e23da324e78",
        "mate/nature/GreenMeadow.jpg":
            "8fa0de0aa4089f7319c9fb7a6d006d4cab6023e8c8853731557cff53567b4832",
        "mate/nature/LadyBird.jpg":
            "e35a9a4126ef969c90b29c038058c5a575a20eadd84106a37bf1fa9931e7b61d",
        "mate/nature/RainDrops.jpg":
            "3e4ea9671c28c90a86cf67b3db9daf18c4741587c596333a7529ca589aaa0c16",
        "mate/nature/Storm.jpg":
            "77ca53077831d3237f73393a91fc879158abc046d852941c26e90de336356957",
        "mate/nature/TwoWings.jpg":
            "665e5abf8a5399070a91a9a8e455fe071e5b61697ff78fdeda4e9843ef545aeb",
        "mate/nature/Wood.jpg":
            "19c78500ac00a622e19907ab9cc7d06d46fe08c4a6142759a84195696150ec07",
        "mate/nature/YellowFlower.jpg":
            "254da96256acb7add685679775a04d1e4a5bc8cd13e5a5a3d61351ce198a5306",
    },
}


def photographs(packages, folder):
    """All photographs, of any sizes."""
    found = []
    for package, files in packages.items():
        members = {f"usr/share/backgrounds/{name}": digest for name, digest in files.items()}
        found += [Image.open(path).convert("RGB") for path in debian_files(package, members, folder)]
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
        learned, judged = photographs(LEARNED, Path(folder)), photographs(JUDGED, Path(folder))
        model = with_features(fetch_named("yahoo_open_nsfw"), Path(folder) / "features.onnx")
        seen = {"input_0": crops(judged, 8, 0)}
        dense = run(str(model), seen)[FEATURES]
        spread = np.linalg.norm(dense - dense.mean(axis=0))

        def judge(path):
            found = run(str(path), seen)[FEATURES]
            return {"cosine": float(cosine(dense, found).mean()),
                    "spread": float(np.linalg.norm(found - dense) / spread),
                    "neighbour": float((neighbours(dense) == neighbours(found)).mean())}

        shares.measure(given, model, {"input_0": crops(learned, 10, 1)}, {"input_0": crops(learned, 40, 2)}, judge,
                       ["--output-name", FEATURES])


if __name__ == "__main__":
    exit_status(main)
