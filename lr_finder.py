"""The learning-rate range test: losses while the rate grows, and a suggestion from them.

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
"""

import math
from itertools import count

from matplotlib.figure import Figure

from plots import save_figure
from utils import UserError

STEPS = 200
FACTORS = 1e-3, 30  # of the learning rates given, from the first step to the last


def find_lr(training, loader, path):
    """Train while all learning rates grow exponentially; save a picture of the losses.

    It ends where the loss, smoothed, is twice its lowest. Returns the suggested factor
    of the rates that were given: a tenth of that at which the loss was lowest.
    """
    rates = [optimizer.defaults["lr"] for optimizer in training.optimizers]
    training.schedules = []  # it is the ramp that sets the rates
    training.start_epoch()
    factors, losses, smooth = [], [], []
    average = 0.0
    for step, (images, labels) in zip(range(STEPS), endless(loader)):
        factors.append(FACTORS[0] * (FACTORS[1] / FACTORS[0]) ** (step / (STEPS - 1)))
        for optimizer, rate in zip(training.optimizers, rates):
            for group in optimizer.param_groups:
                group["lr"] = rate * factors[-1]
        loss, _ = training.step(images.to(training.device), labels.to(training.device))
        losses.append(loss.item())
        average = 0.95 * average + 0.05 * losses[-1]
        smooth.append(average / (1 - 0.95 ** (step + 1)))  # as if begun at the mean
        if not smooth[-1] < 2 * min(smooth):
            break
    finite = [value for value in smooth if math.isfinite(value)]
    if len(finite) < 10:
        raise UserError("the loss grew from the start: lower --lr")
    factor = factors[smooth.index(min(finite))] / 10
    plot(factors, losses, smooth, factor, rates, path)
    return factor


def endless(loader):
    """Batch after batch, epoch after epoch, each with its own order and augmentation."""
    for epoch in count(1):
        loader.sampler.epoch = epoch
        yield from loader


def plot(factors, losses, smooth, factor, rates, path):
    """Draw the loss of each step, smoothed too, over the rates of the first optimizer."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    scale = [rates[0] * value for value in factors]
    axes.semilogx(scale, losses, color="0.8", label="loss of each step")
    axes.semilogx(scale, smooth, color="C0", label="smoothed")
    label = f"suggestion: {rates[0] * factor:.2g}"
    axes.axvline(rates[0] * factor, color="C3", linestyle="--", label=label)
    axes.set(xlabel="learning rate (--lr)", ylabel="training loss")
    axes.set(
        title="Learning-rate range test", ylim=(0.9 * min(smooth), 1.6 * smooth[0])
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
