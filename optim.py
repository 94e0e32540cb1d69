"""What changes the weights: the optimizers and the schedules of their learning rates."""

import torch
from torch import nn
from torch.optim import lr_scheduler

# Each optimizer's own learning rate (the highest of the schedule) and weight decay, where
# --lr and --weight-decay do not say otherwise.
DEFAULTS = {
    "muon": {"lr": 0.4, "weight_decay": 5e-4},  # of SGD, for what Muon does not take
    "sgd": {"lr": 0.3, "weight_decay": 5e-4},
    "adamw": {"lr": 0.003, "weight_decay": 0.05},
}
SCHEDULES = ("onecycle", "cosine", "step", "plateau")
STEPPED_EACH_BATCH = ("onecycle", "cosine")  # the others after each epoch


def make_optimizers(net, head, args):
    """The optimizers that --optimizer names, as a list, for all weights not frozen.

    `head` is the layer that gives the scores, which Muon leaves to SGD.
    """
    kernels = mixing_kernels(net, head) if args.optimizer == "muon" else []
    if args.optimizer == "muon" and (count := count_computed(net)):
        print(
            f"note      the kernels of {count} layers are computed from other weights "
            "(parametrizations): SGD trains these, and not Muon"
        )
    taken = {id(kernel) for kernel in kernels}
    matrices, vectors = [], []
    for weight in net.parameters():
        if id(weight) in taken or not weight.requires_grad:
            continue
        if weight.ndim > 1:
            matrices.append(weight)
        else:
            vectors.append(weight)
    groups = [
        {"params": matrices},
        {"params": vectors, "weight_decay": 0},  # norms and biases do not decay
    ]
    settings = {"lr": args.lr, "weight_decay": args.weight_decay}
    if args.optimizer == "adamw":
        return [torch.optim.AdamW(groups, **settings)]
    optimizers = [torch.optim.SGD(groups, momentum=0.9, nesterov=True, **settings)]
    if kernels:
        muon = Muon(kernels, lr=args.muon_lr, weight_decay=args.muon_decay)
        optimizers.append(muon)
    return optimizers


def make_schedules(optimizers, args, steps):
    """One schedule for each optimizer, as --schedule says; `steps` are those in all."""
    schedules = []
    for optimizer in optimizers:
        if args.schedule == "onecycle":  # up, then down to nothing
            schedule = lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=optimizer.defaults["lr"],
                total_steps=max(2, steps),  # one alone would be its last, at nearly 0
                pct_start=args.peak,
                cycle_momentum=False,
                div_factor=10,
                final_div_factor=1000,
            )
        elif args.schedule == "cosine":
            schedule = lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        elif args.schedule == "step":
            schedule = lr_scheduler.StepLR(optimizer, args.step_epochs, args.gamma)
        elif args.schedule == "plateau":
            schedule = lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=args.gamma, patience=args.patience
            )
        schedules.append(schedule)
    return schedules


def in_words(optimizers):
    """How many weights each of the optimizers trains, in how many tensors."""
    words = []
    for optimizer in optimizers:
        weights = []
        for group in optimizer.param_groups:
            weights += group["params"]
        total = sum(weight.numel() for weight in weights)
        words.append(
            f"{total:,} weights in {len(weights)} tensors by {type(optimizer).__name__}"
        )
    return ", ".join(words)


class AllOrNone:
    """Several optimizers as one: PyTorch's GradScaler lets all of them step, or none.

    By itself it would decide for each one by its own gradients. `weights` are those of all.
    """

    def __init__(self, optimizers, weights):
        self.optimizers = optimizers
        self.param_groups = [{"params": weights}]  # whose gradients GradScaler unscales

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()


def count_computed(net):
    """How many layers have a kernel that is no weight by itself."""
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return sum(not isinstance(layer.weight, nn.Parameter) for layer in layers)


def mixing_kernels(net, head):
    """The weights that mix channels, of all convolutions and linear layers but `head`."""
    kernels = []
    for module in net.modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or module is head:
            continue
        if not isinstance(module.weight, nn.Parameter):
            continue
        is_depthwise = module.weight.shape[1] == 1
        # A layer may be there under two names.
        is_taken = any(module.weight is kernel for kernel in kernels)
        if module.weight.requires_grad and not is_depthwise and not is_taken:
            kernels.append(module.weight)
    return kernels


class Muon(torch.optim.Muon):
    """PyTorch's Muon, which takes matrices, for kernels: one row per output channel.

    It is given views of the kernels as matrices. A view shares its kernel's memory, so
    what Muon writes there is the kernel's. Only the gradient must be handed over, as a view
    too, before each step, since each backward pass makes a new one.
    """

    def __init__(self, kernels, **settings):
        self.kernels = kernels
        for kernel in kernels:
            if not (kernel.is_contiguous() or is_channels_last(kernel)):
                kernel.data = kernel.data.contiguous()  # of another order, no matrix
        views = [nn.Parameter(as_matrix(kernel.detach())) for kernel in kernels]
        super().__init__(views, **settings)

    def step(self, closure=None):
        for view, kernel in zip(self.param_groups[0]["params"], self.kernels):
            gradient = kernel.grad
            if gradient is not None and gradient.stride() != kernel.stride():
                gradient = torch.empty_like(kernel).copy_(gradient)  # in the same order
            view.grad = None if gradient is None else as_matrix(gradient)
        return super().step(closure)


def is_channels_last(kernel):
    return kernel.ndim == 4 and kernel.is_contiguous(memory_format=torch.channels_last)


def as_matrix(kernel):
    """A view of a kernel (out, in, k, k) as (out, in * k * k), in either memory format."""
    return kernel.as_strided((len(kernel), kernel[0].numel()), (kernel.stride(0), 1))
