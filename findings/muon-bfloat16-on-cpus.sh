#!/usr/bin/env bash
# torch.optim.Muon on a CPU without units for bfloat16, as most laptops have.
#
# Expected: weights in float32 are stepped in float32.
# Seen with PyTorch 2.14.1: Newton-Schulz runs in bfloat16 whatever the weights are. With AVX2
# alone (which is asked for here by two variables; on a CPU that has no more, they change nothing)
# a step takes ten times as long and more as its products in float32.
#
# Exit status: 0 while it is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy==2.4.6"
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 "$work/venv/bin/python" - <<'END'
import statistics
import sys
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(0)
SHAPE, COUNT = (64, 576), 6
weights = [torch.nn.Parameter(torch.randn(SHAPE)) for _ in range(COUNT)]
muon = torch.optim.Muon(weights, lr=0.01)


def products():
    """What Newton-Schulz multiplies in a step, in float32."""
    for weight in weights:
        x = weight.detach() / weight.detach().norm()
        for _ in range(5):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram), x)


def milliseconds(function):
    times = []
    for _ in range(12):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[2:])


for weight in weights:
    weight.grad = torch.randn(SHAPE)
step, float32 = milliseconds(muon.step), milliseconds(products)
print(f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
print(f"Muon's step {step:.1f} ms, its products in float32 {float32:.1f} ms")
sys.exit(0 if step > 3 * float32 else 1)
END
