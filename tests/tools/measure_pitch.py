"""Measures what sketches keep of CREPE, a convolutional network that estimates pitch; prints a table and JSON lines.

    python tests/tools/measure_pitch.py [--binary target/release/margay] [--share 70,50,25] [--recover SECONDS]
        [--out results.jsonl] [-- MORE OPTIONS OF compile]

The model is `crepe_full` of `check_models.py`, which fetches it. Frames are synthetic: 1024 samples at 16 kHz of a harmonic
tone of a known frequency between 60 and 1600 Hz, with up to 20 partials of random strength and noise at 0 to 30 dB, so that
the right answer is known and no recording is needed; 768 of them calibrate, 6144 others are learned from. `within 50` is the
share of 512 further frames whose pitch is within 50 cents of that of the dense model, `right` the share within 50 cents of the
truth. Exit status 3: the package is not available here. Pitch is read as in Kim and others, *CREPE*, 2018 (arXiv 1802.06182): the mean of the bins around the largest, weighed by
salience.
"""

import numpy as np

import shares
from check_models import fetch_named
from downloads import exit_status
from evaluate import run

RATE, LENGTH = 16000, 1024
LOWEST_CENTS, BINS = 1997.3794084376191, 360


def frames(count, seed):
    """Tones of known frequencies: `[count, 1024]` of mean 0 and variance 1, and hertz."""
    random = np.random.default_rng(seed)
    hertz = np.exp(random.uniform(np.log(60), np.log(1600), count))
    seconds = np.arange(LENGTH) / RATE
    tones = np.empty((count, LENGTH), np.float32)
    for row, base in zip(tones, hertz):
        partials = np.arange(1, 1 + min(20, int(7500 // base)))
        strength = random.uniform(0.1, 1, len(partials)) * partials ** -random.uniform(0.3, 1.5)
        phase = random.uniform(0, 2 * np.pi, len(partials))
        tone = (strength[:, None] * np.sin(2 * np.pi * base * partials[:, None] * seconds + phase[:, None])).sum(0)
        tone = tone / tone.std() + random.normal(size=LENGTH) * 10 ** (-random.uniform(0, 30) / 20)
        row[:] = (tone - tone.mean()) / tone.std()
    return tones, hertz


def cents(salience):
    """The pitch of each row of `[frames, 360]`, in cents above 10 Hz."""
    bins = LOWEST_CENTS + 20 * np.arange(BINS)
    found = np.empty(len(salience))
    for i, row in enumerate(salience):
        near = slice(max(0, row.argmax() - 4), row.argmax() + 5)
        found[i] = (row[near] * bins[near]).sum() / row[near].sum()
    return found


def main():
    given = shares.arguments(__doc__, "70,50,25")
    tones, hertz = frames(512, 1)
    truth = 1200 * np.log2(hertz / 10)
    model = fetch_named("crepe_full")

    def pitches(path):
        return cents(run(str(path), {"frames": tones})["salience"])

    dense = pitches(model)

    def judge(path):
        found = pitches(path)
        return {"within 50": float((np.abs(found - dense) < 50).mean()),
                "right": float((np.abs(found - truth) < 50).mean())}

    shares.measure(given, model, {"frames": frames(768, 0)[0]}, {"frames": frames(6144, 2)[0]}, judge)


if __name__ == "__main__":
    exit_status(main)
