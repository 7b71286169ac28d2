"""Writes small models of every ONNX operator that is imported, and what onnxruntime computes of them.

    python tests/tools/make_operators.py --out tests/fixtures/operators_in_onnxruntime.npz

Every attribute is left out, given with its default, and given with another value. The members of the file
are `CASE/model`, the bytes of a model, `CASE/in/NAME` and `CASE/out/NAME`. The file is kept with the tests,
which read it; run this tool again after adding cases.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SEED = 31
RNG = np.random.default_rng(SEED)
CASES = {}


def values(*shape, low=-2.0, high=2.0, dtype=np.float32):
    return RNG.uniform(low, high, shape).astype(dtype)


def ints(*numbers):
    return np.array(numbers, dtype=np.int64)


def case(op, inputs, variants=({},), opset=17, constants=(), outputs=1, name=None):
    """A model for each set of attributes. Inputs that are `None` are left out; those whose positions are in
    `constants` are initializers."""
    for attributes in variants:
        label = ",".join(f"{k}={v}".replace(" ", "") for k, v in attributes.items())
        label = "-".join(filter(None, [op, name, f"opset{opset}" if opset != 17 else "", label]))
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
        node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
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
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(None, given)
        assert label not in CASES, label
        CASES[label] = (model.SerializeToString(), given, dict(zip([o.name for o in session.get_outputs()], found)))


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    onnxruntime.set_default_logger_severity(3)
    for family in (elementwise, windows, normalizations, products, reductions, shapes, constants, control):
        family()
    arrays = {}
    for label, (model, inputs, outputs) in CASES.items():
        arrays[f"{label}/model"] = np.frombuffer(model, dtype=np.uint8)
        arrays |= {f"{label}/in/{n}": x for n, x in inputs.items()}
        arrays |= {f"{label}/out/{n}": x for n, x in outputs.items()}
    np.savez_compressed(out, **arrays)
    print(f"{out}: {len(CASES)} cases")


if __name__ == "__main__":
    main()
