"""What a training step changes: weights, by Muon and SGD, and their average."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distributed import ALONE


class Muon(torch.optim.Muon):
    """PyTorch's Muon, which takes matrices, for kernels: a row is an output channel."""

    def __init__(self, kernels, **settings):
        self.kernels = kernels
        views = [nn.Parameter(as_matrix(kernel.detach())) for kernel in kernels]
        super().__init__(views, **settings)

    def step(self, closure=None):
        for view, kernel in zip(self.param_groups[0]["params"], self.kernels):
            view.grad = as_matrix(kernel.grad)
        return super().step(closure)


def as_matrix(kernel):
    """A view of a kernel (out, in, k, k) as (out, in * k * k), in either memory format."""
    return kernel.as_strided((len(kernel), kernel[0].numel()), (kernel.stride(0), 1))


class Training:
    """All that training changes: network, averaged weights, optimizers and schedules."""

    def __init__(self, net, args, steps, world=ALONE):
        self.net, self.smoothing, self.l1 = net, args.label_smoothing, args.l1
        # With equal parts of the batch, the mean of the processes' gradients is its own.
        self.forward = DistributedDataParallel(net) if world.size > 1 else net
        average = get_ema_multi_avg_fn(1 - 1 / max(1, args.ema * steps))
        self.ema = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
        # Kernels that mix channels, but for the last, which gives the logits: Muon.
        mixing = [w for w in net.parameters() if w.ndim == 4 and w.shape[1] > 1]
        kernels = mixing[:-1] if args.optimizer == "muon" else []
        taken = {id(kernel) for kernel in kernels}
        rest = [w for w in net.parameters() if id(w) not in taken]
        # SGD for the rest; norms and biases, the 1-d weights, do not decay.
        groups = [
            {"params": [w for w in rest if w.ndim > 1]},
            {"params": [w for w in rest if w.ndim == 1], "weight_decay": 0},
        ]
        decay = {"weight_decay": args.weight_decay}
        self.optimizers = [
            torch.optim.SGD(groups, args.lr, 0.9, nesterov=True, **decay)
        ]
        if kernels:
            decay = {"weight_decay": args.muon_decay}
            self.optimizers.append(Muon(kernels, lr=args.muon_lr, **decay))
        # The learning rate rises for 0.3 of the steps, then falls to nothing.
        ends = {"div_factor": 10, "final_div_factor": 1000}
        self.schedulers = [
            StepLR(o, steps // args.epochs, args.gamma)
            if args.gamma
            else OneCycleLR(o, o.defaults["lr"], steps, cycle_momentum=False, **ends)
            for o in self.optimizers
        ]

    @property
    def lr(self):
        return self.schedulers[0].get_last_lr()[0]

    def step(self, images, labels, dtype):
        """One step; returns the batch's loss and the number of right answers."""
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = self.forward(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        if self.l1:
            loss = loss + self.l1 * sum(w.abs().sum() for w in self.net.parameters())
        self.net.zero_grad()
        loss.backward()
        for part in self.optimizers + self.schedulers:
            part.step()
        self.ema.update_parameters(self.net)
        return loss.detach(), (logits.argmax(1) == labels).sum()

    def state_dict(self):
        """What going on takes, besides the averaged weights, which are saved anyway."""
        parts = self.optimizers, self.schedulers
        optimizers, schedulers = (
            [part.state_dict() for part in kind] for kind in parts
        )
        state = {"optimizers": optimizers, "schedulers": schedulers}
        return {"net": self.net.state_dict(), **state}

    def load_state_dict(self, state, averaged_weights):
        self.net.load_state_dict(state["net"])
        for kind in ("optimizers", "schedulers"):
            for part, saved in zip(getattr(self, kind), state[kind], strict=True):
                part.load_state_dict(saved)
        self.ema.module.load_state_dict(averaged_weights)
        self.ema.n_averaged.fill_(self.schedulers[0].last_epoch)
