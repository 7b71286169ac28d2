"""Checks the command line tool end to end against onnxruntime and numpy.

    python tests/tools/check_e2e.py [--binary target/release/margay]

The folder that the variable `MARGAY_TEST_DATA` names holds the models and arrays that the other
tools of this folder make. Each check prints one line with the numbers it saw; the last line counts
them. Exit status 1: a check failed.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime

import program
from evaluate import cosine, load, mean_pool, relative_l2, run

RESULTS = []
MODELS = {"minilm_l3": ("onnx::Shape_422", 18), "minilm_l6": ("last_hidden_state", 36)}
SHAPES = ["b2_s16", "b2_s37", "b5_s16", "b5_s37"]


class Tool:
    """The command line tool and a folder for what it writes."""

    def __init__(self, binary, folder):
        self.binary = str(Path(binary).resolve())
        self.folder = Path(folder)

    def __call__(self, *words, status=0):
        done = subprocess.run(
            [self.binary, *map(str, words)], cwd=self.folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )
        if done.returncode != status:
            raise AssertionError(
                f"`margay {' '.join(map(str, words))}` ended with {done.returncode}, "
                f"expected {status}: {done.stderr.strip()[-600:]}"
            )
        return done.stdout

    def outputs(self, model, inputs):
        """What `margay run` computes."""
        np.savez(self.folder / "in.npz", **inputs)
        self("run", model, "--inputs", "in.npz", "--outputs", "out.npz")
        return load(self.folder / "out.npz")


def check(name, passed, seen):
    RESULTS.append(bool(passed))
    print(f"{'ok' if passed else 'FAILED'}: {name}: {seen}", flush=True)


def largest_difference(a, b):
    return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in b)


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def dense_outputs(tool, data):
    for model in MODELS:
        worst = 0.0
        for shape in SHAPES:
            found = tool.outputs(data / f"{model}.onnx", load(data / f"{model}_{shape}.in.npz"))
            worst = max(worst, largest_difference(found, load(data / f"{model}_{shape}.out.npz")))
        check(f"{model} dense equals onnxruntime within 1e-4", worst <= 1e-4, f"{worst:.1e}")


def several_lengths(tool, data):
    """One artifact with entries for several lengths."""
    model = data / "minilm_l3.onnx"
    tool("compile", model, "-o", "lengths.margay", "--dim", "batch_size=2",
         "--dim", "sequence_length=16,37")
    for shape in ("b2_s16", "b2_s37"):
        found = tool.outputs("lengths.margay", load(data / f"minilm_l3_{shape}.in.npz"))
        worst = largest_difference(found, load(data / f"minilm_l3_{shape}.out.npz"))
        check(f"one artifact, entry {shape}", worst <= 1e-4, f"{worst:.1e}")


def factor_shapes(module):
    """Shapes of the matrices that stand in for the weights of a site."""
    rows, columns, size = module["d_in"], module["d_out"], module.get("rank") or module["units"]
    if module["scheme"] == "interpolative":
        if rows <= columns:
            return {(rows - size, size), (size, columns)}
        return {(rows, size), (size, columns - size)}
    return {(rows, size), (size, columns)}


def sketched(tool, data, model):
    """Compiles at half the bytes of the linear weights, and checks everything said about it."""
    output, layers = MODELS[model]
    source = data / f"{model}.onnx"
    calibration = load(data / f"{model}_calibration.npz")
    evaluation = load(data / f"{model}_evaluation.npz")
    words = ["compile", source, "--calibrate", data / f"{model}_calibration.npz",
             "--budget-bytes", "50%"]
    files = {}
    for threads, number in ((1, 1), (2, 2), (2, 3)):
        made = [f"{model}.{number}.{kind}" for kind in ("margay", "toml", "onnx", "json")]
        tool(*words, "--threads", threads, "-o", made[0], "--save-plan", made[1],
             "--export", made[2], "--report", made[3])
        files[number] = [tool.folder / name for name in made]
    for i, kind in enumerate(("artifact", "plan", "export")):
        hashes = {digest(files[n][i]) for n in files}
        check(f"{model} {kind}: the same bytes with 1 and 2 threads, and again",
              len(hashes) == 1, ", ".join(sorted(hashes)))

    report = json.loads(files[1][3].read_text())
    share = report["bytes_after"] / report["bytes_before"]
    check(f"{model} keeps at most half the bytes", share <= 0.5, f"{share:.4f}")
    sketches = [m for m in report["modules"] if m["scheme"] != "dense"]
    weights = sum(2 if m["kind"] == "ffn" else 1 for m in report["modules"])
    check(f"{model} has {layers} linear weights", weights == layers,
          f"{weights}, in {len(sketches)} sketched sites of {len(report['modules'])}")

    # The reported error, measured again.
    rows = report["held_out_rows"]
    held_out = {name: array[rows] for name, array in calibration.items()}
    dense, exported = str(source), str(files[1][2])
    reference, found = run(dense, held_out), run(exported, held_out)
    floats = [n for n in reference if reference[n].dtype.kind == "f"]
    mask = held_out.get("attention_mask")
    # Padding does not count.
    marks = lambda a: mask is not None and a.shape[:2] == mask.shape
    counted = lambda a: a[mask != 0] if marks(a) else a
    flat = lambda arrays: np.concatenate([counted(arrays[n]).astype(np.float64).ravel() for n in floats])
    measured = relative_l2(flat(reference), flat(found))
    said = report["held_out"]["relative_l2"]
    check(f"{model} held-out error is what numpy measures, within 1%",
          abs(measured - said) <= 0.01 * measured, f"said {said:.5f}, measured {measured:.5f}")

    # The export in onnxruntime, at a length that nothing was compiled for.
    for length in (23, 64):
        inputs = {name: array[:4, :length] for name, array in evaluation.items()}
        worst = largest_difference(tool.outputs(exported, inputs), run(exported, inputs))
        check(f"{model} export at length {length}: margay equals onnxruntime within 1e-4",
              worst <= 1e-4, f"{worst:.1e}")
    inputs = {name: array[:1, :64] for name, array in evaluation.items()}
    worst = largest_difference(tool.outputs(files[1][0].name, inputs), run(exported, inputs))
    check(f"{model} artifact equals its export in onnxruntime within 1e-4", worst <= 1e-4,
          f"{worst:.1e}")

    graph = onnx.load(exported).graph
    shapes = {tuple(t.dims) for t in graph.initializer}
    missing = [m["name"] for m in sketches if not factor_shapes(m) <= shapes]
    check(f"{model} export holds the smaller matrices of every sketched site", not missing,
          f"{len(sketches)} sites, missing {missing}")

    reference, found = run(dense, evaluation), run(exported, evaluation)
    mask = evaluation["attention_mask"]
    pooled = [mean_pool(outputs[output], mask) for outputs in (reference, found)]
    mean = float(cosine(*pooled).mean())
    plain = tool.folder / f"{model}.svd.onnx"
    tools = Path(__file__).parent
    subprocess.run([sys.executable, tools / "plain_svd.py", "--model", source, "--ratio", "0.5",
                    "--out", plain], check=True, stdout=subprocess.DEVNULL)
    base = float(cosine(pooled[0], mean_pool(run(str(plain), evaluation)[output], mask)).mean())
    bar = 0.65 if model == "minilm_l6" else base
    check(f"{model} sentence embeddings on other text: mean cosine at least {bar:.2f}",
          mean >= bar, f"{mean:.4f}, plain SVD at the same bytes {base:.4f}")


FORMS = [
    'scheme = "favor", features = 64',
    'scheme = "favor", features = 64, relative = { sines = 3, realizations = 32, gated = true }',
    'scheme = "nystrom", landmarks = 16',
    'scheme = "local", window = 16',
    'scheme = "local", window = 8, global = 1, summary = "means"',
]


def other_attention(tool, data):
    """Schemes in place of attention, with the length open: the export in onnxruntime, and an artifact for a range of lengths."""
    source = data / "minilm_l3.onnx"
    digest = json.loads(tool("inspect", source, "--json"))["hash"]
    evaluation = load(data / "minilm_l3_evaluation.npz")
    for form in FORMS:
        sites = [f'"/model/model.0/auto_model/encoder/layer.{i}/attention/self/MatMul_1" = {{ {form} }}'
                 for i in range(3)]
        (tool.folder / "forms.toml").write_text(
            f'[plan]\nversion = 1\nmodel = "{digest}"\ntarget-cpu = ""\ncost-model = ""\nseed = 0\n'
            "[modules]\n" + "\n".join(sites) + "\n")
        tool("compile", source, "--plan", "forms.toml", "-o", "forms.margay", "--export", "forms.onnx",
             "--dim", "batch_size=3", "--dim", "sequence_length=1..48")
        worst, name = 0.0, form.replace('"', "")
        for length in (1, 5, 16, 23, 48):
            inputs = {name: array[:3, :length] for name, array in evaluation.items()}
            reference = run(str(tool.folder / "forms.onnx"), inputs)
            for model in ("forms.onnx", "forms.margay"):
                worst = max(worst, largest_difference(tool.outputs(model, inputs), reference))
        check(f"{name}: artifact and export equal onnxruntime within 1e-4", worst <= 1e-4, f"{worst:.1e}")


def all_pairs(path, heads, features, width):
    """Causal linear attention by the weights of all pairs of positions, as a model of batches of open lengths."""
    value = lambda name, last: onnx.helper.make_tensor_value_info(
        name, onnx.TensorProto.FLOAT, ["batch", heads, "length", last])
    node = onnx.helper.make_node
    constants = {"one": np.int64(1), "two": np.int64([2]), "last": np.int64([3]), "rows": np.int64([1]),
                 "zero": np.float32(0), "start": np.int64(0), "epsilon": np.float32(0.5)}
    nodes = [
        node("Softplus", ["q"], ["phi_q"]), node("Softplus", ["k"], ["phi_k"]),
        node("Transpose", ["phi_k"], ["turned"], perm=[0, 1, 3, 2]),
        node("MatMul", ["phi_q", "turned"], ["products"]),
        node("Shape", ["q"], ["shape"]), node("Gather", ["shape", "two"], ["length"]),
        node("Squeeze", ["length"], ["end"]), node("Range", ["start", "end", "one"], ["keys"]),
        node("Unsqueeze", ["keys", "rows"], ["queries"]),
        node("LessOrEqual", ["keys", "queries"], ["seen"]),
        node("Where", ["seen", "products", "zero"], ["weights"]),
        node("MatMul", ["weights", "v"], ["numerator"]),
        node("ReduceSum", ["weights", "last"], ["sum"], keepdims=1),
        node("Add", ["sum", "epsilon"], ["denominator"]), node("Div", ["numerator", "denominator"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "causal", [value("q", features), value("k", features), value("v", width)],
        [value("y", width)], [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def causal_features(tool):
    """Causal linear attention: the export, in chunks, equals all pairs in onnxruntime, with an open length and with known ones."""
    source = tool.folder / "causal.onnx"
    all_pairs(source, heads=3, features=16, width=8)
    tool("export", source, "-o", "chunks.onnx")
    operators = [n.op_type for n in onnx.load(tool.folder / "chunks.onnx").graph.node]
    check("causal linear attention is exported in chunks", "CumSum" in operators and "Range" not in operators,
          f"{len(operators)} nodes")
    generator = np.random.default_rng(5)
    worst = 0.0
    for length in (1, 63, 64, 65, 200):
        draw = lambda last: generator.standard_normal((2, 3, length, last), dtype=np.float32)
        inputs = {"q": draw(16), "k": draw(16), "v": draw(8)}
        reference = run(str(source), inputs)
        others = [run(str(tool.folder / "chunks.onnx"), inputs)]
        others += [tool.outputs(model, inputs) for model in ("chunks.onnx", "causal.onnx")]
        worst = max(worst, *(largest_difference(found, reference) for found in others))
    check("causal linear attention in chunks equals all pairs in onnxruntime within 1e-5", worst <= 1e-5,
          f"{worst:.1e}")


def derivatives(tool, data, model):
    """The backward pass as ONNX, in onnxruntime, beside the derivatives that jax took."""
    arrays = load(data / f"{model}_gradients.npz")
    part = lambda prefix: {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    inputs, expected = part("input/"), part("gradient/")
    (cotangent,) = part("cotangent/").values()
    tool("differentiate", data / f"{model}.onnx", "-o", "derivatives.onnx")
    inputs["cotangent"] = cotangent
    found = run(str(tool.folder / "derivatives.onnx"), inputs)
    own = tool.outputs("derivatives.onnx", inputs)
    whole = np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in expected.values()))
    worst, apart = (0.0, ""), 0.0
    for name, reference in expected.items():
        other = found[f"gradient.{name}"]
        if other.shape != reference.shape and other.ndim == 2:
            other = other.T
        worst = max(worst, (np.linalg.norm(other.ravel() - reference.ravel()) / whole, name))
        ours = own[f"gradient.{name}"].astype(np.float64)
        apart = max(apart, np.linalg.norm(ours - found[f"gradient.{name}"]) / whole)
    check(f"{model} derivatives by {len(expected)} weights in onnxruntime equal those of jax within 1e-5",
          worst[0] <= 1e-5, f"{worst[0]:.1e} at {worst[1]}")
    check(f"{model} derivatives read back equal those in onnxruntime within 1e-5", apart <= 1e-5,
          f"{apart:.1e}")


def benches_and_comparisons(tool, data):
    model, artifact = data / "minilm_l6.onnx", "minilm_l6.1.margay"
    inputs = {n: a[:1, :64] for n, a in load(data / "minilm_l6_evaluation.npz").items()}
    np.savez(tool.folder / "in.npz", **inputs)
    bench = json.loads(tool("bench", model, artifact, "--inputs", "in.npz", "--json"))["models"]
    keys = {"path", "median_ms", "min_ms", "constant_bytes", "peak_bytes", "error"}
    complete = all(keys <= set(m) and {"relative_l2", "cosine"} <= set(m["error"]) for m in bench)
    times = ", ".join(f"{m['median_ms']:.2f} ms" for m in bench)
    check("bench reports time, bytes and error of both models", complete and len(bench) == 2, times)
    tool("compare", model, artifact, "--inputs", "in.npz", "--rtol", "1e-3", status=1)
    seen = json.loads(tool("compare", model, artifact, "--inputs", "in.npz", "--rtol", "1e-3",
                           "--json", status=1))
    check("compare ends with 1 past the tolerance, layer by layer", len(seen["layers"]) > 30,
          f"{len(seen['layers'])} layers")


def readme_samples(tool):
    """The Python lines of the README make what its first commands take."""
    root = Path(__file__).resolve().parents[2]
    blocks = (root / "README.md").read_text().split("```python\n")[1:]
    lines = "".join(block.split("```")[0] for block in blocks)
    subprocess.run([sys.executable, "-c", lines], cwd=tool.folder, check=True)
    model = root / "demo" / "model.onnx"
    seen = json.loads(tool("evaluate", model, "--data", "samples.npz", "--labels", "label", "--json"))
    samples = len(load(tool.folder / "samples.npz")["label"])
    check("README's Python lines make samples for its model", seen["samples"] == samples == 256,
          f"{seen['samples']} samples")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    program.add_binary(parser)
    binary = parser.parse_args().binary
    data = os.environ.get("MARGAY_TEST_DATA")
    if not data:
        print("skipped: no test data\n0 passed, 0 failed, 1 skipped")
        return 0
    onnxruntime.set_default_logger_severity(3)
    data = Path(data).resolve()
    calibrated = all((data / f"{m}_calibration.npz").exists() for m in MODELS)
    skipped = 0
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(binary, folder)
        parts = [lambda: readme_samples(tool), lambda: causal_features(tool), lambda: dense_outputs(tool, data),
                 lambda: several_lengths(tool, data)]
        if calibrated:
            parts += [lambda m=m: sketched(tool, data, m) for m in MODELS]
            parts.append(lambda: other_attention(tool, data))
            parts.append(lambda: benches_and_comparisons(tool, data))
        else:
            skipped = 1
            print("skipped: no calibration text")
        differentiated = [m for m in ("minilm_l6", "resnet50_small")
                          if (data / f"{m}_gradients.npz").exists()]
        parts += [lambda m=m: derivatives(tool, data, m) for m in differentiated]
        if not differentiated:
            skipped += 1
            print("skipped: no derivatives")
        for part in parts:
            try:
                part()
            except AssertionError as error:
                check("the tool does as it is told", False, error)
    failed = RESULTS.count(False)
    print(f"{RESULTS.count(True)} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
