"""Runs the node cases of the package `onnx` through compiled code.

    python tests/tools/check_nodes.py [--binary target/release/margay] [--update] [NAME ...]

Every case is a model of one operator with inputs and outputs; `margay run` compiles it for the inputs, and the outputs
are compared with the tolerances of the case. `tests/fixtures/node_cases.txt` lists the cases that do not pass, each
with the class of its reason. The check fails for a case that fails and is not listed, for one that is listed with
another reason, and for one that is listed and passes (but for those with other numbers): the list may only become
shorter. `--update` writes it anew.
Names choose the cases that contain one of them, and show what margay says; the list is left out then. The last line
counts the cases.

Classes of reasons:

    type       an input or output is no tensor, or holds strings
    operator   an operator is not supported
    domain     as `operator`, of a preview domain
    run-time   an extent, axes or an attribute that a run decides
    random     numbers of a generator whose bits ONNX does not say
    function   a function of f64, which compiled code lacks
    refused    refused for another reason
    wrong      other numbers; all of them known so far round elsewhere than the reference does
    failed     a crash, or no answer within a minute
"""

import argparse
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

import failing as failing_list
import program

HEAD = "Node cases of the package `onnx` that do not pass; tests/tools/check_nodes.py says what the reasons mean."
LIST = Path(__file__).resolve().parent.parent / "fixtures" / "node_cases.txt"
SECONDS = 60
RANDOM = ("Bernoulli", "RandomNormal", "RandomUniform", "Multinomial", "Dropout")


def load_cases():
    """The cases, in the order of their names. Making them warns of overflow on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return sorted(load_model_tests(kind="node"), key=lambda case: case.name)


def array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def tensors(declared, values):
    """Arrays by name; `None` if one of them is no tensor of numbers that an `.npz` file can hold."""
    found = {}
    for port, value in zip(declared, values):
        if port.type.WhichOneof("value") != "tensor_type":
            return None
        found[port.name] = array(value)
        if found[port.name].dtype.kind not in "biufV":
            return None
    return found


def carried(x):
    """Elements of a narrow type as margay takes and gives them: a byte each, integers by value, floats by their bits."""
    name = x.dtype.name
    if name.startswith(("float8", "float4")):
        return x.view(np.uint8)
    if name in ("int4", "int2"):
        return x.astype(np.int8)
    return x.astype(np.uint8) if name in ("uint4", "uint2") else x


def reason_of(message):
    """The class of a refusal."""
    if "element type `" in message or "attribute that is no tensor of numbers" in message:
        return "type"
    if "the operator is not supported" in message:
        if "ai.onnx.preview" in message:
            return "domain"
        return "random" if any(f"`{name}" in message for name in RANDOM) else "operator"
    if "of f64, which" in message:
        return "function"
    if "training with a ratio" in message:
        return "random"
    if "computed at run time" in message or "a run decides" in message:
        return "run-time"
    return "refused"


def undefined(graph, inputs, expected):
    """Where a conversion of floating point numbers to integers has a value that they do not hold: ONNX does not say what
    becomes of it, and what the package expects depends on the processor that it runs on. `None` for anything else."""
    x = next(iter(inputs.values()), None)
    converts = all(node.op_type in ("Cast", "CastLike") for node in graph.node)
    integers = expected.dtype.name.startswith(("int", "uint"))
    if not converts or not integers or x is None or x.shape != expected.shape:
        return None
    if not x.dtype.name.startswith(("float", "bfloat")):
        return None
    limits = ml_dtypes.iinfo(expected.dtype)
    whole = np.trunc(x.astype(np.float64))
    return ~((whole >= int(limits.min)) & (whole <= int(limits.max)))


def differs(expected, found, rtol, atol, left_out=None):
    """What is different, `None` if nothing is. Elements that are `left_out` do not count."""
    if found is None:
        return "an output is missing"
    if carried(expected).dtype == found.dtype and expected.dtype != found.dtype:
        if carried(expected).dtype == np.uint8 and expected.dtype.name.startswith("float"):
            found = found.view(expected.dtype)
        else:
            expected = carried(expected)
    if found.dtype.kind == "V" and found.dtype.itemsize == expected.dtype.itemsize:
        found = found.view(expected.dtype)
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        return f"expected {expected.dtype}{expected.shape}, found {found.dtype}{found.shape}"
    if expected.dtype.kind in "fV":
        x, y = found.astype(np.float64), expected.astype(np.float64)
        same = np.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True)
    else:
        counted = ... if left_out is None else ~left_out
        same = np.array_equal(expected[counted], found[counted])
    return None if same else "other numbers"


def run_case(binary, case):
    """The class of the reason why a case does not pass, with what there is to say; `None` if it does."""
    graph = case.model.graph
    for given, wanted in case.data_sets:
        inputs, outputs = tensors(graph.input, given), tensors(graph.output, wanted)
        if inputs is None or outputs is None:
            return "type", "no tensors of numbers"
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            file.write(case.model.SerializeToString())
            file.flush()
            given = {name: carried(x) for name, x in inputs.items()}
            status, message, found = program.run(binary, file.name, given, SECONDS)
        if status is None:
            return "failed", message
        if status not in (0, 2, 3):
            return "failed", f"status {status}: {message}"
        if status != 0:
            return reason_of(message), message
        for name, expected in outputs.items():
            left_out = undefined(graph, inputs, expected)
            if why := differs(expected, found.get(name), case.rtol, case.atol, left_out):
                return "wrong", f"`{name}`: {why}"
    return None


def main():
    parser = argparse.ArgumentParser(description="Runs the node cases of the package `onnx`.")
    program.add_binary(parser)
    parser.add_argument("--update", action="store_true", help="write the list of cases that do not pass")
    parser.add_argument("names", nargs="*", metavar="NAME", help="run the cases that contain one of these")
    args = parser.parse_args()
    binary = str(Path(args.binary).resolve())
    cases = [c for c in load_cases() if not args.names or any(name in c.name for name in args.names)]
    with ThreadPoolExecutor(4) as pool:
        results = dict(zip((c.name for c in cases), pool.map(lambda c: run_case(binary, c), cases)))
    failing = {name: result for name, result in results.items() if result}
    if args.names:
        for name, (reason, message) in failing.items():
            print(f"{name}: {reason}: {message}")
        print(f"{len(results) - len(failing)} of {len(results)} cases pass")
        return 1 if failing else 0
    if args.update:
        failing_list.write(LIST, HEAD, {name: reason for name, (reason, _) in failing.items()})
    listed = failing_list.read(LIST)
    # Cases that are listed and gone pass, too. Rounding depends on the processor: other numbers here may be near enough
    # there.
    seen = {name: failing.get(name, (None, "it passes")) for name in results.keys() | listed.keys()}
    wrong = failing_list.compare(seen, listed, lambda name, reason: reason is None and listed.get(name) == "wrong")
    print(f"{len(results) - len(failing)} of {len(results)} node cases pass")
    print(f"{len(results) - len(failing)} passed, {wrong} failed, 0 skipped")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
