"""Writes small models of every ONNX operator that is imported, and what onnxruntime computes of them.

    python tests/tools/make_operators.py --out tests/fixtures/operators_in_onnxruntime.npz

Every attribute is left out, given with its default, and given with another value. The members are `CASE/model`, the bytes of
a model, `CASE/in/NAME` and `CASE/out/NAME`, in an archive that is not compressed: the file has its bytes as the array `cases`,
so that what models and inputs of neighbouring cases have in common is stored once. The file is kept with the tests,
which read it; run this tool again after adding cases, on a processor with VNNI: without, onnxruntime saturates sums of
two products of 8-bit integers where the right operand is no constant.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

SEED = 31
RNG = np.random.default_rng(SEED)
CASES = {}


def values(*shape, low=-2.0, high=2.0, dtype=np.float32):
    return RNG.uniform(low, high, shape).astype(dtype)


def ints(*numbers):
    return np.array(numbers, dtype=np.int64)


def case(op, inputs, variants=({},), opset=17, constants=(), outputs=1, name=None, domain="", reference=False, ml=3):
    """A model for each set of attributes. Inputs that are `None` are left out; those whose positions are in
    `constants` are initializers. Outputs are those of onnxruntime, or of ONNX's own reference where that lacks the
    operator."""
    for attributes in variants:
        label = ",".join(f"{k}={v}".replace(" ", "") for k, v in attributes.items())
        label = label if len(label) < 100 else ",".join(attributes)[:40] + str(len(CASES))
        label = "-".join(filter(None, [op, name, f"opset{opset}" if opset != 17 else "", label]))
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
        node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes)
        given = {n: x for i, (n, x) in enumerate(zip(names, inputs)) if n and i not in constants}
        stored = [numpy_helper.from_array(x, n) for i, (n, x) in enumerate(zip(names, inputs))
                  if n and i in constants]
        kind = lambda x: helper.np_dtype_to_tensor_dtype(x.dtype)
        graph = helper.make_graph(
            [node], "operator",
            [helper.make_tensor_value_info(n, kind(x), x.shape) for n, x in given.items()],
            [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)],
            stored,
        )
        sets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, ml if domain == "ai.onnx.ml" else 1)] if domain else [])
        model = helper.make_model(graph, opset_imports=sets, ir_version=8 if opset < 19 else 10)
        model = onnx.shape_inference.infer_shapes(model)
        results = [f"y{i}" for i in range(outputs)]
        if reference:
            found = ReferenceEvaluator(model).run(None, given)
        else:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), exact_sums(op), providers=["CPUExecutionProvider"])
            found = session.run(results, given)
        assert label not in CASES, label
        CASES[label] = (model.SerializeToString(), given, dict(zip(results, found)))


def exact_sums(op):
    """Options with which sums of products with constants of 8 bits never saturate. One thread takes all rows of a state
    together when it quantizes them; several take parts, with ranges of their own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if op == "DequantizeLinear":
        return options  # which multiplies nothing
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def each(base, **choices):
    """`base`, and `base` with each of the choices of each attribute in turn."""
    return [dict(base)] + [{**base, k: v} for k, all in choices.items() for v in all]


def elementwise():
    square = values(3, 4)
    for op in ("Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Relu", "Round", "Sigmoid", "Sin",
               "Softplus", "Tanh"):
        case(op, [np.array([[-2.5, -1.5, -0.5, -0.0], [0.5, 1.5, 2.5, 3.0], [-7.3, 0.1, 20.0, -30.0]],
                           dtype=np.float32) if op != "Exp" else square])
    case("Log", [values(3, 4, low=0.1, high=5)])
    case("Sqrt", [values(3, 4, low=0, high=5)])
    case("Reciprocal", [values(3, 4, low=0.5, high=5)])
    case("Abs", [RNG.integers(-9, 9, (3, 4))], name="i64")
    case("Neg", [RNG.integers(-9, 9, (3, 4))], name="i64")
    case("HardSwish", [values(3, 4, low=-5, high=5)])
    case("HardSigmoid", [values(3, 4, low=-5, high=5)],
         each({}, alpha=[0.2, 0.3], beta=[0.5, 0.25]) + [{"alpha": 0.4, "beta": 0.1}])
    case("LeakyRelu", [square], each({}, alpha=[0.01, 0.3, -0.5]))
    case("Elu", [square], each({}, alpha=[1.0, 0.5]))
    case("Gelu", [square], each({}, approximate=["none", "tanh"]), opset=20)
    case("PRelu", [values(2, 3, 4), values(4)])
    case("PRelu", [values(2, 3, 4), values(3, 1)], name="channels")
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"):
        case(op, [values(3, 4), values(4, low=0.5)])
        case(op, [values(3, 1), values(1, 4, low=0.5)], name="both")
    for op in ("Max", "Min", "Sum", "Mean"):
        case(op, [values(3, 4)], name="one")
        case(op, [values(3, 4), values(4), values(3, 1)], name="three")
    whole = [RNG.integers(-9, 9, (3, 4)), np.array([3, -2, 5, -7])]
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
        case(op, whole, name="i64")
        case(op, [x.astype(np.int32) for x in whole], name="i32")
    case("Pow", [values(3, 4, low=0.1), values(4)])
    case("Pow", [values(3, 4), ints(0, 1, 2, 3)], name="whole")
    case("Pow", [np.array([[1, 2, 3, -4]]), ints(0, 1, 2, 3)], name="i64")
    tied = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=np.float32)
    for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        case(op, [tied, tied[::-1].copy()])
        case(op, [tied, np.array([1, 1, 2, 2], dtype=np.float32)], name="row")
    bits = np.array([[True, False, True, False]]), np.array([[True, True, False, False]])
    case("And", list(bits))
    case("Or", list(bits))
    case("Not", [bits[0]])
    case("Where", [bits[0], values(3, 4), values(3, 1)])
    numbers = np.array([-2.7, -1.5, -0.5, 0.0, 0.5, 1.5, 2.7, 100.4], dtype=np.float32)
    for to in ("FLOAT", "DOUBLE", "INT32", "INT64", "BOOL", "FLOAT16", "INT8"):
        case("Cast", [numbers], [{"to": getattr(TensorProto, to)}])
    case("Cast", [ints(-3, 0, 5)], [{"to": TensorProto.FLOAT}, {"to": TensorProto.BOOL}], name="i64")
    case("CastLike", [numbers, ints(1)], constants=[1])
    low, high = np.array(-0.5, dtype=np.float32), np.array(0.75, dtype=np.float32)
    for name, bounds in (("none", [None, None]), ("low", [low, None]), ("high", [None, high]), ("both", [low, high])):
        case("Clip", [square] + bounds, constants=[1, 2], name=name)
    case("Clip", [square], each({}, min=[-0.5], max=[0.75]) + [{"min": -0.5, "max": 0.75}], opset=10)
    case("Dropout", [square])
    case("Identity", [square])


def windows():
    x, kernel = values(2, 4, 7, 6), values(6, 4, 3, 2)
    bias = values(6)
    choices = dict(
        strides=[[1, 1], [2, 3]], dilations=[[1, 1], [2, 2]], pads=[[0, 0, 0, 0], [1, 0, 2, 1], [0, 2, 0, 0]],
        group=[1], kernel_shape=[[3, 2]], auto_pad=["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
    case("Conv", [x, kernel, bias], each({}, **choices), constants=[1, 2])
    case("Conv", [x, kernel], [{"strides": [2, 1], "pads": [1, 1, 0, 2], "dilations": [2, 1]}], constants=[1],
         name="no-bias")
    case("Conv", [x, values(6, 2, 3, 2)], [{"group": 2}], constants=[1])
    case("Conv", [x, values(4, 1, 3, 2)], [{"group": 4, "pads": [1, 1, 1, 1]}], constants=[1])
    for pads in ([0, 0, 1, 1], [1, 0, 0, 0]):
        case("Conv", [x, values(5, 4, 1, 1)], [{"pads": pads}, {"pads": pads, "strides": [2, 2]}], constants=[1],
             name="1x1")
    for way in ("SAME_UPPER", "SAME_LOWER"):
        case("Conv", [x, kernel], [{"auto_pad": way, "strides": [2, 3]}], constants=[1])
    case("Conv", [values(2, 3, 9), values(5, 3, 3)],
         each({}, strides=[[2]], pads=[[1, 2]], dilations=[[2]], auto_pad=["SAME_LOWER"]), constants=[1], name="1d")
    choices = dict(
        strides=[[1, 1], [2, 3]], dilations=[[1, 1], [2, 1]], pads=[[0, 0, 0, 0], [1, 0, 2, 1]],
        group=[1], output_padding=[[0, 0]], kernel_shape=[[3, 2]])
    case("ConvTranspose", [x, values(4, 5, 3, 2), values(5)], each({}, **choices), constants=[1, 2])
    case("ConvTranspose", [x, values(4, 5, 3, 2)],
         [{"strides": [2, 3], "output_padding": [1, 2]}, {"strides": [2, 2], "pads": [1, 0, 0, 1]},
          {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
          {"strides": [2, 3], "output_shape": [15, 17]}],
         constants=[1], name="no-bias")
    case("ConvTranspose", [x, values(4, 3, 3, 2)], [{"group": 2, "strides": [2, 1]}], constants=[1])
    for op, more in (("MaxPool", {}), ("AveragePool", {"count_include_pad": [0, 1]})):
        base = {"kernel_shape": [3, 2]}
        case(op, [x], each(base, strides=[[1, 1], [2, 3]], dilations=[[1, 1], [2, 2]] if op == "MaxPool" else [],
                           pads=[[0, 0, 0, 0], [1, 1, 2, 1]], ceil_mode=[0, 1],
                           auto_pad=["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"], **more), opset=17)
        # Whether a last incomplete window counts, with and without padding that it could lie in.
        for extent in (5, 7, 8):
            for kernel, stride, pads in ((2, 2, 0), (3, 2, 1), (3, 3, 1), (2, 3, 1), (4, 3, 2)):
                attributes = {"kernel_shape": [kernel], "strides": [stride], "pads": [pads, pads]}
                case(op, [values(1, 2, extent)], [{**attributes, "ceil_mode": 0}, {**attributes, "ceil_mode": 1}],
                     name=f"extent-{extent}")
        case(op, [x], [{"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], **({"count_include_pad": c} if c is not None else {})}
                       for c in ([None] if op == "MaxPool" else [None, 0, 1])], name="padded")
    case("AveragePool", [x], [{"kernel_shape": [3, 3], "auto_pad": way, "strides": [2, 2]}
                              for way in ("SAME_UPPER", "SAME_LOWER", "VALID")])
    case("MaxPool", [-1 - np.abs(x)], [{"kernel_shape": [3, 2], "pads": [1, 1, 1, 1]}], name="negative")
    case("GlobalAveragePool", [x])
    case("GlobalMaxPool", [x])


def normalizations():
    x = values(2, 4, 5, 3)
    parameters = [values(4), values(4), values(4), values(4, low=0.1, high=2)]
    case("BatchNormalization", [x] + parameters,
         each({}, epsilon=[1e-5, 0.1], momentum=[0.9, 0.5], training_mode=[0]), constants=[1, 2, 3, 4], opset=15)
    case("BatchNormalization", [values(3, 4)] + parameters, [{"epsilon": 0.3}], constants=[1, 2, 3, 4], name="2d",
         opset=15)
    x = values(4, 4, 4)
    case("LayerNormalization", [x, values(4), values(4)],
         each({}, axis=[-1, 2], epsilon=[1e-5, 0.25], stash_type=[1]), constants=[1, 2])
    case("LayerNormalization", [x, values(4, 4), values(4, 4)], [{"axis": 1}, {"axis": -2, "epsilon": 0.5}],
         constants=[1, 2], name="two-axes")
    case("LayerNormalization", [x, values(4)], [{}], constants=[1], name="no-bias")
    case("LayerNormalization", [x, values(4), values(4)], [{}, {"epsilon": 0.5}], constants=[1, 2], outputs=3,
         name="statistics")
    for op in ("Softmax", "LogSoftmax"):
        # Axes of one extent, so that the wrong one gives numbers of the same shape.
        case(op, [x], each({}, axis=[-1, 0, 1, 2, -3]))
        case(op, [x], each({}, axis=[1, 0, 2, -1]), opset=11)


def products():
    case("MatMul", [values(3, 4), values(4, 5)])
    case("MatMul", [values(2, 3, 4), values(4, 5)], name="batch")
    case("MatMul", [values(4), values(4, 5)], name="row")
    case("MatMul", [values(3, 4), values(4)], name="column")
    case("MatMul", [values(4), values(4)], name="dot")
    case("MatMul", [values(2, 1, 3, 4), values(3, 4, 5)], name="broadcast")
    case("Gemm", [values(4, 4), values(4, 4), values(4)],
         each({}, alpha=[1.0, 0.5], beta=[1.0, 0.25, 0.0], transA=[0, 1], transB=[0, 1]) +
         [{"alpha": 2.0, "beta": 3.0, "transA": 1, "transB": 1}])
    case("Gemm", [values(4, 4), values(4, 4), values(4, 1)], [{}], name="column")
    case("Gemm", [values(4, 4), values(4, 4)], each({}, alpha=[0.5], beta=[0.5]), name="no-c")


def reductions():
    x = values(3, 3, 3, low=0.1)
    for op in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
               "ReduceProd", "ReduceSum", "ReduceSumSquare"):
        attribute = op != "ReduceSum"
        y = values(3, 3, 3) if op in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMin") else x
        case(op, [y], each({}, keepdims=[1, 0]))
        for axes in ([0], [1], [-1], [0, 2], [2, 0]):
            inputs = [y] if attribute else [y, ints(*axes)]
            base = {"axes": axes} if attribute else {}
            case(op, inputs, each(base, keepdims=[1, 0]), constants=[1], name=f"axes{axes}".replace(" ", ""))
        opset = 13 if op == "ReduceSum" else 18
        case(op, [y, ints(1)], each({}, keepdims=[0], noop_with_empty_axes=[0, 1]), constants=[1], opset=opset,
             name="given")
        if op not in ("ReduceLogSum", "ReduceLogSumExp", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
            case(op, [y], each({}, noop_with_empty_axes=[0, 1]), opset=opset, name="nothing-given")
    case("ReduceMax", [RNG.integers(-9, 9, (3, 3))], [{"axes": [1]}], name="i64")
    case("ReduceSum", [RNG.integers(-9, 9, (3, 3)), ints(0)], [{}], constants=[1], name="i64")


def shapes():
    x = values(2, 3, 4)
    for name, shape in (("plain", [4, 6]), ("rest", [2, -1]), ("keep", [0, -1]), ("keep-two", [0, 0, 2, 2])):
        case("Reshape", [x, ints(*shape)], each({}, allowzero=[0]), constants=[1], name=name)
    case("Flatten", [x], each({}, axis=[1, 0, 2, 3, -1]))
    case("Transpose", [values(3, 3, 3)], each({}, perm=[[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]]))
    case("Squeeze", [values(1, 3, 1), ints(0)], constants=[1])
    case("Squeeze", [values(1, 3, 1), ints(-1)], constants=[1], name="last")
    case("Squeeze", [values(1, 3, 1)], name="all")
    case("Squeeze", [values(1, 3, 1)], each({}, axes=[[2], [0, 2]]), opset=11)
    case("Unsqueeze", [values(3, 2), ints(0, -1)], constants=[1])
    case("Unsqueeze", [values(3, 2), ints(3, 1)], constants=[1], name="unsorted")
    case("Unsqueeze", [values(3, 2)], [{"axes": [1]}, {"axes": [-1, 0]}], opset=11)
    case("Expand", [values(3, 1), ints(2, 1, 4)], constants=[1])
    case("Expand", [values(3, 4), ints(3, 1)], constants=[1], name="smaller")
    case("Tile", [values(2, 3), ints(2, 3)], constants=[1])
    case("Concat", [values(3, 3), values(3, 3)], [{"axis": a} for a in (0, 1, -1, -2)])
    case("Concat", [values(3, 3)], [{"axis": 0}], name="one")
    index = np.array([[2, 0], [-1, 1]])
    case("Gather", [values(3, 3, 3), index], each({}, axis=[0, 1, 2, -1]))
    case("Gather", [values(3, 3, 3), index.astype(np.int32)], [{"axis": 1}], name="i32")
    case("Gather", [values(3, 3), np.array(1)], [{"axis": 1}], name="one")
    pads = ints(1, 0, 2, 1)
    case("Pad", [values(3, 4), pads], each({}, mode=["constant"]), constants=[1])
    case("Pad", [values(3, 4), pads, np.array(1.5, dtype=np.float32)], constants=[1, 2], name="value")
    case("Pad", [values(3, 4), ints(-1, 1, 0, -2)], constants=[1], name="cut")
    case("Pad", [values(3, 4), ints(1, 2), None, ints(-1)], constants=[1, 3], opset=18, name="axes")
    case("Pad", [values(3, 4)], each({"pads": [1, 0, 2, 1]}, value=[0.0, 1.5], mode=["constant"]), opset=9)
    y = values(5, 6)
    for name, (starts, ends, axes, steps) in {
        "plain": ([1, 2], [4, 6], None, None),
        "negative": ([-3, 0], [-1, 5], [0, 1], None),
        "beyond": ([-9, 2], [99, 2**40], [0, 1], [1, 1]),
        "steps": ([0, 1], [5, 6], [0, 1], [2, 3]),
        "backwards": ([4, -1], [0, -99], [0, 1], [-1, -2]),
        "one-axis": ([1], [3], [-1], [1]),
        "empty": ([3], [1], [0], [1]),
    }.items():
        lists = [None if v is None else ints(*v) for v in (starts, ends, axes, steps)]
        case("Slice", [y] + lists, constants=[1, 2, 3, 4], name=name)
    case("Slice", [y], [{"starts": [1], "ends": [3]}, {"starts": [1], "ends": [-1], "axes": [1]}], opset=9)
    case("Split", [values(6, 6)], each({}, axis=[0, 1, -1]), outputs=3)
    case("Split", [values(6, 6), ints(1, 5)], each({}, axis=[0, 1]), outputs=2, constants=[1], name="given")
    case("Split", [values(7, 6)], [{"num_outputs": 3}, {"num_outputs": 3, "axis": 1}], outputs=3, opset=18)
    case("Split", [values(6, 6)], [{"split": [2, 4]}, {"split": [4, 2], "axis": 1}], outputs=2, opset=11)
    case("Shape", [x], each({}, start=[0, 1, -2], end=[2, -1]) + [{"start": 1, "end": -1}])
    case("Size", [x])
    case("ConstantOfShape", [ints(2, 3)], constants=[0])
    case("Range", [np.array(1.0, np.float32), np.array(4.5, np.float32), np.array(0.5, np.float32)],
         constants=[0, 1, 2])
    case("Range", [np.array(7), np.array(-3), np.array(-3)], constants=[0, 1, 2], name="backwards")
    case("Range", [np.array(0), np.array(7), np.array(3)], constants=[0, 1, 2], name="i64")
    case("ScatterND", [values(4, 3), np.array([[0], [2], [0]]), values(3, 3)],
         [{"reduction": "add"}], opset=16)


def graph(name, nodes, inputs, outputs, stored=()):
    """A graph inside of a node: inputs and outputs as (name, type, shape)."""
    infos = lambda ports: [helper.make_tensor_value_info(*port) for port in ports]
    return helper.make_graph(nodes, name, infos(inputs), infos(outputs), list(stored))


def control():
    f32, i64, boolean = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    node = helper.make_node
    x = values(2, 3)

    # What both branches read, one of them twice and one a constant; values of the graph around have names of its own.
    then = graph("then", [node("Mul", ["x1", "x2"], ["t"]), node("Add", ["t", "c"], ["u"])],
                 [], [("u", f32, [2, 3])], [numpy_helper.from_array(values(3), "c")])
    otherwise = graph("otherwise", [node("Sub", ["x2", "x2"], ["t"]), node("Exp", ["t"], ["v"])],
                      [], [("v", f32, [2, 3])])
    for test in (True, False):
        for known in (True, False):
            nodes = [node("If", ["x0"], ["y0"], then_branch=then, else_branch=otherwise)]
            network("If-" + ("known" if known else "given") + f"-{test}", nodes,
                    [np.array(test), x, values(2, 3)], constants=[0] if known else [])
    two = lambda op, name: graph(name, [node(op, ["x1"], ["a"]), node("Relu", ["a"], ["b"])], [],
                                 [("b", f32, [2, 3]), ("a", f32, [2, 3])])
    network("If-one-element-axis", [node("If", ["x0"], ["y0", "y1"], then_branch=two("Tanh", "then"),
                                         else_branch=two("Neg", "otherwise"))], [np.array([False]), x])
    # A choice inside of a choice, by names of the outermost graph.
    inner = graph("inner", [node("If", ["x1"], ["w"], then_branch=graph(
        "deep", [node("Neg", ["x2"], ["d"])], [], [("d", f32, [2, 3])]), else_branch=graph(
        "deeper", [node("Add", ["x2", "k"], ["e"])], [], [("e", f32, [2, 3])]))],
        [], [("w", f32, [2, 3])], [numpy_helper.from_array(values(3), "k")])
    same = graph("same", [node("Identity", ["x2"], ["s"])], [], [("s", f32, [2, 3])])
    for a, b in ((True, True), (True, False), (False, True)):
        network(f"If-nested-{a}-{b}", [node("If", ["x0"], ["y0"], then_branch=inner, else_branch=same)],
                [np.array(a), np.array(b), x])

    number, goes_on = ("i", i64, []), ("go", boolean, [])
    step = [node("Cast", ["i"], ["f"], to=f32), node("Mul", ["s", "x3"], ["m"]), node("Add", ["m", "f"], ["next"])]
    body = lambda nodes, out, rows=(): graph("body", nodes, [number, goes_on, ("s", f32, [2, 3])],
                                             [(out, boolean, []), ("next", f32, [2, 3])] + list(rows))
    always = body(step + [node("Identity", ["go"], ["more"])], "more")
    until = body(step + [node("ReduceSum", ["next"], ["all"], keepdims=0), node("Less", ["all", "limit"], ["more"])],
                 "more")
    until.initializer.append(numpy_helper.from_array(np.array(9.0, np.float32), "limit"))
    ones, grown = np.ones((2, 3), np.float32), values(2, 3, low=1.1, high=1.6)
    for trips in (0, 1, 4):
        for known in (True, False):
            network(f"Loop-{'known' if known else 'given'}-{trips}",
                    [node("Loop", ["x0", "x1", "x2"], ["y0"], body=always)],
                    [np.array(trips), np.array(True), ones, grown], constants=[0, 1] if known else [1])
    for start in (True, False):
        network(f"Loop-until-{start}", [node("Loop", ["x0", "x1", "x2"], ["y0"], body=until)],
                [np.array(50), np.array(start), ones, grown])
    network("Loop-without-trips", [node("Loop", ["", "x1", "x2"], ["y0"], body=until)],
            [None, np.array(True), ones, grown])
    network("Loop-without-condition", [node("Loop", ["x0", "", "x2"], ["y0"], body=always)],
            [np.array(3), None, ones, grown])
    rows = body(step + [node("Identity", ["go"], ["more"]), node("Relu", ["f"], ["g"])], "more",
                [("m", f32, [2, 3]), ("g", f32, [])])
    network("Loop-rows", [node("Loop", ["x0", "x1", "x2"], ["y0", "y1", "y2"], body=rows)],
            [np.array(4), np.array(True), ones, grown], constants=[0, 1])
    # A loop in a loop; the inner one runs as often as the number of the outer one says.
    inner = graph("inner", [node("Mul", ["t", "x3"], ["u"]), node("Identity", ["go2"], ["more2"])],
                  [("j", i64, []), ("go2", boolean, []), ("t", f32, [2, 3])],
                  [("more2", boolean, []), ("u", f32, [2, 3])])
    nested = body([node("Loop", ["i", "", "s"], ["n"], body=inner), node("Tanh", ["n"], ["next"]),
                   node("Identity", ["go"], ["more"])], "more")
    network("Loop-nested", [node("Loop", ["x0", "x1", "x2"], ["y0"], body=nested)],
            [np.array(4), np.array(True), ones, grown], constants=[1])

    sums = lambda row: graph("sums", [node("Add", ["s", "r"], ["t"]), node("Mul", ["t", "w"], ["n"]),
                                      node("Identity", ["n"], ["o"])],
                             [("s", f32, row), ("r", f32, row)], [("n", f32, row), ("o", f32, row)],
                             [numpy_helper.from_array(np.array(0.75, np.float32), "w")])
    start, over = values(3), values(4, 3)
    for backwards in ({}, {"scan_input_directions": [1]}, {"scan_output_directions": [1]},
                      {"scan_input_directions": [1], "scan_output_directions": [1]}, {"scan_output_axes": [1]},
                      {"scan_output_axes": [-1], "scan_output_directions": [1]}):
        label = ",".join(f"{k}={v}".replace(" ", "") for k, v in backwards.items())
        network("-".join(filter(None, ["Scan", label])),
                [node("Scan", ["x0", "x1"], ["y0", "y1"], body=sums([3]), num_scan_inputs=1, **backwards)],
                [start, over])
    for axis in (1, -1):
        network(f"Scan-axis-{axis}", [node("Scan", ["x0", "x1"], ["y0", "y1"], body=sums([4]), num_scan_inputs=1,
                                           scan_input_axes=[axis])], [values(4), over])
    pairs = graph("pairs", [node("Sub", ["a", "b"], ["c"])], [("a", f32, [3]), ("b", f32, [3])], [("c", f32, [3])])
    network("Scan-two-without-states", [node("Scan", ["x0", "x1"], ["y0"], body=pairs, num_scan_inputs=2,
                                             scan_input_axes=[0, 1])], [over, values(3, 4)])


def network(label, nodes, inputs, constants=()):
    """A model of nodes over `x0`, `x1`, …, whose results `y0`, `y1`, … are those of the last node."""
    named = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    fixed = {f"x{i}" for i in constants}
    kind = lambda x: helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes, "operator",
        [helper.make_tensor_value_info(n, kind(x), x.shape) for n, x in named.items() if n not in fixed],
        [helper.make_empty_tensor_value_info(o) for o in nodes[-1].output],
        [numpy_helper.from_array(x, n) for n, x in named.items() if n in fixed])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = {n: x for n, x in named.items() if n not in fixed}
    found = session.run(None, given)
    assert label not in CASES, label
    CASES[label] = (model, given, dict(zip([o.name for o in session.get_outputs()], found)))


def constants():
    for name, attributes in {
        "value": {"value": numpy_helper.from_array(values(2, 3))},
        "float": {"value_float": 1.25}, "int": {"value_int": -3},
        "floats": {"value_floats": [0.5, -1.5]}, "ints": {"value_ints": [3, -4, 5]},
    }.items():
        node = helper.make_node("Constant", [], ["c"], **attributes)
        kind = {"int": TensorProto.INT64, "ints": TensorProto.INT64}.get(name, TensorProto.FLOAT)
        write("Constant-" + name, [node, helper.make_node("Add", ["x0", "c"], ["y0"])], kind)
    for name, value in (("f32", np.array([1.5], dtype=np.float32)), ("i64", np.array([7], dtype=np.int64))):
        node = helper.make_node("ConstantOfShape", ["s"], ["c"], value=numpy_helper.from_array(value))
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        write("ConstantOfShape-" + name, [node, helper.make_node("Add", ["x0", "c"], ["y0"])], kind,
              [numpy_helper.from_array(ints(2, 3), "s")])


def write(label, nodes, kind, stored=()):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    x = RNG.integers(-9, 9, (1, 1)).astype(dtype)
    graph = helper.make_graph(
        nodes, "constant", [helper.make_tensor_value_info("x0", kind, x.shape)],
        [helper.make_empty_tensor_value_info("y0")], list(stored))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    CASES[label] = (model, {"x0": x}, {"y0": session.run(None, {"x0": x})[0]})


def functions():
    square, unit = values(3, 4), values(3, 4, low=-0.95, high=0.95)
    spread = np.array([[-20, -3, -1, -1e-4], [0, 1e-4, 0.3, 0.9], [1.5, 3, 8, 20]], dtype=np.float32)
    for op in ("Tan", "Softsign", "Asinh"):
        case(op, [spread])
    for op in ("Sinh", "Cosh"):
        case(op, [spread / 2])
    case("Mish", [square], opset=18)
    for op in ("Asin", "Acos", "Atanh"):
        case(op, [unit])
    for op in ("Asin", "Acos"):
        case(op, [np.array([-1, 0, 1], dtype=np.float32)], name="ends")
    case("Acosh", [np.array([1, 1.0001, 1.5, 40], dtype=np.float32)])
    case("Sign", [np.array([-2.5, 0, 3], dtype=np.float32)])
    case("Sign", [ints(-4, 0, 9)], name="i64")
    case("Selu", [square], each({}, alpha=[1.5], gamma=[2.0]))
    case("Celu", [square], each({}, alpha=[1.0, 0.5]))
    case("ThresholdedRelu", [square], each({}, alpha=[1.0, 0.5]))
    case("Shrink", [square], each({}, bias=[0.25], lambd=[1.5]) + [{"bias": 0.5, "lambd": 0.25}])
    case("Swish", [square], each({}, alpha=[1.0, 0.5]), opset=24, reference=True)
    odd = np.array([[np.nan, np.inf, -np.inf, 1.0]], dtype=np.float32)
    case("IsNaN", [odd])
    case("IsInf", [odd], each({}, detect_negative=[0], detect_positive=[0]))
    case("Xor", [np.array([[True, False, True, False]]), np.array([[True, True, False, False]])])
    case("Mod", [np.array([[7, -7, 7, -7, 6]]), ints(3, 3, -3, -3, -3)], each({}, fmod=[0, 1]))
    case("Mod", [np.array([7.5, -7.5, 7.5, -7.5], dtype=np.float32), np.array([2, 2, -2, -2], dtype=np.float32)],
         [{"fmod": 1}], name="f32")
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        case(op, [ints(12, -7, 255), ints(10, 3, -2)], opset=18)
    case("BitwiseNot", [ints(12, -7, 0)], opset=18)
    for direction in ("LEFT", "RIGHT"):
        case("BitShift", [ints(-100, 77, -1), ints(3, 2, 0)], [{"direction": direction}], opset=28, reference=True)
    case("BitwiseNot", [np.array([0, 5, 255], dtype=np.uint8)], opset=18, name="u8")
    for direction in ("LEFT", "RIGHT"):
        case("BitShift", [np.array([200, 5, 1], dtype=np.uint8), np.array([1, 2, 7], dtype=np.uint8)],
             [{"direction": direction}])
    case("Hardmax", [np.array([[1, 3, 3, 2], [5, 4, 1, 5]], dtype=np.float32)], each({}, axis=[-1, 0, 1]))
    case("Hardmax", [values(2, 3, 4)], each({}, axis=[1, 0]), opset=11)


def places():
    x = values(3, 4, 5)
    ties = np.array([[1, 3, 3, 2], [5, 4, 5, 5], [0, 0, 0, 0]], dtype=np.float32)
    for op in ("ArgMax", "ArgMin"):
        case(op, [ties], each({}, axis=[0, 1, -1], keepdims=[0, 1], select_last_index=[0, 1]))
        case(op, [x], [{"axis": 1, "keepdims": 0}], name="three-axes")
    for largest in (0, 1):
        case("TopK", [ties, ints(3)], [{"largest": largest}], constants=[1], outputs=2)
        case("TopK", [x, ints(2)], [{"largest": largest, "axis": 1, "sorted": 1}], constants=[1], outputs=2)
    case("TopK", [RNG.permutation(12).reshape(3, 4), ints(4)], constants=[1], outputs=2, name="all")
    for op in ("CumSum",):
        case(op, [x, np.array(1)], each({}, exclusive=[0, 1], reverse=[0, 1]) + [{"exclusive": 1, "reverse": 1}],
             constants=[1])
    case("CumProd", [x, np.array(1)], each({}, exclusive=[0, 1], reverse=[0, 1]) + [{"exclusive": 1, "reverse": 1}],
         constants=[1], opset=26, reference=True)
    at = np.array([[0, 1, -1], [2, 0, 1]])
    case("GatherElements", [values(3, 3), at], each({}, axis=[0, 1, -1]))
    case("GatherElements", [values(3, 3), at.astype(np.int32)], name="i32")
    case("GatherND", [x, np.array([[0, 1], [2, -1]])])
    case("GatherND", [x, np.array([[[0, 1, 2]], [[2, 3, 4]]])], name="elements")
    case("GatherND", [x, np.array([[1], [-1], [0]])], [{"batch_dims": 1}])
    for reduction in ("none", "add", "mul", "min", "max"):
        attributes = {} if reduction == "none" else {"reduction": reduction}
        rows = np.array([[0], [2]]) if reduction == "none" else np.array([[0], [2], [0]])
        case("ScatterND", [x, rows, values(len(rows), 4, 5)], [attributes], opset=18, name="rows")
        case("ScatterND", [x, np.array([[0, 1], [2, -1]]), values(2, 5)], [attributes], opset=18, name="pairs")
        spots = np.array([[0, 1, 2], [2, 0, 1]]) if reduction == "none" else np.array([[0, 1, -1], [0, 1, 1]])
        case("ScatterElements", [values(3, 3), spots, values(2, 3)],
             [attributes, {**attributes, "axis": 0 if reduction == "none" else 1}], opset=18)
    case("Scatter", [values(3, 3), np.array([[0, 2, 1]]), values(1, 3)], each({}, axis=[1]), opset=10)
    case("TensorScatter", [values(2, 1, 4, 3), values(2, 1, 2, 3), ints(1, 2)], each({}, mode=["linear"]), opset=24,
         reference=True)
    case("TensorScatter", [values(2, 1, 4, 3), values(2, 1, 2, 3), ints(1, 3)], [{"mode": "circular"}], opset=24,
         reference=True)
    case("Trilu", [values(2, 4, 4)], each({}, upper=[0, 1]))
    for k in (-1, 2):
        case("Trilu", [values(3, 4), np.array(k)], each({}, upper=[0]), constants=[1], name=f"k{k}")
    case("EyeLike", [values(3, 4)], each({}, k=[1, -1], dtype=[TensorProto.INT64, TensorProto.FLOAT]))
    case("OneHot", [ints(0, 2, -1, 5), np.array(4), np.array([0.5, 2], dtype=np.float32)], each({}, axis=[-1, 0]),
         constants=[1])
    case("Compress", [x, np.array([True, False, True])], [{"axis": 0}, {}], constants=[1])
    case("ReverseSequence", [values(4, 3, 2), ints(1, 4, 2)], each({}, batch_axis=[1], time_axis=[0]))
    case("ReverseSequence", [values(3, 4, 2), ints(1, 4, 2)], [{"batch_axis": 0, "time_axis": 1}])
    case("ArrayFeatureExtractor", [values(3, 4), ints(2, 0)], domain="ai.onnx.ml")
    y = values(2, 8, 4, 6)
    case("DepthToSpace", [y], [{"blocksize": 2}, {"blocksize": 2, "mode": "DCR"}, {"blocksize": 2, "mode": "CRD"}])
    case("SpaceToDepth", [y], [{"blocksize": 2}])
    case("SpaceToDepth", [y], [{"blocksize": 2, "mode": m} for m in ("DCR", "CRD")], opset=28, reference=True)
    case("CenterCropPad", [values(5, 4, 3), ints(3, 7, 3)], constants=[1], opset=18)
    case("CenterCropPad", [values(5, 4, 3), ints(8, 2)], [{"axes": [1, -1]}], constants=[1], opset=18)
    case("Col2Im", [values(1, 8, 12), ints(5, 6), ints(2, 2)],
         [{"strides": [1, 2]}], constants=[1, 2], opset=18)
    case("Col2Im", [values(1, 8, 9), ints(5, 6), ints(2, 2)],
         [{"strides": [2, 1], "pads": [1, 0, 2, 0], "dilations": [2, 3]}], constants=[1, 2], opset=18)


def statistics():
    x = values(2, 6, 4, 3)
    scale, bias = values(6), values(6)
    case("InstanceNormalization", [x, scale, bias], each({}, epsilon=[1e-5, 0.25]))
    case("GroupNormalization", [x, scale, bias], [{"num_groups": 2}, {"num_groups": 3, "epsilon": 0.5}], opset=21)
    case("RMSNormalization", [x, values(3)], each({}, epsilon=[1e-5, 0.25]), opset=23)
    case("RMSNormalization", [x, values(4, 3)], [{"axis": 2}], opset=23)
    case("LpNormalization", [x], each({}, axis=[-1, 1], p=[1, 2]))
    case("LRN", [x], [{"size": 3}, {"size": 5, "alpha": 0.5, "beta": 0.6, "bias": 2.0}])
    case("MeanVarianceNormalization", [x], each({}, axes=[[1, 2]]))
    case("GlobalLpPool", [x], each({}, p=[1, 2, 3]))
    mean, variance = values(6), values(6, low=0.2)
    case("BatchNormalization", [x, scale, bias, mean, variance], [{"training_mode": 1}, {"training_mode": 1, "momentum": 0.5}],
         opset=15, outputs=3, name="training")
    scores, targets = values(3, 5, 2), RNG.integers(0, 5, (3, 2))
    logs = np.log(np.exp(scores) / np.exp(scores).sum(1, keepdims=True)).astype(np.float32)
    for op, given, outputs in (("NegativeLogLikelihoodLoss", logs, 1), ("SoftmaxCrossEntropyLoss", scores, 2)):
        choices = dict(reduction=["none", "mean", "sum"], ignore_index=[int(targets[0, 0]), -1])
        case(op, [given, targets], each({}, **choices), outputs=outputs)
        case(op, [given, targets, values(5, low=0.5)], each({}, **choices), outputs=outputs, name="weights")


def attention():
    q, k, v = values(2, 4, 3, 8), values(2, 2, 5, 8), values(2, 2, 5, 6)
    given = dict(opset=23)
    case("Attention", [q, k, v], each({}, scale=[0.5], softcap=[2.0]), **given)
    case("Attention", [q, k, v, values(3, 5)], [{}, {"is_causal": 1}], name="mask", **given)
    seen = np.array([[True, False, True, True, False], [True] * 5, [False, True, False, False, True]])
    case("Attention", [q, k, v, seen], name="truth", **given)
    blind = seen.copy()
    blind[1] = False
    case("Attention", [q, k, v, blind], opset=24, reference=True, name="blind")
    case("Attention", [q, values(2, 4, 3, 8), values(2, 4, 3, 8)], [{"is_causal": 1}], name="square", **given)
    past = [values(2, 2, 4, 8), values(2, 2, 4, 6)]
    new = [values(2, 2, 3, 8), values(2, 2, 3, 6)]
    case("Attention", [q] + new + [None] + past, [{}, {"is_causal": 1}], outputs=3, name="past", **given)
    case("Attention", [values(2, 3, 32), values(2, 5, 16), values(2, 5, 12)],
         [{"q_num_heads": 4, "kv_num_heads": 2}], name="flat", **given)
    for mode in (0, 1, 2, 3):
        case("Attention", [q, k, v, values(3, 5)], [{"qk_matmul_output_mode": mode, "softcap": 3.0 if mode else 0.0}], opset=24,
             reference=True, outputs=4, name="scores")
    case("Attention", [q, k, v, None, None, None, ints(5, 4)], [{}, {"is_causal": 1}], opset=24, reference=True,
         name="filled")
    given_state = [values(2, 3, 6), values(3, 1, 4), values(3), values(2, 3, 3)]
    case("CausalConvWithState", given_state, each({}, activation=["none", "silu"]), opset=28, outputs=2, reference=True)
    case("CausalConvWithState", given_state[:2], opset=28, outputs=2, reference=True, name="plain")
    x, tables = values(2, 4, 3, 8), [values(9, 4), values(9, 4)]
    at = np.array([[0, 1, 2], [5, 8, 3]])
    case("RotaryEmbedding", [x] + tables + [at], each({}, interleaved=[1]), **given)
    case("RotaryEmbedding", [values(2, 3, 32)] + tables + [at], [{"num_heads": 4}], name="flat", **given)
    case("RotaryEmbedding", [x, values(2, 3, 2), values(2, 3, 2)], [{"rotary_embedding_dim": 4}], name="part", **given)


def learning():
    x = values(6, 4)
    ml = dict(domain="ai.onnx.ml")
    floats = lambda n: [float(v) for v in values(n)]
    case("Scaler", [x], [{"offset": floats(4), "scale": floats(4)}, {"offset": [0.5], "scale": [2.0]}], **ml)
    case("Scaler", [RNG.integers(-9, 9, (3, 4))], [{"offset": [0.5], "scale": [2.0]}], name="i64", **ml)
    case("Normalizer", [x], [{"norm": n} for n in ("MAX", "L1", "L2")], **ml)
    case("Binarizer", [x], each({}, threshold=[0.5]), **ml)
    holes = np.array([[1, np.nan, 3], [np.nan, 5, 0]], dtype=np.float32)
    case("Imputer", [holes], [{"imputed_value_floats": [7.0, 8.0, 9.0], "replaced_value_float": float("nan")},
                              {"imputed_value_floats": [7.0], "replaced_value_float": 0.0}], **ml)
    case("Imputer", [np.array([[1, -1], [-1, 4]])],
         [{"imputed_value_int64s": [7, 8], "replaced_value_int64": -1}], name="i64", **ml)
    case("FeatureVectorizer", [values(3, 2), values(3, 3)], [{"inputdimensions": [2, 3]}], **ml)
    case("OneHotEncoder", [ints(3, 5, 9, 4)], [{"cats_int64s": [3, 4, 5], "zeros": 1}], **ml)
    case("LabelEncoder", [ints(3, 5, 9, 3)],
         [{"keys_int64s": [3, 9], "values_floats": [0.5, 2.0], "default_float": -7.0},
          {"keys_int64s": [3, 9], "values_int64s": [30, 90]}], **ml)
    case("LabelEncoder", [np.array([1.5, np.nan, 2], dtype=np.float32)],
         [{"keys_floats": [1.5, float("nan")], "values_int64s": [1, 2], "default_int64": 9}], name="f32", **ml)
    weights = floats(12)
    case("LinearRegressor", [x], [{"coefficients": weights, "targets": 3, "intercepts": floats(3)}], **ml)
    for post in ("NONE", "LOGISTIC", "SOFTMAX"):
        case("LinearClassifier", [x], [{"coefficients": weights, "intercepts": floats(3), "multi_class": 1,
                                        "classlabels_ints": [4, 7, 9], "post_transform": post}], outputs=2, **ml)
    for post in ("NONE", "LOGISTIC"):
        case("LinearClassifier", [x], [{"coefficients": weights[:4], "intercepts": [0.25],
                                        "classlabels_ints": [4, 7], "post_transform": post}], outputs=2, name="two", **ml)
    for kind in ("LINEAR", "POLY", "RBF", "SIGMOID"):
        case("SVMRegressor", [x], [{"coefficients": floats(3), "kernel_params": [0.5, 0.25, 2.0], "kernel_type": kind,
                                    "n_supports": 3, "rho": [0.125], "support_vectors": weights}], **ml)
    nodes = {
        "nodes_treeids": [0, 0, 0, 0, 0, 1, 1, 1], "nodes_nodeids": [0, 1, 2, 3, 4, 0, 1, 2],
        "nodes_featureids": [0, 1, 0, 0, 0, 3, 0, 0], "nodes_values": [0.1, -0.4, 0, 0, 0, 0.2, 0, 0],
        "nodes_truenodeids": [1, 2, 0, 0, 0, 1, 0, 0], "nodes_falsenodeids": [4, 3, 0, 0, 0, 2, 0, 0],
    }
    x = np.concatenate([x, values(6, 4)])
    x[3, 0] = np.nan
    leaves = {"_treeids": [0, 0, 0, 1, 1], "_nodeids": [2, 3, 4, 1, 2], "_ids": [0, 0, 0, 0, 0]}
    for branch in ("LEQ", "LT", "GTE", "GT"):
        modes = [f"BRANCH_{branch}", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF", f"BRANCH_{branch}", "LEAF", "LEAF"]
        tree = {**nodes, "nodes_modes": modes, "nodes_missing_value_tracks_true": [1, 0, 0, 0, 0, 0, 0, 0]}
        target = {"target" + k: v for k, v in leaves.items()}
        case("TreeEnsembleRegressor", [x], [{**tree, **target, "target_weights": floats(5), "n_targets": 1}],
             name=branch, **ml)
    for join in ("AVERAGE", "MIN", "MAX"):
        case("TreeEnsembleRegressor", [x], [{**tree, **target, "target_weights": floats(5), "n_targets": 1,
                                             "aggregate_function": join, "base_values": [0.5]}], name=join, **ml)
    classes = {"class" + k: v for k, v in leaves.items()}
    one = {**tree, **classes, "classlabels_int64s": [3, 8]}
    case("TreeEnsembleClassifier", [x], [{**one, "class_weights": [0.1, 0.9, 0.2, 0.3, 0.05]}], outputs=2, name="share", **ml)
    for post in ("NONE", "LOGISTIC"):
        case("TreeEnsembleClassifier", [x], [{**one, "class_weights": [-1.0, 0.9, 0.2, -0.3, 0.5], "base_values": [0.1],
                                              "post_transform": post}], outputs=2, name="two", **ml)
    three = {**one, "class_ids": [0, 1, 2, 1, 0], "classlabels_int64s": [3, 8, 5], "class_weights": floats(5)}
    case("TreeEnsembleClassifier", [x], [{**three, "post_transform": p} for p in ("NONE", "SOFTMAX", "LOGISTIC")],
         outputs=2, name="three", **ml)
    x = values(5, 3)
    case("TreeEnsemble", [x], [{
        "n_targets": 2, "aggregate_function": 1, "post_transform": 0, "tree_roots": [0],
        "nodes_featureids": [0, 2], "nodes_splits": numpy_helper.from_array(np.array([0.1, -0.3], np.float32)),
        "nodes_modes": numpy_helper.from_array(np.array([0, 1], np.uint8)), "nodes_truenodeids": [1, 0],
        "nodes_falsenodeids": [2, 1], "nodes_trueleafs": [0, 1], "nodes_falseleafs": [1, 1],
        "leaf_targetids": [0, 1, 0], "leaf_weights": numpy_helper.from_array(np.array([1.5, -2, 4], np.float32)),
    }], reference=True, domain="ai.onnx.ml", name="v5", ml=5)


def images():
    x = values(1, 2, 4, 6)
    at_scales = lambda *s: [x, None, np.array([1, 1, *s], dtype=np.float32)]
    for mode in ("nearest", "linear", "cubic"):
        for way in ("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners", "half_pixel_symmetric"):
            case("Resize", at_scales(2.0, 1.5), [{"mode": mode, "coordinate_transformation_mode": way}], constants=[2],
                 opset=19, name="up")
        case("Resize", at_scales(0.5, 0.75), [{"mode": mode}], constants=[2], opset=18, name="down")
        case("Resize", [x, None, None, ints(1, 2, 3, 9)], [{"mode": mode}], constants=[3], opset=18, name="size")
    for nearest in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor"):
        case("Resize", at_scales(1.5, 2.0), [{"nearest_mode": nearest, "coordinate_transformation_mode": "asymmetric"}],
             constants=[2], opset=18)
    case("Resize", at_scales(2.0, 3.0), [{"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}], constants=[2],
         opset=18)
    for mode in ("linear", "cubic"):
        case("Resize", at_scales(0.5, 0.6), [{"mode": mode, "antialias": 1}], constants=[2], opset=18, reference=True)
    case("Resize", [x, None, None, ints(8, 3)], [{"axes": [2, 3], "keep_aspect_ratio_policy": p} for p in
                                                 ("not_larger", "not_smaller")], constants=[3], opset=18)
    roi = np.array([0, 0, 0.25, 0.3, 1, 1, 0.8, 1.2], dtype=np.float32)
    case("Resize", [x, roi, None, ints(1, 2, 3, 5)],
         [{"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 10.0}],
         constants=[1, 3], opset=18, name="crop")
    case("Resize", [x, np.array([1, 1, 2, 1.5], dtype=np.float32)], [{"mode": "nearest"}, {"mode": "linear"}],
         constants=[1], opset=10)
    case("Upsample", [x, np.array([1, 1, 2, 3], dtype=np.float32)], [{"mode": "nearest"}, {"mode": "linear"}],
         constants=[1], opset=9)
    case("Upsample", [x], [{"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}], opset=8)
    grid = values(1, 3, 5, 2, low=-1.4, high=1.4)
    for mode in ("linear", "nearest", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            case("GridSample", [x, grid], [{"mode": mode, "padding_mode": padding, "align_corners": c} for c in (0, 1)],
                 opset=20)
    case("GridSample", [values(1, 2, 3, 4, 5), values(1, 2, 2, 3, 3, low=-1.2, high=1.2)], [{}], opset=20, name="3d")
    case("AffineGrid", [values(2, 2, 3), ints(2, 3, 4, 5)], each({}, align_corners=[1]), constants=[1], opset=20)
    regions = np.array([[0.5, 0.2, 4.5, 3.5], [1, 1, 5, 2.5]], dtype=np.float32)
    for mode in ("avg", "max"):
        for way in ("half_pixel", "output_half_pixel"):
            case("RoiAlign", [values(2, 3, 5, 6), regions, ints(1, 0)],
                 [{"mode": mode, "coordinate_transformation_mode": way, "sampling_ratio": 2, "output_height": 2,
                   "output_width": 3, "spatial_scale": 0.75}], opset=16)
    case("Det", [values(2, 3, 3)])
    case("Det", [values(4, 4)], name="4")
    for mode in ("edge", "reflect", "wrap"):
        case("Pad", [values(3, 4), ints(1, 2, 2, 3)], [{"mode": mode}], constants=[1], opset=19)
        case("Pad", [values(3, 4), ints(1, -1, 0, 2)], [{"mode": mode}], constants=[1], opset=19, name="cut")
    y = values(1, 2, 5, 7)
    for p in (1, 2, 3):
        case("LpPool", [y], [{"kernel_shape": [2, 3], "p": p, "strides": [2, 1], "pads": [0, 1, 1, 1]}], opset=18)
        # The order is 2 where none is given.
        case("LpPool", [y], [{"kernel_shape": [2, 3], "strides": [1, p]}], opset=18)
    case("MaxPool", [y], each({"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, storage_order=[0, 1],
                              dilations=[[1, 2]]), outputs=2, name="places")
    case("MaxPool", [RNG.integers(0, 99, (1, 1, 5, 5)).astype(np.uint8)], [{"kernel_shape": [2, 2]}], name="u8")
    for op in ("MaxPool", "AveragePool"):
        case(op, [values(1, 2, 4, 5, 4)], [{"kernel_shape": [2, 3, 2], "strides": [1, 2, 2], "pads": [0, 1, 0, 1, 1, 0]}],
             name="3d")
    case("AveragePool", [values(1, 1, 7, 7)], [{"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 0],
                                                "ceil_mode": 1, "count_include_pad": 1}], opset=19, name="overhang")
    case("MaxUnpool", [values(1, 1, 2, 2), np.array([[[[1, 7], [9, 14]]]])],
         [{"kernel_shape": [2, 2], "strides": [2, 2]}])
    case("Conv", [values(2, 4, 4, 5, 3), values(6, 2, 2, 3, 1), values(6)],
         [{"group": 2, "strides": [1, 2, 1], "pads": [1, 0, 0, 0, 1, 0]}], name="3d")
    for name, image, kernel, attributes in (
            ("computed", values(2, 4, 5, 4), values(4, 3, 3, 2), {"group": 2, "strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]}),
            ("3d", values(1, 2, 3, 4, 3), values(2, 3, 2, 2, 2), {"strides": [2, 1, 2], "dilations": [1, 2, 1]})):
        case("ConvTranspose", [image, kernel, values(kernel.shape[1] * attributes.get("group", 1))], [attributes], name=name)


def quantized():
    x, scale = values(3, 4, low=-3, high=3), np.array(0.02, dtype=np.float32)
    byte = lambda *shape: RNG.integers(0, 256, shape).astype(np.uint8)
    signed = lambda *shape: RNG.integers(-128, 128, shape).astype(np.int8)
    scales = values(4, low=0.01, high=0.05)
    case("QuantizeLinear", [x, scale, np.array(100, dtype=np.uint8)])
    case("QuantizeLinear", [x, scale], name="plain")
    case("QuantizeLinear", [x, scales, signed(4)], [{"axis": 1}, {"axis": -1}], name="axis")
    case("QuantizeLinear", [x, values(3, 2, low=0.01, high=0.05), signed(3, 2)], [{"axis": 1, "block_size": 2}], opset=21,
         name="block")
    case("DequantizeLinear", [byte(3, 4), scale, np.array(100, dtype=np.uint8)])
    case("DequantizeLinear", [signed(3, 4), scales, signed(4)], [{"axis": 1}], name="axis")
    case("DequantizeLinear", [RNG.integers(-9999, 9999, (3, 4)).astype(np.int32), scale], name="i32")
    case("DequantizeLinear", [signed(3, 4), values(3, 2), signed(3, 2)], [{"axis": 1, "block_size": 2}], opset=21,
         name="block")
    case("DynamicQuantizeLinear", [x], outputs=3)
    for terms in (7, 300, 5000):
        zeros = [np.array(120, dtype=np.uint8), np.array(3, dtype=np.int8)]
        case("MatMulInteger", [byte(3, terms), signed(terms, 5)] + zeros, name=str(terms))
    case("MatMulInteger", [byte(3, 4), signed(4, 5)], name="plain")
    image, kernel = byte(1, 3, 6, 5), signed(4, 3, 3, 2)
    attributes = {"pads": [1, 0, 1, 1], "strides": [2, 1]}
    case("ConvInteger", [image, kernel.astype(np.uint8), np.array(120, dtype=np.uint8), np.array(7, dtype=np.uint8)],
         [{}, attributes])
    one, other = np.array(0.03, dtype=np.float32), np.array(0.01, dtype=np.float32)
    point = lambda v: np.array(v, dtype=np.uint8)
    case("QLinearMatMul", [byte(3, 300), one, point(120), byte(300, 5), other, point(100), np.array(1.5, dtype=np.float32), point(130)])
    case("QLinearConv", [image, one, point(120), kernel, values(4, low=0.01, high=0.03), np.zeros(4, dtype=np.int8),
                         np.array(0.5, dtype=np.float32), point(110), RNG.integers(-999, 999, 4).astype(np.int32)],
         [{}, attributes], constants=[3, 4, 5, 8])
    ms = dict(domain="com.microsoft")
    six = [byte(3, 4), one, point(120), byte(3, 4), other, point(100)]
    case("QLinearAdd", six + [np.array(0.0371, dtype=np.float32), point(125)], **ms)
    case("QLinearMul", six + [np.array(0.0371, dtype=np.float32), point(125)], **ms)
    case("QLinearSigmoid", six[:3] + [np.array(1 / 256, dtype=np.float32), point(0)], constants=[1, 2, 3, 4], **ms)
    case("QLinearLeakyRelu", six[:3] + [np.array(0.04, dtype=np.float32), point(125)], [{"alpha": 0.25}],
         constants=[1, 2, 3, 4], **ms)
    case("QLinearGlobalAveragePool", [byte(1, 3, 4, 5), one, point(120), np.array(0.02, dtype=np.float32), point(125)],
         [{"channels_last": 0}], **ms)
    case("QLinearConcat", [np.array(0.04, dtype=np.float32), point(125)] + six, [{"axis": 1}], **ms)
    case("MatMulIntegerToFloat", [byte(3, 8), signed(8, 5), one, other, point(120)], **ms)
    case("DynamicQuantizeMatMul", [values(3, 8), signed(8, 5), other], **ms)
    blocks = values(6, 2, low=0.01, high=0.05)
    case("MatMulNBits", [values(3, 32), byte(6, 2, 8), blocks.reshape(-1)], [{"K": 32, "N": 6, "bits": 4, "block_size": 16}],
         constants=[1, 2], **ms)
    case("MatMulNBits", [values(3, 32), byte(6, 2, 8), blocks.reshape(-1), byte(6)],
         [{"K": 32, "N": 6, "bits": 4, "block_size": 16}], constants=[1, 2, 3], name="points", **ms)


def fused():
    ms = dict(domain="com.microsoft")
    x, skip, scale, bias = values(2, 3, 8), values(2, 3, 8), values(8), values(8)
    case("SkipLayerNormalization", [x, skip, scale, bias], each({}, epsilon=[0.25]), **ms)
    case("SkipLayerNormalization", [x, skip, scale, bias, values(8)], name="bias", **ms)
    case("SkipSimplifiedLayerNormalization", [x, skip, scale], each({}, epsilon=[0.25]), **ms)
    case("SimplifiedLayerNormalization", [x, scale], each({}, epsilon=[0.25]))
    case("FastGelu", [x, bias], **ms)
    case("BiasGelu", [x, bias], **ms)
    case("QuickGelu", [x], each({}, alpha=[1.0]), **ms)
    case("FusedMatMul", [values(2, 4, 3), values(2, 5, 4)], [{"transA": 1, "transB": 1, "alpha": 0.5}], **ms)
    case("FusedGemm", [values(3, 4), values(4, 5), values(5)], [{"activation": "Relu"},
                                                               {"activation": "LeakyRelu", "activation_alpha": 0.25}], **ms)
    case("FusedConv", [values(1, 2, 5, 5), values(3, 2, 3, 3), values(3)],
         [{"activation": "Relu"}, {"activation": "Clip", "activation_params": [-0.5, 0.5]}], constants=[1, 2], **ms)
    words, kinds = np.array([[1, 4, 2]], dtype=np.int32), np.array([[0, 1, 1]], dtype=np.int32)
    case("EmbedLayerNormalization", [words, kinds, values(5, 8), values(4, 8), values(2, 8), scale, bias],
         each({}, epsilon=[0.25]), outputs=2, **ms)
    q, k, v = values(2, 3, 8), values(2, 4, 8), values(2, 4, 8)
    case("MultiHeadAttention", [q, k, v], [{"num_heads": 2}, {"num_heads": 2, "scale": 0.25}], **ms)
    case("MultiHeadAttention", [q, k, v, values(24)], [{"num_heads": 2}], name="bias", **ms)
    seen = np.array([[1, 1, 0, 1], [1, 1, 1, 0]], dtype=np.int32)
    case("MultiHeadAttention", [q, k, v, None, seen], [{"num_heads": 2}], name="mask", **ms)
    case("Attention", [x, values(8, 24), values(24)], [{"num_heads": 2}, {"num_heads": 2, "unidirectional": 1}],
         constants=[1, 2], name="fused", **ms)
    case("Attention", [x, values(8, 24), values(24), np.array([[1, 1, 0], [1, 1, 1]], dtype=np.int32)], [{"num_heads": 2}],
         constants=[1, 2], name="mask", **ms)
    tables = [values(9, 4), values(9, 4)]
    case("RotaryEmbedding", [values(2, 2, 3, 8), np.array([[0, 1, 2], [5, 3, 8]])] + tables, each({}, interleaved=[1]),
         name="fused", **ms)
    case("RotaryEmbedding", [values(2, 3, 16), ints(4)] + tables, name="offset", **ms)
    for equation, shapes in {
        "ij,jk->ik": [(3, 4), (4, 5)], "bij,bkj->bik": [(2, 3, 4), (2, 5, 4)], "ij->ji": [(3, 4)], "ij->": [(3, 4)],
        "ii->i": [(3, 3)], "...ij,...jk": [(2, 3, 4), (2, 4, 5)], "i,j->ij": [(3,), (4,)], "abc,cd,be->aed": [(2, 3, 4), (4, 5), (3, 6)],
        "bhid,bhjd->bhij": [(2, 2, 3, 4), (2, 2, 5, 4)], "ij,ij->ij": [(3, 4), (3, 4)],
    }.items():
        case("Einsum", [values(*s) for s in shapes], [{"equation": equation}])
    case("Einsum", [RNG.integers(-9, 9, (3, 4)), RNG.integers(-9, 9, (4, 5))], [{"equation": "ij,jk->ik"}], name="i64")
    wave = values(2, 10, 1)
    case("SwiGLU", [values(3, 4), values(3, 4)], each({}, alpha=[0.5]), opset=28, reference=True)
    case("DFT", [wave], each({}, onesided=[1], axis=[1]) + [{"inverse": 1}])
    case("DFT", [values(2, 10, 2)], each({}, inverse=[1]), name="complex", reference=True)
    case("DFT", [wave, np.array(12)], each({}, onesided=[1]), constants=[1], name="longer")
    case("DFT", [values(2, 6, 2), None, np.array(1)], [{"onesided": 1, "inverse": 1}], constants=[2], opset=20, name="half",
         reference=True)
    case("STFT", [values(1, 16, 1), np.array(4), values(8)], each({}, onesided=[0, 1]), constants=[1])
    for op in ("HannWindow", "HammingWindow", "BlackmanWindow"):
        case(op, [np.array(9)], each({}, periodic=[0, 1]), constants=[0])


def recurrent():
    x = values(4, 2, 3)
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for d, direction in ((1, "forward"), (1, "reverse"), (2, "bidirectional")):
            outputs = 3 if op == "LSTM" else 2
            base = {"hidden_size": 5, "direction": direction}
            weights = [values(d, gates * 5, 3), values(d, gates * 5, 5), values(d, 2 * gates * 5)]
            start = [values(d, 2, 5)] * (outputs - 1)
            variants = [base] + ([{**base, "linear_before_reset": 1}] if op == "GRU" else [])
            case(op, [x] + weights, variants, outputs=outputs)
            case(op, [x] + weights + [np.array([4, 2], dtype=np.int32)] + start, [base], outputs=outputs, name="lengths")
    weights = [values(1, 20, 3), values(1, 20, 5)]
    case("LSTM", [x] + weights + [None, None, None, None, values(1, 15)], [{"hidden_size": 5}], outputs=3, name="peepholes")
    case("LSTM", [x] + weights, [{"hidden_size": 5, "clip": 0.25}, {"hidden_size": 5, "input_forget": 1}], outputs=3)
    case("RNN", [x, values(1, 5, 3), values(1, 5, 5)], [{"hidden_size": 5, "activations": ["Relu"]}], outputs=2)
    case("RNN", [values(2, 4, 3), values(1, 5, 3), values(1, 5, 5)], [{"hidden_size": 5, "layout": 1}], outputs=2,
         reference=True, name="layout")


def integers_and_lstm():
    x = values(4, 2, 3)
    weight = lambda d, rows, dtype: RNG.integers(-60, 60, (d, rows, 20)).astype(np.int8) if dtype == np.int8 else \
        RNG.integers(0, 250, (d, rows, 20)).astype(np.uint8)
    for d, direction in ((1, "forward"), (1, "reverse"), (2, "bidirectional")):
        for dtype, scales, name in ((np.int8, (d,), "i8"), (np.uint8, (d,), "u8"), (np.int8, (d, 20), "columns")):
            quantization = lambda: [values(*scales, low=0.005, high=0.02), RNG.integers(0, 9, scales).astype(dtype)
                                    if name != "columns" else np.zeros(scales, dtype)]
            start = [values(d, 2, 5), values(d, 2, 5)]
            inputs = [x, weight(d, 3, dtype), weight(d, 5, dtype), values(d, 40), None, *start, None,
                      *quantization(), *quantization()]
            case("DynamicQuantizeLSTM", inputs, [{"hidden_size": 5, "direction": direction}],
                 constants=[1, 2, 3, 8, 9, 10, 11], outputs=3, name=name, domain="com.microsoft")


    # Constant matrices with a scale for all, for each column, for each row; the last two with zero points.
    for name, scales, zeros, axis in (("all", (), (), 1), ("columns", (48,), None, 1), ("rows", (40,), None, 0),
                                      ("zeros", (48,), (48,), 1)):
        inputs = [RNG.integers(-100, 100, (40, 48)).astype(np.int8), values(*scales, low=0.01, high=0.05)]
        inputs += [] if zeros is None else [RNG.integers(-20, 20, zeros).astype(np.int8)]
        case("DequantizeLinear", inputs, [{"axis": axis}], constants=[0, 1, 2], name=f"matrix_{name}")
    a = RNG.integers(0, 255, (3, 1200)).astype(np.uint8)
    for name, size in (("small", 30), ("large", 120)):
        case("MatMulInteger", [a, RNG.integers(-size, size, (1200, 20)).astype(np.int8), np.array(7, dtype=np.uint8)],
             constants=[1, 2], name=f"constant_{name}")


def products_of_integers():
    """Bytes of every kind; constants whose zero points leave bytes, and some whose do not."""
    byte = lambda *shape: RNG.integers(0, 256, shape).astype(np.uint8)
    signed = lambda *shape: RNG.integers(-128, 128, shape).astype(np.int8)
    of = {"u8": (byte, np.uint8), "i8": (signed, np.int8)}
    for left, right in (("u8", "u8"), ("u8", "i8"), ("i8", "i8"), ("i8", "u8")):
        (a, a_type), (b, b_type) = of[left], of[right]
        a_zero = np.array(17, dtype=a_type)
        for zeros, name in ((np.array(100, b_type), "one"), (b(37), "columns"), (np.array(0, b_type), "none")):
            inputs = [a(2, 5, 70), b(70, 37), a_zero, zeros]
            case("MatMulInteger", inputs, constants=[1, 3], name=f"{left}_{right}_constant_{name}")
        case("MatMulInteger", [a(2, 3, 21), b(2, 21, 6), a_zero, np.array(9, b_type)], name=f"{left}_{right}")
    images = {"conv1d": (byte(2, 3, 9), (4, 3, 3), {"pads": [1, 2]}),
              "points": (byte(1, 8, 4, 5), (6, 8, 1, 1), {}),
              "window": (byte(2, 3, 7, 6), (35, 3, 3, 2), {"pads": [1, 2, 0, 1], "strides": [2, 1]}),
              "dilated": (byte(1, 2, 9, 8), (4, 2, 2, 3), {"dilations": [2, 2], "pads": [1, 1, 1, 1]}),
              "groups": (byte(1, 4, 5, 5), (6, 2, 3, 3), {"group": 2})}
    for name, (image, shape, attributes) in images.items():
        point = np.array(130, dtype=np.uint8)
        for zero in (0, 128, 200):
            case("ConvInteger", [image, byte(*shape), point, np.array(zero, dtype=np.uint8)], [attributes],
                 constants=[1, 3], name=f"{name}_{zero}")
        scale = lambda v: np.array(v, dtype=np.float32)
        case("QLinearConv", [image, scale(0.03), point, signed(*shape), values(shape[0], low=0.01, high=0.03),
                             np.zeros(shape[0], dtype=np.int8), scale(0.9), point, RNG.integers(-999, 999, shape[0]).astype(np.int32)],
             [attributes], constants=[1, 2, 3, 4, 5, 6, 7, 8], name=name)
    case("ConvInteger", [images["window"][0], byte(4, 3, 3, 2)], [images["window"][2]], name="computed")


def maps():
    """ZipMap gives maps, which are no tensors: here the numbers stay as they are."""
    x = values(2, 3)
    node = helper.make_node("ZipMap", ["x0"], ["y0"], domain="ai.onnx.ml", classlabels_int64s=[4, 5, 6])
    graph = helper.make_graph([node], "operator", [helper.make_tensor_value_info("x0", TensorProto.FLOAT, x.shape)],
                              [helper.make_empty_tensor_value_info("y0")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
                              ir_version=8)
    CASES["ZipMap"] = (model.SerializeToString(), {"x0": x}, {"y0": x})


def decided():
    """Results of which only a run says how long they are."""
    x = np.array([[1, 0, 2], [0, 0, 3]], dtype=np.float32)
    case("NonZero", [x])
    case("NonZero", [np.array([True, False, True])], name="bool")
    case("NonZero", [np.zeros((2, 0, 3), dtype=np.int64)], name="empty")
    case("Compress", [values(3, 4), np.array([True, False, True])], [{"axis": 0}, {}], name="decided")
    scores = [np.array(v, dtype=np.float32) for v in (0.4, 0.1)]
    boxes, by_class = values(1, 12, 4, low=0.0, high=1.0), values(1, 2, 12, low=0.0, high=1.0)
    case("NonMaxSuppression", [boxes, by_class, np.array([3]), *(s.reshape(1) for s in scores)],
         each({}, center_point_box=[0, 1]))
    case("NonMaxSuppression", [boxes, by_class, np.array([5])], constants=[2], name="no_score")
    repeated = RNG.integers(0, 5, 14).astype(np.float32)
    case("Unique", [repeated], each({}, sorted=[0, 1]), outputs=4)
    case("Unique", [RNG.integers(0, 2, (6, 2)).astype(np.float32)], [{"axis": 0}, {"axis": -1}, {"axis": 0, "sorted": 0}], outputs=4,
         name="rows")
    case("TopK", [values(3, 6), ints(4)], [{"axis": 1}], outputs=2, name="decided")
    for name, bounds in (("decided", (ints(1), ints(4))), ("from_end", (ints(-3), ints(99))), ("empty", (ints(4), ints(2)))):
        case("Slice", [values(3, 6), *bounds, ints(1)], constants=[3], name=f"part_{name}")
    case("Slice", [values(3, 6), ints(0, 1), ints(2, 5)], constants=[1], name="decided_end")
    step = helper.make_graph(
        [helper.make_node("Add", ["sum", "x0"], ["next"]), helper.make_node("ReduceSum", ["next"], ["all"], keepdims=0),
         helper.make_node("Less", ["all", "limit"], ["goes"]), helper.make_node("Exp", ["number_f"], ["e"]),
         helper.make_node("Mul", ["next", "e"], ["row"])],
        "step", [helper.make_tensor_value_info("number", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                 helper.make_tensor_value_info("sum", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, [3]),
         helper.make_tensor_value_info("row", TensorProto.FLOAT, [3])])
    step.node.insert(0, helper.make_node("Cast", ["number"], ["number_f"], to=TensorProto.FLOAT))
    for limit, name in ((4.0, "some"), (-1.0, "first"), (1e9, "all")):
        stored = [numpy_helper.from_array(np.array(limit, dtype=np.float32), "limit"), numpy_helper.from_array(np.array(7), "seven"),
                  numpy_helper.from_array(np.array(True), "yes")]
        nodes = [helper.make_node("Loop", ["seven", "yes", "x0"], ["last", "rows"], body=step)]
        graph = helper.make_graph(nodes, "rows", [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [3])],
                                  [helper.make_empty_tensor_value_info(n) for n in ("last", "rows")], stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        x = np.array([0.5, 0.25, 0.125], dtype=np.float32)
        found = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(["last", "rows"], {"x0": x})
        CASES[f"Loop-decided-{name}"] = (model.SerializeToString(), {"x0": x}, dict(zip(("last", "rows"), found)))
    nodes = [helper.make_node("NonZero", ["x0"], ["at"]), helper.make_node("Transpose", ["at"], ["rows"]),
             helper.make_node("GatherND", ["x0", "rows"], ["found"]), helper.make_node("Exp", ["found"], ["y0"]),
             helper.make_node("ReduceMean", ["found"], ["y1"], keepdims=0), helper.make_node("Shape", ["found"], ["y2"]),
             helper.make_node("Softmax", ["found"], ["weights"], axis=0), helper.make_node("Concat", ["found", "weights"], ["y3"], axis=0),
             helper.make_node("ScatterND", ["x0", "rows", "weights"], ["y4"])]
    model = helper.make_graph(nodes, "found", [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [4, 5])],
                              [helper.make_empty_tensor_value_info(f"y{i}") for i in range(5)])
    model = helper.make_model(model, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    sparse = np.where(RNG.uniform(size=(4, 5)) < 0.4, values(4, 5), 0).astype(np.float32)
    outputs = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x0": sparse})
    CASES["NonZero-read"] = (model.SerializeToString(), {"x0": sparse}, {f"y{i}": y for i, y in enumerate(outputs)})


def grouped():
    ms = dict(domain="com.microsoft")
    q, k, v = values(2, 3, 64), values(2, 3, 32), values(2, 3, 32)
    base = {"num_heads": 4, "kv_num_heads": 2}
    whole = [np.array([2, 2], dtype=np.int32), np.array(3, dtype=np.int32)]
    tables = [values(9, 8), values(9, 8)]
    case("GroupQueryAttention", [q, k, v, None, None, *whole], each(base, scale=[0.25], local_window_size=[2], softcap=[1.5]),
         outputs=3, **ms)
    case("GroupQueryAttention", [q, k, v, None, None, *whole, *tables], each({**base, "do_rotary": 1}, rotary_interleaved=[1]),
         outputs=3, name="rotary", **ms)
    past = [values(2, 2, 4, 16), values(2, 2, 4, 16)]
    one = [x[:, :1] for x in (q, k, v)]
    further = [np.array([4, 4], dtype=np.int32), np.array(5, dtype=np.int32)]
    case("GroupQueryAttention", [*one, *past, *further, *tables], [{**base, "do_rotary": 1}, {**base, "local_window_size": 3}],
         outputs=3, name="cache", **ms)
    packed = np.concatenate([q, k, v], axis=2)
    case("GroupQueryAttention", [packed, None, None, None, None, *whole], [base], outputs=3, name="packed", **ms)
    byte = lambda *shape: RNG.integers(0, 255, shape).astype(np.uint8)
    number, point = lambda v: np.array(v, dtype=np.float32), lambda v: np.array(v, dtype=np.uint8)
    weights = RNG.integers(-90, 90, (8, 24)).astype(np.int8)
    case("QAttention", [byte(2, 3, 8), weights, values(24), number(0.02), number(0.01), None, point(120), np.array(0, dtype=np.int8)],
         [{"num_heads": 2}, {"num_heads": 2, "unidirectional": 1}], constants=[1, 2, 3, 4, 6, 7], **ms)
    image = [byte(1, 3, 6, 5), number(0.03), point(120), number(0.0217), point(125)]
    case("QLinearAveragePool", image, [{"kernel_shape": [2, 2]}, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1],
                                                                  "count_include_pad": 1}], constants=[1, 2, 3, 4], **ms)
    case("QLinearAveragePool", [byte(1, 6, 5, 3)] + image[1:], [{"kernel_shape": [2, 2], "channels_last": 1}], constants=[1, 2, 3, 4],
         name="channels_last", **ms)
    case("QLinearGlobalAveragePool", [byte(1, 4, 5, 3)] + image[1:], [{"channels_last": 1}], constants=[1, 2, 3, 4], **ms)
    case("QLinearSoftmax", [byte(3, 7), number(0.05), point(120), number(1 / 256), point(0)], [{"axis": -1, "opset": 13}],
         constants=[1, 2, 3, 4], **ms)
    chosen = [RNG.integers(0, 2, (3, 4)).astype(bool)]
    six = [byte(3, 4), number(0.03), point(120), byte(3, 4), number(0.01), point(100)]
    case("QLinearWhere", chosen + six + [number(0.04), point(110)], constants=[2, 3, 5, 6, 7, 8], **ms)
    # No runtime at hand has it for this processor: by the operator with channels second.
    x, kernel, bias = values(1, 6, 5, 4), values(6, 3, 2, 2), values(6)
    attributes = {"pads": [1, 0, 1, 1], "strides": [2, 1], "group": 2}
    node = helper.make_node("NhwcConv", ["x0", "x1", "x2"], ["y0"], domain="com.microsoft", **attributes)
    second = helper.make_node("Conv", ["x0", "x1", "x2"], ["y0"], **attributes)
    info = lambda name, a: helper.make_tensor_value_info(name, TensorProto.FLOAT, a.shape)

    def made(node, x, kernel):
        graph = helper.make_graph([node], "operator", [info("x0", x)], [helper.make_empty_tensor_value_info("y0")],
                                  [numpy_helper.from_array(kernel, "x1"), numpy_helper.from_array(bias, "x2")])
        sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=sets, ir_version=8)

    turned = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    expected = onnxruntime.InferenceSession(made(second, turned, np.ascontiguousarray(kernel.transpose(0, 3, 1, 2))).SerializeToString(),
                                            providers=["CPUExecutionProvider"]).run(None, {"x0": turned})[0]
    CASES["NhwcConv"] = (made(node, x, kernel).SerializeToString(), {"x0": x}, {"y0": expected.transpose(0, 2, 3, 1)})


def sequences():
    """Sequences and optionals inside of a model, whose inputs and outputs are tensors."""
    x, y = values(5, 3), values(5, 3)
    node, info = helper.make_node, helper.make_tensor_value_info
    int_of = lambda name, v: numpy_helper.from_array(np.array(v, dtype=np.int64), name)

    def made(label, nodes, outputs, stored=(), reference=False):
        graph = helper.make_graph(nodes, "sequence", [info("x0", TensorProto.FLOAT, [5, 3]), info("x1", TensorProto.FLOAT, [5, 3])],
                                  [helper.make_empty_tensor_value_info(n) for n in outputs], list(stored))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        given = {"x0": x, "x1": y}
        if reference:
            found = ReferenceEvaluator(model).run(None, given)
        else:
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            found = session.run(outputs, given)
        CASES[label] = (model.SerializeToString(), given, dict(zip(outputs, found)))

    pair = node("SequenceConstruct", ["x0", "x1"], ["s"])
    concat = lambda s, axis=0, **more: node("ConcatFromSequence", [s], ["y0"], axis=axis, **more)
    made("SequenceConstruct", [pair, concat("s")], ["y0"])
    made("ConcatFromSequence", [pair, concat("s", -1, new_axis=1)], ["y0"])
    made("SplitToSequence", [node("SplitToSequence", ["x0", "two"], ["s"], axis=0), node("SequenceAt", ["s", "last"], ["y1"]), concat("s")],
         ["y0", "y1"], [int_of("two", 2), int_of("last", -1)])
    made("SplitToSequence-each", [node("SplitToSequence", ["x0"], ["s"], axis=1, keepdims=0), node("SequenceAt", ["s", "last"], ["y1"]),
                                  node("SequenceLength", ["s"], ["y2"])], ["y1", "y2"], [int_of("last", -1)])
    made("SplitToSequence-lengths", [node("SplitToSequence", ["x0", "lengths"], ["s"], axis=0), node("SequenceAt", ["s", "one"], ["y1"])],
         ["y1"], [int_of("lengths", [1, 3, 1]), int_of("one", 1)])
    made("SequenceAt", [pair, node("SequenceAt", ["s", "one"], ["y0"])], ["y0"], [int_of("one", 1)])
    made("SequenceLength", [pair, node("SequenceLength", ["s"], ["y0"])], ["y0"])
    made("SequenceInsert", [node("SequenceEmpty", [], ["e"]), node("SequenceInsert", ["e", "x0"], ["a"]),
                            node("SequenceInsert", ["a", "x1", "zero"], ["b"]), concat("b")], ["y0"], [int_of("zero", 0)])
    made("SequenceEmpty", [node("SequenceEmpty", [], ["e"]), node("SequenceLength", ["e"], ["y0"])], ["y0"])
    made("SequenceErase", [pair, node("SequenceErase", ["s", "zero"], ["a"]), concat("a")], ["y0"], [int_of("zero", 0)])
    body = helper.make_graph([node("Add", ["a", "b"], ["sum"])], "body", [info("a", TensorProto.FLOAT, None), info("b", TensorProto.FLOAT, None)],
                             [info("sum", TensorProto.FLOAT, None)])
    made("SequenceMap", [pair, node("SequenceMap", ["s", "x1"], ["m"], body=body), concat("m")], ["y0"], reference=True)
    whole = onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, [5, 3])
    made("Optional", [node("Optional", ["x0"], ["o"]), node("OptionalGetElement", ["o"], ["y0"])], ["y0"])
    made("OptionalGetElement", [node("OptionalGetElement", ["x0"], ["y0"])], ["y0"])
    made("OptionalHasElement", [node("Optional", ["x0"], ["o"]), node("OptionalHasElement", ["o"], ["y0"])], ["y0"])
    made("OptionalHasElement-none", [node("Optional", [], ["o"], type=whole), node("OptionalHasElement", ["o"], ["y0"])], ["y0"])
    state = helper.make_tensor_sequence_value_info("before", TensorProto.FLOAT, None)
    after = helper.make_tensor_sequence_value_info("after", TensorProto.FLOAT, None)
    step = helper.make_graph(
        [node("Identity", ["go"], ["goes"]), node("Gather", ["x0", "number"], ["row"], axis=0), node("Exp", ["row"], ["power"]),
         node("SequenceInsert", ["before", "power"], ["after"])],
        "step", [info("number", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), state],
        [info("goes", TensorProto.BOOL, []), after])
    made("Loop-sequence", [node("SequenceEmpty", [], ["e"]), node("Loop", ["three", "", "e"], ["all"], body=step),
                           concat("all", 0, new_axis=1)], ["y0"], [int_of("three", 3)])


def quantized_layers():
    ms = dict(domain="com.microsoft")
    byte = lambda *shape: RNG.integers(0, 255, shape).astype(np.uint8)
    number, point = lambda v: np.array(v, dtype=np.float32), lambda v, dtype=np.uint8: np.array(v, dtype=dtype)
    signed = lambda *shape: RNG.integers(-90, 90, shape).astype(np.int8)
    a, bias = [byte(5, 8), number(0.02), point(120)], RNG.integers(-4000, 4000, 6).astype(np.int32)
    result = [number(0.03), point(118)]
    columns = [signed(8, 6), values(6, low=0.005, high=0.02), np.zeros(6, np.int8)]
    whole = [byte(6, 8), number(0.013), point(131)]
    case("QGemm", a + columns + [bias], [{}, {"alpha": 0.5}], constants=[1, 2, 3, 4, 5, 6], name="columns", **ms)
    case("QGemm", a + columns + [bias] + result, [{}], constants=[1, 2, 3, 4, 5, 6, 7, 8], name="columns-again", **ms)
    case("QGemm", a + whole + [bias] + result, [{"transB": 1}, {"transB": 1, "alpha": 1.5}], constants=[1, 2, 3, 4, 5, 6, 7, 8], **ms)
    case("QGemm", [byte(8, 5)] + a[1:] + whole + [None] + result, [{"transA": 1, "transB": 1}], constants=[1, 2, 3, 4, 5, 7, 8],
         name="transposed", **ms)
    case("QGemm", a + whole, [{"transB": 1}], constants=[1, 2, 4, 5], name="given", **ms)


def machines():
    """Support vectors that vote, with probabilities of pairs that are coupled."""
    ml = dict(domain="ai.onnx.ml", outputs=2)
    numbers = lambda count, low=-1.0, high=1.0: [float(v) for v in values(count, low=low, high=high)]
    x = values(7, 4)
    for classes, counts in ((2, [2, 1]), (3, [2, 1, 3]), (4, [1, 2, 1, 2])):
        vectors, pairs = sum(counts), classes * (classes - 1) // 2
        votes = {"classlabels_ints": [9, 4, 7, 2][:classes], "vectors_per_class": counts, "rho": numbers(pairs),
                 "coefficients": numbers((classes - 1) * vectors), "support_vectors": numbers(4 * vectors)}
        for kind in ("LINEAR", "RBF", "POLY") if classes == 3 else ("RBF",):
            kernel = {"kernel_type": kind, "kernel_params": [0.5, 0.25, 2.0]}
            shares = {"prob_a": numbers(pairs, -3.0, -1.0), "prob_b": numbers(pairs, -0.3, 0.3)}
            case("SVMClassifier", [x], [votes | kernel], name=f"{classes}-{kind}", **ml)
            case("SVMClassifier", [x], [votes | kernel | shares], name=f"{classes}-{kind}-shares", **ml)
    scores = {"kernel_type": "LINEAR", "kernel_params": [0.0, 0.0, 0.0], "classlabels_ints": [5, 3, 8], "coefficients": numbers(12), "rho": [0.25]}
    case("SVMClassifier", [x], [scores, scores | {"post_transform": "SOFTMAX"}], name="linear", **ml)
    for low in (-1.0, 0.0):
        two = {"kernel_type": "LINEAR", "kernel_params": [0.0, 0.0, 0.0], "classlabels_ints": [5, 3], "coefficients": numbers(8, low), "rho": [0.1]}
        case("SVMClassifier", [x], [two], name=f"linear-two-{low}", **ml)


def parts_in_loops():
    """Means of parts of a list, as exporters write bags of embeddings."""
    info, node = helper.make_tensor_value_info, helper.make_node
    step = helper.make_graph(
        [node("Gather", ["starts", "i"], ["from"]), node("Gather", ["ends", "i"], ["to"]),
         node("Unsqueeze", ["from", "zero"], ["a"]), node("Unsqueeze", ["to", "zero"], ["b"]),
         node("Slice", ["list", "a", "b", "zero"], ["part"]), node("Gather", ["table", "part"], ["rows"]),
         node("ReduceSum", ["rows", "zero"], ["sum"], keepdims=0), node("Identity", ["go"], ["goes"])],
        "step", [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, [])],
        [info("goes", TensorProto.BOOL, []), info("sum", TensorProto.FLOAT, None)])
    table = values(9, 3)
    graph = helper.make_graph(
        [node("Loop", ["three", "yes"], ["bags"], body=step)], "bags",
        [info("list", TensorProto.INT64, [7]), info("starts", TensorProto.INT64, [3]), info("ends", TensorProto.INT64, [3])],
        [helper.make_empty_tensor_value_info("bags")],
        [numpy_helper.from_array(v, n) for n, v in (("table", table), ("zero", ints(0)), ("three", np.array(3, np.int64)),
                                                    ("yes", np.array(True)))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    given = {"list": ints(4, 0, 8, 2, 2, 7, 1), "starts": ints(0, 2, 6), "ends": ints(2, 6, 7)}
    session = onnxruntime.InferenceSession(model.SerializeToString())
    CASES["Loop-parts"] = (model.SerializeToString(), given, {"bags": session.run(None, given)[0]})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    onnxruntime.set_default_logger_severity(3)
    for family in (elementwise, windows, normalizations, products, reductions, shapes, constants, control, functions, places,
                   statistics, attention, learning, maps, images, quantized, fused, recurrent,
                   integers_and_lstm, products_of_integers, decided, grouped, sequences, quantized_layers,
                   machines, parts_in_loops):
        family()
    arrays = {}
    for label, (model, inputs, outputs) in CASES.items():
        arrays[f"{label}/model"] = np.frombuffer(model, dtype=np.uint8)
        arrays |= {f"{label}/in/{n}": x for n, x in inputs.items()}
        arrays |= {f"{label}/out/{n}": x for n, x in outputs.items()}
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    np.savez_compressed(out, cases=np.frombuffer(archive.getvalue(), dtype=np.uint8))
    print(f"{out}: {len(CASES)} cases")


if __name__ == "__main__":
    main()
