"""What a training does: the loss of a batch, one step, one epoch, and the range test."""

import contextlib
import copy
import math
import pickle
import random
import warnings
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from machine import ALONE, is_out_of_memory
from optim import STEPPED_EACH_BATCH, AllOrNone, Muon, make_optimizers, make_schedules
from utils import SIDE, UserError, progress

SMALL = 3 * SIDE // 4  # the side of the images of the first epochs, by --small
STEPS = 200  # of the range test
FACTORS = 1e-3, 30  # of the learning rates given, from its first step to its last


def small_epochs(args):
    """How many epochs, the first ones, train on smaller images."""
    return round(args.small * args.epochs)


def shrink(images):
    """uint8 images (N, 3, SIDE, SIDE) made SMALL x SMALL pixels: (N, 3, SMALL, SMALL).

    They have about half of the multiply-adds: progressive learning (Tan, Le, "EfficientNetV2:
    Smaller Models and Faster Training", ICML 2021), in two stages.
    """
    from torchvision.transforms.v2 import InterpolationMode  # takes a second to load
    from torchvision.transforms.v2.functional import resize

    return resize(images, [SMALL, SMALL], InterpolationMode.BICUBIC)


def batch_loss(net, images, labels, smoothing):
    """The loss of a batch, a scalar, and the scores (N, classes).

    `images` are augmented, uint8 (N, 3, H, W); the network normalises them. `labels` are
    classes (N,), or probabilities (N, classes).
    """
    scores = net(images).float()
    loss = F.cross_entropy(scores, labels, label_smoothing=smoothing)
    return loss, scores


@torch.no_grad()
def soft_labels(teachers, images, labels):
    """The mean of the labels, as 0 and 1, and of the teachers' probabilities: (N, classes).

    Knowledge distillation (Hinton, Vinyals, Dean, 2015), at temperature 1; of several
    teachers, the mean of their probabilities.
    """
    each = [teacher(images).float().softmax(1) for teacher in teachers]
    probabilities = torch.stack(each).mean(0)
    labels = F.one_hot(labels, probabilities.shape[1])
    return (labels + probabilities) / 2


class EMA:
    """The running average of a network's weights and statistics, itself a network.

    PyTorch's AveragedModel gives the same bits, but takes eight times as long a step on a
    CPU, and copies a counter to the device each time, for which a GPU would wait. Here only
    the averaging itself is PyTorch's.
    """

    def __init__(self, net, decay):
        self.net = copy.deepcopy(net)
        self.updates = 0
        self.average = get_ema_multi_avg_fn(decay)
        # Pairs of places: the average's, and the network's.
        self.floats, self.counters = [], []
        for pair in zip(places_of(self.net), places_of(net), strict=True):
            tensors, name = pair[0]
            is_float = tensors[name].is_floating_point()
            (self.floats if is_float else self.counters).append(pair)

    @torch.no_grad()
    def update(self):
        """Average over the network's weights as they are now; the first time take them."""
        copied = self.counters if self.updates else self.counters + self.floats
        for averaged, current in tensors_at(copied):
            averaged.copy_(current)
        if self.updates:
            averaged, current = zip(*tensors_at(self.floats))
            self.average(averaged, current, None)
        self.updates += 1


def places_of(net):
    """Where the parameters and buffers of a network are, each as (dictionary, name).

    Some layers put new tensors in the place of their buffers, so that these are looked up
    each time.
    """
    places, seen = [], set()
    for kind in ("_parameters", "_buffers"):
        for module in net.modules():
            tensors = getattr(module, kind)
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    places.append((tensors, name))
    return places


def tensors_at(pairs):
    """The two tensors of each pair of places."""
    return [(one[name], other[its]) for (one, name), (other, its) in pairs]


class Training:
    """Network, averaged weights (EMA), optimizers and schedules.

    `head` is the layer that gives the scores; `steps` are those of the whole training;
    `dtype` is what the network computes in; `teachers` are the networks of --teacher.
    """

    def __init__(self, net, head, args, steps, dtype, world=ALONE, teachers=()):
        self.net, self.args, self.dtype, self.world = net, args, dtype, world
        self.teachers = teachers
        self.device = next(net.parameters()).device
        # Processes have equal parts of a batch: the mean of their gradients is the batch's.
        self.forward = net
        if world.size > 1:
            # A class of one's own may have layers that it does not use; L1 uses them all.
            may_be_unused = net.config["rows"] is None and not args.l1
            self.forward = DistributedDataParallel(
                net, find_unused_parameters=may_be_unused
            )
            # Said of 1x1 kernels, which are the same in either layout.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
        self.ema = EMA(net, decay=1 - 1 / max(1, args.ema * steps))
        self.optimizers = make_optimizers(net, head, args)
        self.schedules = make_schedules(self.optimizers, args, steps)
        # float16 holds no number under 6e-8, so that small gradients would be lost: the
        # loss is scaled up, the gradients down again. In other precisions it does nothing.
        is_scaled = dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=is_scaled)
        trained = [weight for weight in net.parameters() if weight.requires_grad]
        self.stepper = AllOrNone(self.optimizers, trained)
        self.replay = Replay(can_replay(self))
        if is_scaled:  # where the scale is too high at first, the first step is skipped
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")

    @property
    def lr(self):
        """The learning rate now, that of the first optimizer."""
        return self.optimizers[0].param_groups[0]["lr"]

    def start_epoch(self):
        """Set the network to training, but for the layers that --freeze leaves as they are.

        These keep their running statistics as well. What a class of one's own has frozen by
        itself is its own affair.
        """
        self.net.train()
        if self.args.freeze:
            for module in self.net.modules():
                tensors = [*module.parameters(), *module.buffers()]
                if tensors and not any(tensor.requires_grad for tensor in tensors):
                    module.eval()
        self.replay.check(self)

    def step(self, images, labels):
        """One step; returns the batch's loss and the number of right answers.

        Both are tensors, since to read them is to wait for the device.
        """
        loss, right = self.replay.run(self, images, labels)
        if self.args.schedule in STEPPED_EACH_BATCH:
            for schedule in self.schedules:
                schedule.step()
        return loss, right

    def update(self, images, labels):
        """What the device does in a step: gradients, weights, their average; see `step`."""
        loss, right = self.backward(images, labels)
        self.scaler.step(self.stepper)
        self.scaler.update()
        self.ema.update()
        return loss, right

    def backward(self, images, labels):
        """Leave each weight its gradient; returns what `step` does."""
        is_mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=is_mixed):
            smoothing = self.args.label_smoothing
            targets = labels
            if self.teachers:
                targets = soft_labels(self.teachers, images, labels)
            loss, scores = batch_loss(self.forward, images, targets, smoothing)
        if self.args.l1:
            size = sum(weight.abs().sum() for weight in self.net.parameters())
            loss = loss + self.args.l1 * size
        self.net.zero_grad()
        self.scaler.scale(loss).backward()
        return loss.detach(), (scores.argmax(1) == labels).sum()

    def warm_up(self, images, labels):
        """Compute a batch's gradients and forget them, so that all is compiled."""
        before = [buffer.clone() for buffer in self.net.buffers()]
        is_shared = self.forward is not self.net
        alone = self.forward.no_sync() if is_shared else contextlib.nullcontext()
        self.start_epoch()
        try:
            with alone:
                self.backward(images.to(self.device), labels.to(self.device))
        finally:
            self.net.zero_grad()
            for buffer, value in zip(self.net.buffers(), before):
                buffer.copy_(value)

    def end_epoch(self, loss):
        """Step the schedules that go by the epoch; `loss` is what the plateau watches."""
        if self.args.schedule in STEPPED_EACH_BATCH:
            return
        for schedule in self.schedules:
            if self.args.schedule == "plateau":
                schedule.step(loss)
            else:
                schedule.step()

    def state_dict(self):
        """What going on takes, besides the averaged weights, which are saved anyway."""
        return {
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "averaged": self.ema.updates,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state, averaged_weights):
        """Go back to what `state_dict` returned, and to the averaged weights of then.

        Where they do not fit, whatever PyTorch raises: from LookupError to ValueError.
        """
        self.net.load_state_dict(state["net"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            # In the layout of the weights, which may be another than on the device before.
            for weight, kept in optimizer.state.items():
                if (momentum := kept.get("momentum_buffer")) is not None:
                    kept["momentum_buffer"] = torch.empty_like(weight).copy_(momentum)
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.ema.net.load_state_dict(averaged_weights)
        self.ema.updates = state["averaged"]
        if state.get("scaler"):  # empty after a training in another precision
            self.scaler.load_state_dict(state["scaler"])


class Replay:
    """The updates of a `Training`, recorded once as a CUDA graph and then replayed.

    An update of a small network is a thousand short kernels. To launch them one by one takes
    the CPU several times as long as they run on a fast GPU; a graph launches them all at once.
    What Python decides in it is decided once for each size of images, when it is recorded. So
    it is not recorded where Python draws random numbers, counts, or puts new tensors in the
    place of others, and no longer replayed when the settings have changed.
    """

    WARM_UP = 3  # updates as usual, in which libraries and optimizers set themselves up

    def __init__(self, is_on):
        self.is_on = is_on
        self.shape, self.warmed, self.graph = None, 0, None

    def run(self, training, images, labels):
        """As `Training.update`."""
        if self.is_on and images.shape != self.shape:
            self.shape, self.warmed, self.graph = images.shape, 0, None
        if self.graph and settings_of(training) != self.settings:
            self.give_up("the settings of a step have changed")
        if not self.is_on:
            return training.update(images, labels)
        if self.warmed < self.WARM_UP:
            return self.watch(training, images, labels)
        if self.graph is None:
            self.record(training, images, labels)
        for place, value in zip(self.inputs, (images, labels), strict=True):
            place.copy_(value)
        for group, rate in self.rates:
            rate.fill_(group["lr"])
        self.graph.replay()
        training.ema.updates += 1
        return tuple(result.clone() for result in self.outputs)

    def give_up(self, reason):
        """From now on, updates are as usual."""
        self.is_on, self.graph = False, None
        print(f"note      no CUDA graph: {reason}")

    def watch(self, training, images, labels):
        """An update as usual; it decides whether the next ones may be recorded."""
        # Kept so long, or a new tensor could lie where one of these lay.
        tensors = [holder[name].detach() for holder, name in places_of(training.net)]
        before = drawn_on_cpu(), kept_in_python(training)
        results = training.update(images, labels)
        if (drawn_on_cpu(), kept_in_python(training)) != before:
            self.give_up("a step draws, counts or replaces something in Python")
        del tensors
        self.warmed += 1
        return results

    def check(self, training):
        """Give up where layers, or what they hold, are others than when it was recorded."""
        if self.graph and kept_in_python(training) != self.kept:
            self.give_up("layers, or numbers of the training, have changed")

    def record(self, training, images, labels):
        """Make the graph of an update, which does not take place yet."""
        graph = torch.cuda.CUDAGraph()
        self.inputs = images.clone(), labels.clone()
        self.settings, self.kept = settings_of(training), kept_in_python(training)
        groups, updates = weight_groups(training), training.ema.updates
        before = [dict(group) for group in groups]
        self.rates = []
        for group in groups:  # on the device: a number of Python's would stay as it is
            rate = torch.zeros((), device=images.device)
            group |= {"lr": rate, "fused": True}  # as PyTorch's SGD wants such a rate
            self.rates.append((group, rate))
        try:
            # Only this thread: the loader's copies are no part of it.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.outputs = training.update(*self.inputs)
        except RuntimeError as error:
            # To end a broken recording fails as well; and what PyTorch then does is unknown.
            cause = error.__context__ or error
            if is_out_of_memory(cause) or not isinstance(cause, Exception):
                raise cause
            reason = (str(cause) or type(cause).__name__).splitlines()[0]
            raise UserError(
                f"a step cannot be a CUDA graph ({reason}): give --cuda-graph off"
            )
        finally:
            training.ema.updates = updates
            for group, values in zip(groups, before, strict=True):
                group.clear()
                group.update(values)
        self.graph = graph


def can_replay(training):
    """Whether the updates of a `Training` may be recorded as a CUDA graph.

    Tables and other nn.Sequential may; any other class may decide anew in each pass. float16
    has to read from the device whether to skip an update.
    """
    args = training.args
    return (
        args.cuda_graph == "auto"
        and training.device.type == "cuda"
        and training.world.size == 1
        and isinstance(training.net.body, torch.nn.Sequential)
        and not training.scaler.is_enabled()
        and not args.deterministic
        and all(isinstance(one, (torch.optim.SGD, Muon)) for one in training.optimizers)
    )


def weight_groups(training):
    """The groups of weights of all optimizers of a `Training`."""
    return [group for one in training.optimizers for group in one.param_groups]


def settings_of(training):
    """The options, and what the optimizers go by except for the rates and the weights."""
    groups = []
    for group in weight_groups(training):
        groups.append({key: group[key] for key in group.keys() - {"lr", "params"}})
    return dict(vars(training.args)), groups


def kept_in_python(training):
    """Numbers of a training and its layers; where tensors lie, and whether they are trained."""
    numbers = []
    for one in (training, *training.net.modules()):
        kept = vars(one).items()
        numbers.append(
            {key: value for key, value in kept if isinstance(value, (int, float))}
        )
    tensors = [holder[name] for holder, name in places_of(training.net)]
    return numbers, [(tensor.data_ptr(), tensor.requires_grad) for tensor in tensors]


def drawn_on_cpu():
    """The states of the global generators on the CPU, which change with each draw."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()
    return pickle.dumps(states)


def train_one_epoch(training, loader, epoch):
    """One pass over the batches; returns the metrics on the augmented images.

    They are read off the device at the end, so that it need not wait in between, and are
    those of all processes. Raises UserError where a loss was not finite.
    """
    device, world = training.device, training.world
    training.start_epoch()
    loader.sampler.epoch = epoch
    batches = progress(loader, f"epoch {epoch}")
    losses, rates, right, seen = [], [], 0, 0
    is_pinned = loader.pin_memory  # else the copy has to be waited for
    is_small = epoch <= small_epochs(training.args)
    for number, (images, labels) in enumerate(batches, 1):
        images = images.to(device, non_blocking=is_pinned)
        labels = labels.to(device, non_blocking=is_pinned)
        if is_small:  # there: what it would make of a pinned batch is not pinned
            images = shrink(images)
        rates.append(training.lr)
        loss, right_here = training.step(images, labels)
        losses.append(loss)
        right = right + right_here
        seen = seen + len(labels)
        if number % 50 == 0 and not batches.disable:
            accuracy = f"accuracy {right.item() / seen:.1%}, lr {rates[-1]:.4f}"
            batches.set_postfix_str(f"loss {loss.item():.3f}, {accuracy}")
    losses = world.sum(torch.stack(losses)).cpu() / world.size
    right = world.sum(right).item()
    broken = (~losses.isfinite()).nonzero()
    if len(broken) > 0:
        batch = broken[0].item()
        raise UserError(
            f"the loss became {losses[batch]} in epoch {epoch}, batch {batch + 1}, at "
            f"learning rate {rates[batch]:.4g}: try a lower --lr"
        )
    return {"loss": losses.mean().item(), "accuracy": right / (seen * world.size)}


def find_lr(training, loader):
    """The learning-rate range test: train while all learning rates grow exponentially.

    It ends where the loss, smoothed, is twice its lowest. Returns the suggested factor of
    the rates that were given, a tenth of that at which the loss was lowest; and of each step
    the factor, the loss, and the loss smoothed. Raises UserError where it only grew. With
    --small all its images are small: by default the rates peak in the epochs on small images.
    Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
    """
    rates = [optimizer.defaults["lr"] for optimizer in training.optimizers]
    training.schedules = []  # it is the ramp that sets the rates
    training.start_epoch()
    factors, losses, smooth = [], [], []
    average = 0.0
    steps = progress(range(STEPS), "range test")
    for step, (images, labels) in zip(steps, endless(loader)):
        factors.append(FACTORS[0] * (FACTORS[1] / FACTORS[0]) ** (step / (STEPS - 1)))
        for optimizer, rate in zip(training.optimizers, rates):
            for group in optimizer.param_groups:
                group["lr"] = rate * factors[-1]
        images, labels = images.to(training.device), labels.to(training.device)
        if small_epochs(training.args):
            images = shrink(images)
        loss, _ = training.step(images, labels)
        losses.append(loss.item())
        average = 0.95 * average + 0.05 * losses[-1]
        smooth.append(average / (1 - 0.95 ** (step + 1)))  # as if begun at the mean
        if not smooth[-1] < 2 * min(smooth):
            break
    finite = [value for value in smooth if math.isfinite(value)]
    if len(finite) < 10 or min(finite) == smooth[0]:
        raise UserError("the loss grew from the start: lower --lr")
    factor = factors[smooth.index(min(finite))] / 10
    return factor, factors, losses, smooth


def endless(loader):
    """Batch after batch, epoch after epoch, each with its own order and augmentation."""
    for epoch in count(1):
        loader.sampler.epoch = epoch
        yield from loader
