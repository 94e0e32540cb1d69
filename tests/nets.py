"""Networks of the tests' own, so that the tables of model.py can be edited freely.

Importing this adds them to ARCHS: "small", a table, and "own", a class as in a notebook.
"""

import torch.nn.functional as F
from torch import nn

from model import ARCHS, CLASSES, Arch, Row

SMALL = [
    Row("c1.conv",     8,  3, 1, 1, 1, "plain"),
    Row("c1.down",    16,  3, 2, 2, 2, "plain"),
    Row("c2.conv",    16,  3, 1, 1, 1, "residual"),
    Row("c2.down",    16,  3, 2, 2, 2, "separable"),
    Row("c3.conv",    16,  3, 1, 1, 1, "residual"),
    Row("c3.down",    24,  3, 1, 2, 1, "plain"),
    Row("c4.conv",    32,  3, 1, 1, 1, "separable"),
    Row("o.gap",       0,  0, 0, 0, 0, "gap"),
    Row("o.conv", CLASSES, 1, 1, 1, 0, "plain"),
]  # fmt: skip


class OwnNet(nn.Module):
    """As students write them: names of their own, view(), log-probabilities, a linear head."""

    def __init__(self, classes=10, norm="batch", dropout=0.05):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.shrink1 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.deep = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1), nn.ReLU()
        )
        self.shrink2 = nn.Conv2d(16, 24, 3, stride=2, padding=2, dilation=2)
        self.shrink3 = nn.Conv2d(24, 24, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(24)
        self.last = nn.Conv2d(24, 32, 3, padding=1)
        self.drop = nn.Dropout(dropout)
        self.hidden = nn.Linear(32, 32)
        self.fc = nn.Linear(32, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.stem(x)))
        x = F.relu(self.shrink1(x))
        x = x + self.deep(x)
        x = F.relu(self.shrink2(x))
        x = self.drop(F.relu(self.bn2(self.shrink3(x))))
        x = F.relu(self.last(x))
        x = F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        x = F.relu(self.hidden(x))
        return F.log_softmax(self.fc(x), dim=1)


ARCHS["small"] = Arch(SMALL, kernels="mirrored")
ARCHS["own"] = OwnNet
