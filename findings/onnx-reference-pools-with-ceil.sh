#!/usr/bin/env bash
# Pooling with ceil_mode in the reference evaluator of ONNX, the standard's own Python runtime.
#
# Expected: what runs a model by the standard, onnxruntime and PyTorch, of which it was exported,
# give maps of one size. (GoogLeNet of torchvision pools so, with a kernel of 3, stride 1, padding 1.)
# Seen with onnx 1.23.2, onnxruntime 1.32.0 and PyTorch 2.14.1: MaxPool with ceil_mode=1, stride 1 and
# padding gives larger maps, 9x9 of 7x7 and 10x10 of 8x8 where the others give 7x7 and 8x8. Where the
# last window reaches over the edge, AveragePool of 3x3, stride 3 gives other values.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'END'
import itertools
import sys

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, PyTorch {torch.__version__}")


def run(kind, x, kernel, stride, padding):
    """What the reference evaluator and onnxruntime give."""
    node = helper.make_node(
        kind,
        ["x"],
        ["y"],
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=4 * [padding],
        ceil_mode=1,
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "pool", [value("x", TensorProto.FLOAT, x.shape)], [value("y", TensorProto.FLOAT, None)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"x": x})
    (reference,) = ReferenceEvaluator(model).run(None, {"x": x})
    return reference, theirs


wrong, agree = set(), True
for side, stride in itertools.product((7, 8), (1, 2, 3)):
    x = np.random.default_rng(0).normal(size=(1, 2, side, side)).astype(np.float32)
    for kind, padding, pool in (("MaxPool", 1, F.max_pool2d), ("AveragePool", 0, F.avg_pool2d)):
        expected = pool(torch.from_numpy(x), 3, stride, padding, ceil_mode=True).numpy()
        reference, theirs = run(kind, x, 3, stride, padding)
        agree &= theirs.shape == expected.shape and np.allclose(theirs, expected, atol=1e-5)
        if reference.shape != expected.shape or not np.allclose(reference, expected, atol=1e-5):
            wrong.add((kind, side, stride))
            case = f"{kind} 3x3, stride {stride}, padding {padding}, of {side}x{side}"
            print(f"{case}: {reference.shape[2:]}, PyTorch {expected.shape[2:]}")
print("onnxruntime and PyTorch agree:", agree)
sys.exit(not (agree and wrong == {("MaxPool", 7, 1), ("MaxPool", 8, 1), ("AveragePool", 7, 3)}))
END
