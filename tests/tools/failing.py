"""Lists of cases that do not pass: files of lines `NAME REASON` below a comment, which may only become shorter."""

from collections import Counter


def read(path):
    """The reasons by name."""
    lines = (line.split() for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: reason for name, reason in lines}


def write(path, head, reasons):
    """Writes reasons by name below a comment."""
    path.write_text(f"# {head}\n" + "".join(f"{name} {reason}\n" for name, reason in sorted(reasons.items())))


def compare(results, listed, is_near=lambda name, reason: False):
    """Prints where results, pairs of a reason or `None` and what there is to say by name, are not what is listed, and how
    many there are of each reason. `is_near` says which may pass all the same. Returns the number of differences."""
    wrong = 0
    for name, (reason, message) in sorted(results.items()):
        if reason != listed.get(name) and not is_near(name, reason):
            wrong += 1
            print(f"FAILED: {name}: listed as {listed.get(name, 'passing')}, found {reason or 'passing'}: {message}")
    counts = Counter(reason for reason, _ in results.values() if reason)
    if counts:
        print("not passing: " + ", ".join(f"{n} {reason}" for reason, n in counts.most_common()))
    return wrong
