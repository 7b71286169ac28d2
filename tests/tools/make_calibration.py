"""Writes tokenized English text for the calibration and for the evaluation of the fetched models.

* `NAME_calibration.npz`: aphorisms and anecdotes of the Debian package fortunes;
* `NAME_evaluation.npz`: glosses of the Debian package wordnet-base (WordNet 3.0);
* `NAME_recovery.npz`, with `--samples N`: N passages of at most 32 tokens from fortunes, for a
  sketched model to learn from.

The first two differ in kind, so that a plan is judged on text unlike that which it was calibrated
on; nothing ever learns from the second. Each of them holds 256 texts as int64 [256, 64] under the
input names of the model, padded with zeros. The packages are fetched and not installed; their text is never committed. Exit status 3:
they are not available here.
"""

import argparse
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from downloads import debian_files, exit_status
from make_reference import write_npz

INPUTS = {
    "minilm_l3": ("input_ids", "attention_mask"),
    "minilm_l6": ("input_ids", "attention_mask", "token_type_ids"),
}
SAMPLES = 256
LENGTH = 64
PASSAGE = 32
SEED = 21

FORTUNES = {
    "usr/share/games/fortunes/science": "7ab350b142ee6c70c1d8517c5a1b3790c09b190a62859427cad98e6e35a19fcc",
    "usr/share/games/fortunes/wisdom": "9b0bd6b9331a68c9172219784a411c417c055ed69734edc7b4406795b87d4e94",
    "usr/share/games/fortunes/people": "2afb4b9f577be114d2dca279bc5590ee8415e1405295d7d7626c888d82f338e8",
    "usr/share/games/fortunes/work": "ad8a0e104160e2c4782fa86e143cd60ffab2872985d4293ffd0af6df19dbfa28",
    "usr/share/games/fortunes/law": "f04141f94e788b7899e0adb0490d182ce711f8fdbb8252343a5257e717e9279d",
    "usr/share/games/fortunes/education": "ba13321d6d6beb7a6e65296a47450bfc87b24a319fff2e94762011b59a31aa35",
    "usr/share/games/fortunes/politics": "b56ca45a046edd5c459090a5c6b335332661b436e814b41ac87bb58065ad6131",
}
# What recovery learns from besides: more of the same package.
MORE_FORTUNES = {
    "usr/share/games/fortunes/art": "600b8197bc994fd4fcbb623aa5e700629540af44f044d4907886bd1031f160ce",
    "usr/share/games/fortunes/computers": "a86be224d9f733b88eeaf8a46ea0427e05cc69c69edcf5f6db47ddf561ca37fd",
    "usr/share/games/fortunes/cookie": "5dc97eee96dcc5287c373be629482730d45f77b59da1287933c9c5f482a055eb",
    "usr/share/games/fortunes/definitions": "57be4744c353d931fa2ca95f50215d4b67539f5a527ae628a6441fb4a1258caa",
    "usr/share/games/fortunes/drugs": "a5a59ee8b0e1fd3085a38dfa29149fe9a2c8d7f256b74aea71aa2cc08a9990c1",
    "usr/share/games/fortunes/food": "78077a65b9288df71e7b2a8e8258cd3b1005d1282f7c7e57ad53927f374df45d",
    "usr/share/games/fortunes/humorists": "ffdf67e1f4049133bf904b769c364de45e5ae0abfb3ea7c9afb54b87b89acfc4",
    "usr/share/games/fortunes/kids": "82e51834990afd36f2ea2f25864b368e2f44f9c761aba034035b26061de6d5be",
    "usr/share/games/fortunes/love": "4d4fb7c540e5500e44643524dae41dd7d2b21b80be184253fd9f8541f6029fc5",
    "usr/share/games/fortunes/magic": "b9553a1d84d966db55a24a779206cc4565bf3686c9ecbc31215f654129e3166e",
    "usr/share/games/fortunes/medicine": "18b8c7b098e649024159c9d9f3e37a0832bbd2d5cf3e2317b313134761afd487",
    "usr/share/games/fortunes/men-women": "8fc4eb68a8d16826372d9bfdc910c8ab917b8aa59e2aac533f3ec2b49a1314ba",
    "usr/share/games/fortunes/miscellaneous": "e3d81fd016f9f84a70ecb9aa197c4911aca01a8034e49345b81093f6751bba9c",
    "usr/share/games/fortunes/news": "4b8eebae510353d6f628dfdaf52bf8cbdafb891a122b146421c805b74f389617",
    "usr/share/games/fortunes/pets": "084472564bc55df566733a224f8a737d78717132ec43628be0c2af466ac41ecc",
    "usr/share/games/fortunes/platitudes": "88448274efec3d2c0908cc11525c9b065b95a32c232a2c58c67a87dd88545ee5",
    "usr/share/games/fortunes/songs-poems": "eb714d297b468da91b6ca32baefb000279a3e3740b09f8a87db24fe58e010b1a",
    "usr/share/games/fortunes/sports": "b71dd524d7bca888ec1014fb849a8a15cf58017c59127e572d393ef7632c35c8",
    "usr/share/games/fortunes/startrek": "7b2e4c235b99452b2de4c47d67aae0faac2ea508a2d644609e4ef5db7653c39c",
    "usr/share/games/fortunes/tao": "4adddc35a122bb233a16c076abc0be0326ea3a68594146a6baee3b5f6489e12b",
    "usr/share/games/fortunes/linux": "85b0e5eadf7adeea77da4e1fbd456c962ce3bd1dabbd053098ecf37de9169cf3",
    "usr/share/games/fortunes/linuxcookie": "4f75959924ae5bb1955c30a5c985e641ec17cd5ebb7453d839f94b1988331202",
    "usr/share/games/fortunes/perl": "b19145eadf97c31add2e0a199d93ffa0eb92e00275c2724b7ad6b4e412113536",
    "usr/share/games/fortunes/zippy": "b996a112c99a2d61782e1a9a1f3c5445122f18ac312485f2c78279e82ca33932",
    "usr/share/games/fortunes/debian": "491dd04bf909b64152bcb554b9bc88df0ca50c0dc676d74d10742bf38aaa50de",
}
WORDNET = {
    "usr/share/wordnet/data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "usr/share/wordnet/data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
    "usr/share/wordnet/data.adj": "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
}


def fortunes(paths):
    """The prose among the fortunes, one paragraph each, without the names of their authors."""
    texts = []
    for path in paths:
        for entry in path.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            body = re.split(r"\n\s*--", entry)[0]
            # A blank line or wide gap means verse, dialogue, a table or a drawing.
            if not re.search(r"\n\s*\n|\S\s{4,}\S|\n\t", body):
                texts.append(" ".join(body.split()))
    return prose(texts, shortest=140)


def passages(paths, tokenizer):
    """The prose among the fortunes, short and long, in runs of whole sentences of `PASSAGE` tokens."""
    bodies = []
    for path in paths:
        for entry in path.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            body = re.split(r"\n\s*--", entry)[0]
            bodies += [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n\t+", body)]
    size = lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
    found = []
    for text in prose(bodies, shortest=25, longest=4000):
        run = ""
        for sentence in re.split(r"(?<=[.!?]) +", text):
            longer = f"{run} {sentence}".strip()
            if run and size(longer) > PASSAGE - 2:
                found.append(run)
                longer = sentence
            run = longer
        found.append(run)
    return [text for text in dict.fromkeys(found) if len(text) >= 25]


def glosses(paths):
    """The definitions of WordNet with their examples."""
    texts = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            if " | " in line and not line.startswith("  "):
                texts.append(line.split(" | ", 1)[1].strip())
    return prose(texts, shortest=60)


def prose(texts, shortest, longest=600):
    """The distinct texts of `shortest` to `longest` characters that are mostly words."""
    kept = []
    for text in dict.fromkeys(texts):
        letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in text)
        if shortest <= len(text) <= longest and letters >= 0.9 * len(text):
            kept.append(text)
    return kept


def tokenize(tokenizer, texts, samples, length):
    """Some of the texts, drawn with `SEED`, as token ids and mask."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    chosen = np.random.default_rng(SEED).choice(len(texts), samples, replace=False)
    encodings = tokenizer.encode_batch([texts[index] for index in chosen])
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of fetch_models.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--samples", type=int, default=0, help="passages for recovery")
    arguments = parser.parse_args()
    text = arguments.out / "text"
    text.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(arguments.models / "tokenizer.json"))
    aphorisms = debian_files("fortunes", FORTUNES, text)
    gloss = debian_files("wordnet-base", WORDNET, text)
    sources = {
        "calibration": (fortunes(aphorisms), SAMPLES, LENGTH),
        "evaluation": (glosses(gloss), SAMPLES, LENGTH),
    }
    if arguments.samples:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        found = passages(aphorisms + debian_files("fortunes", MORE_FORTUNES, text), tokenizer)
        if arguments.samples > len(found):
            parser.error(f"--samples: expected at most {len(found)}, found {arguments.samples}")
        sources["recovery"] = (found, arguments.samples, PASSAGE)
    for use, (texts, samples, length) in sources.items():
        tokens = tokenize(tokenizer, texts, samples, length)
        for model, names in INPUTS.items():
            path = arguments.out / f"{model}_{use}.npz"
            write_npz(path, {name: tokens[name] for name in names})


if __name__ == "__main__":
    exit_status(main)
