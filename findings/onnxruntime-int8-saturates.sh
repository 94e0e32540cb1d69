#!/usr/bin/env bash
# onnxruntime 1.32.0, CPUs with AVX2 and without VNNI (Intel before Ice Lake, AMD before Zen 4):
# sums of two products of 8 bits saturate at 16 bits.
#
# Expected: an 8-bit model gives the same scores on every CPU; integer sums are exact.
# Seen: quantize_static with unsigned activations and signed weights, its defaults, quantises
# to the full range of 8 bits. On CPUs without VNNI a layer is then wrong by a multiple of
# what rounding costs; quantised per channel, where each channel has weights of 127, most.
# reduce_range=True, which keeps weights to 7 bits, gives the same on every CPU. Of a CIFAR-10
# network (87.6 % of 500 images in float32) the same file had 87.6 % with VNNI and 80.4 %
# without.
#
# Where this CPU has VNNI, a Haswell is emulated if qemu-x86_64-static (Debian's
# qemu-user-static, 7.2 or newer) is in the PATH; else the run says what it could not show.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet "onnxruntime==1.32.0" "onnx==1.23.2" "numpy==2.4.6"

cat >make.py <<'END'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

generator = np.random.default_rng(0)
# Edges of grey, as first layers learn them: a kernel's weights are alike in all channels.
edges = generator.normal(0, 0.05, (64, 1, 3, 3)).astype(np.float32)
weights = np.repeat(edges, 64, axis=1)
images = generator.random((4, 64, 16, 16), np.float32)
np.save("images.npy", images)
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
    "one layer",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 64, 16, 16])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 64, 16, 16])],
    [numpy_helper.from_array(weights, "w")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.save(model, "float.onnx")


class Once(CalibrationDataReader):
    def __init__(self):
        self.left = [{"x": images}]

    def get_next(self):
        return self.left.pop() if self.left else None


for name, options in (
    ("tensor", {}),
    ("channel", {"per_channel": True}),
    ("reduced", {"per_channel": True, "reduce_range": True}),
):
    quantize_static("float.onnx", f"{name}.onnx", Once(), **options)
END

cat >run.py <<'END'
import sys

import numpy as np
import onnxruntime

images = np.load("images.npy")
for name in ("float", "tensor", "channel", "reduced"):
    session = onnxruntime.InferenceSession(f"{name}.onnx", providers=["CPUExecutionProvider"])
    np.save(f"{sys.argv[1]}-{name}.npy", session.run(None, {"x": images})[0])
END

cat >compare.py <<'END'
import sys

import numpy as np

exact = np.load("here-float.npy")
errors = {}
for name in ("tensor", "channel", "reduced"):
    wrong = np.load(f"{sys.argv[1]}-{name}.npy") - exact
    errors[name] = float(np.sqrt((wrong**2).mean()) / exact.std())
    print(f"{sys.argv[1]:8} {name:8} error {errors[name]:.2%} of the layer's deviation")
saturates = errors["channel"] > 5 * errors["reduced"]
sys.exit(saturates != (sys.argv[2] == "without"))
END
venv/bin/python make.py 2>/dev/null
venv/bin/python run.py here
if ! grep -qE "avx512_vnni|avx_vnni" /proc/cpuinfo; then
    venv/bin/python compare.py here without
    exit
fi
venv/bin/python compare.py here with
if ! command -v qemu-x86_64-static >/dev/null; then
    echo "this CPU has VNNI, and there is no qemu-x86_64-static to emulate one without"
    exit
fi
qemu-x86_64-static -cpu Haswell venv/bin/python run.py emulated 2>/dev/null
venv/bin/python compare.py emulated without
