#!/usr/bin/env bash
# OpenVINO runs a network exported in float32, on a CPU with AMX or AVX512-BF16.
#
# Expected: the scores of PyTorch, to the last digits of float32, on every CPU.
# Seen with OpenVINO 2026.4.1 on an Intel Xeon with AMX: compile_model chooses bfloat16 without a word,
# so that a file gives other scores on another CPU. With INFERENCE_PRECISION_HINT "f32" they are
# PyTorch's. On a CPU without such units float32 is chosen: the script then says so and ends with 0.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "openvino==2026.4.1" "torch==2.14.1" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import sys

import openvino
import torch
from torch import nn

print(f"OpenVINO {openvino.__version__}, PyTorch {torch.__version__}")
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(25088, 10)
).eval()
images = torch.randn(8, 3, 32, 32)
with torch.no_grad():
    scores = net(images).numpy()
model = openvino.convert_model(net, example_input=images)
core = openvino.Core()
if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    print("no units for bfloat16: nothing to see here")
    sys.exit(0)
errors = {}
for precision in ("left out", "f32"):
    hint = {} if precision == "left out" else {"INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(model, "CPU", hint)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    errors[precision] = abs(compiled(images.numpy())[0] - scores).max() / abs(scores).max()
    print(f"hint {precision}: computed in {chosen}, relative error {errors[precision]:.2g}")
sys.exit(0 if errors["left out"] > 1e-4 and errors["f32"] < 1e-5 else 1)
END
