"""The loss of a batch, and all that a training changes: one step after another."""

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distributed import ALONE
from optim import STEPPED_EACH_BATCH, make_optimizers, make_schedules


def batch_loss(net, images, labels, smoothing):
    """The loss of a batch, a scalar, and the scores (N, classes).

    `images` are augmented, uint8 (N, 3, 32, 32); the network normalises them.
    """
    scores = net(images).float()
    loss = F.cross_entropy(scores, labels, label_smoothing=smoothing)
    return loss, scores


class Training:
    """Network, averaged weights (EMA), optimizers and schedules.

    `head` is the layer that gives the scores; `steps` are those of the whole training;
    `dtype` is what the network computes in.
    """

    def __init__(self, net, head, args, steps, dtype, world=ALONE):
        self.net, self.args, self.dtype = net, args, dtype
        # With equal parts of the batch, the mean of the processes' gradients is its own.
        self.forward = DistributedDataParallel(net) if world.size > 1 else net
        decay = 1 - 1 / max(1, args.ema * steps)
        average = get_ema_multi_avg_fn(decay)
        self.ema = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
        self.optimizers = make_optimizers(net, head, args)
        self.schedules = make_schedules(self.optimizers, args, steps)

    @property
    def lr(self):
        """The learning rate now, that of the first optimizer."""
        return self.optimizers[0].param_groups[0]["lr"]

    def start_epoch(self):
        """Set the network to training, but for layers whose weights are all frozen.

        These keep their running statistics as well.
        """
        self.net.train()
        for module in self.net.modules():
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                module.eval()

    def step(self, images, labels):
        """One step; returns the batch's loss and the number of right answers."""
        is_mixed = self.dtype != torch.float32
        with torch.autocast(images.device.type, self.dtype, enabled=is_mixed):
            smoothing = self.args.label_smoothing
            loss, scores = batch_loss(self.forward, images, labels, smoothing)
        if self.args.l1:
            size = sum(weight.abs().sum() for weight in self.net.parameters())
            loss = loss + self.args.l1 * size
        self.net.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        if self.args.schedule in STEPPED_EACH_BATCH:
            for schedule in self.schedules:
                schedule.step()
        self.ema.update_parameters(self.net)
        return loss.detach(), (scores.argmax(1) == labels).sum()

    def end_epoch(self, loss):
        """Step the schedules that go by the epoch; `loss` is what a plateau is seen in."""
        for schedule in self.schedules:
            if self.args.schedule == "step":
                schedule.step()
            elif self.args.schedule == "plateau":
                schedule.step(loss)

    def state_dict(self):
        """What going on takes, besides the averaged weights, which are saved anyway."""
        return {
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "averaged": self.ema.n_averaged.item(),
        }

    def load_state_dict(self, state, averaged_weights):
        self.net.load_state_dict(state["net"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.ema.module.load_state_dict(averaged_weights)
        self.ema.n_averaged.fill_(state["averaged"])
