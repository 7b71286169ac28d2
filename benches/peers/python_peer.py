"""onnxruntime and openvino behind the conversation that `protocol.rs` describes.

    python python_peer.py onnxruntime|openvino|openvino-bf16 MODEL THREADS INPUTS

Each runtime is used by its fastest plain interface. onnxruntime: inputs and outputs bound to memory that is allocated
once (IOBinding), one thread pool of THREADS with its default spinning, all graph optimizations. openvino: one infer
request with its tensors set once, the latency hint, one stream of THREADS threads. openvino-bf16 keeps openvino's own
choice of precision, which is bf16 on processors that have it.
"""

import json
import sys
import time
from pathlib import Path

IMPORT_BEGAN = time.perf_counter()
import numpy as np  # noqa: E402

PEER, MODEL, THREADS, INPUTS = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
if PEER == "onnxruntime":
    import onnxruntime as runtime
else:
    import openvino as runtime
IMPORT_SECONDS = time.perf_counter() - IMPORT_BEGAN


def read_inputs(folder):
    arrays = {}
    for line in (folder / "index.txt").read_text().splitlines():
        name, kind, dims, file = line.split(" ")
        dtype = {"f32": np.float32, "i64": np.int64}[kind]
        arrays[name] = np.fromfile(folder / file, dtype).reshape([int(d) for d in dims.split(",")])
    return arrays


class OnnxRuntime:
    def __init__(self, inputs):
        options = runtime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = runtime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        for name, array in inputs.items():
            self.binding.bind_ortvalue_input(name, runtime.OrtValue.ortvalue_from_numpy(array))
        for output in self.session.get_outputs():
            empty = runtime.OrtValue.ortvalue_from_shape_and_type(output.shape, np.float32)
            self.binding.bind_ortvalue_output(output.name, empty)

    def run(self):
        self.session.run_with_iobinding(self.binding)

    def outputs(self):
        return self.binding.copy_outputs_to_cpu()


class OpenVino:
    def __init__(self, inputs):
        core = runtime.Core()
        settings = {"INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if PEER == "openvino":
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        compiled = core.compile_model(core.read_model(MODEL), "CPU", settings)
        self.request = compiled.create_infer_request()
        self.inputs = inputs
        for name, array in inputs.items():
            self.request.set_tensor(name, runtime.Tensor(array, shared_memory=True))
        self.count = len(compiled.outputs)

    def run(self):
        self.request.infer()

    def outputs(self):
        return [self.request.get_output_tensor(i).data for i in range(self.count)]


def say(value):
    print(json.dumps(value), flush=True)


def timed(peer, count):
    wall = []
    cpu = time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        peer.run()
        wall.append(time.perf_counter() - start)
    return {"wall": wall, "cpu": (time.process_time() - cpu) / max(count, 1)}


def main():
    inputs = read_inputs(INPUTS)
    began = time.perf_counter()
    peer = OnnxRuntime(inputs) if PEER == "onnxruntime" else OpenVino(inputs)
    load = time.perf_counter() - began
    say({"version": runtime.__version__.split("-")[0], "import": IMPORT_SECONDS, "load": load})
    for line in sys.stdin:
        command, argument = line.split(maxsplit=1)
        if command == "run":
            say(timed(peer, int(argument)))
        elif command == "write":
            outputs = peer.outputs()
            data = b"".join(np.ascontiguousarray(o, np.float32).tobytes() for o in outputs)
            Path(argument.strip()).write_bytes(data)
            say({"outputs": len(outputs)})
        else:
            sys.exit(f"`{line.strip()}` is no request")


if __name__ == "__main__":
    main()
