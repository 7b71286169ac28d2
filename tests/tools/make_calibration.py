"""Writes tokenized English text for the calibration and for the evaluation of the fetched models.

* `NAME_calibration.npz`: aphorisms and anecdotes of the Debian package fortunes;
* `NAME_evaluation.npz`: glosses of the Debian package wordnet-base (WordNet 3.0).

The two differ in kind, so that a plan is judged on text unlike that which it was calibrated on.
Each file holds 256 texts as int64 [256, 64] under the input names of the model, padded with
zeros. The packages are fetched and not installed; their text is never committed. Exit status 3:
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


def glosses(paths):
    """The definitions of WordNet with their examples."""
    texts = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            if " | " in line and not line.startswith("  "):
                texts.append(line.split(" | ", 1)[1].strip())
    return prose(texts, shortest=60)


def prose(texts, shortest):
    """The distinct texts of `shortest` to 600 characters that are mostly words."""
    kept = []
    for text in dict.fromkeys(texts):
        letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in text)
        if shortest <= len(text) <= 600 and letters >= 0.9 * len(text):
            kept.append(text)
    return kept


def tokenize(tokenizer, texts):
    """`SAMPLES` of the texts, drawn with `SEED`, as token ids and mask."""
    chosen = np.random.default_rng(SEED).choice(len(texts), SAMPLES, replace=False)
    encodings = tokenizer.encode_batch([texts[index] for index in chosen])
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of fetch_models.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    arguments = parser.parse_args()
    text = arguments.out / "text"
    text.mkdir(parents=True, exist_ok=True)
    sources = {
        "calibration": fortunes(debian_files("fortunes", FORTUNES, text)),
        "evaluation": glosses(debian_files("wordnet-base", WORDNET, text)),
    }
    tokenizer = Tokenizer.from_file(str(arguments.models / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    for use, texts in sources.items():
        tokens = tokenize(tokenizer, texts)
        for model, names in INPUTS.items():
            path = arguments.out / f"{model}_{use}.npz"
            write_npz(path, {name: tokens[name] for name in names})


if __name__ == "__main__":
    exit_status(main)
