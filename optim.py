"""What changes the weights: the optimizers and the schedules of their learning rates."""

import torch
from torch import nn
from torch.optim import lr_scheduler

from layers import mirrored

# Each optimizer's own learning rate (the highest of the schedule) and weight decay, where
# --lr and --weight-decay do not say otherwise.
DEFAULTS = {
    "muon": {"lr": 0.28, "weight_decay": 5e-4},  # of SGD, for what Muon does not take
    "sgd": {"lr": 0.3, "weight_decay": 5e-4},
    "adam": {"lr": 0.003, "weight_decay": 0.0},
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
    taken, kinds = set(kernels), (nn.LayerNorm, nn.RMSNorm)
    norms = [module for module in net.modules() if isinstance(module, kinds)]
    # Those of norms may have several axes, and are no matrices.
    of_norms = {weight for norm in norms for weight in norm.parameters()}
    matrices, vectors = [], []
    for weight in net.parameters():
        if weight in taken or not weight.requires_grad:
            continue
        if weight.ndim > 1 and weight not in of_norms:
            matrices.append(weight)
        else:
            vectors.append(weight)
    groups = [
        {"params": matrices},
        {"params": vectors, "weight_decay": 0},  # norms and biases do not decay
    ]
    settings = {"lr": args.lr, "weight_decay": args.weight_decay}
    if args.optimizer in ("adam", "adamw"):
        make = torch.optim.Adam if args.optimizer == "adam" else torch.optim.AdamW
        return [make(groups, **settings)]
    optimizers = [torch.optim.SGD(groups, momentum=0.9, nesterov=True, **settings)]
    if kernels:
        settings = {"lr": args.muon_lr, "weight_decay": args.muon_decay}
        mirrored_ids = {id(layer.weight) for layer in mirrored(net)}
        optimizers.append(Muon(kernels, mirrored_ids, **settings))
    return optimizers


def make_schedules(optimizers, args, steps, final_div_factor=1000):
    """One schedule for each optimizer, as --schedule says; `steps` are those in all.

    One Cycle starts at a tenth of its highest rate, and ends at that by `final_div_factor`.
    """
    schedules = []
    for optimizer in optimizers:
        if args.schedule == "onecycle":  # up, then down to nothing
            schedule = lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=optimizer.defaults["lr"],
                total_steps=max(2, steps),  # one alone would be its last, at nearly 0
                # PyTorch divides by 0 where the first step is the peak, but not for a share of 0.
                pct_start=0.0 if args.peak * max(2, steps) == 1 else args.peak,
                cycle_momentum=False,
                div_factor=10,
                final_div_factor=final_div_factor,
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
        weights = [one for group in optimizer.param_groups for one in group["params"]]
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
    """How many layers to train have a kernel that is no weight by itself."""
    count = 0
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            is_trained = any(weight.requires_grad for weight in layer.parameters())
            count += is_trained and not isinstance(layer.weight, nn.Parameter)
    return count


def mixing_kernels(net, head):
    """The weights that mix channels, of all convolutions and linear layers but `head`."""
    kernels = {}  # as keys, so that one under two names is there once
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not head:
            weight = module.weight
            is_own = isinstance(weight, nn.Parameter)  # and not computed from others
            is_depthwise = weight.shape[1] == 1
            if is_own and weight.requires_grad and not is_depthwise:
                kernels[weight] = None
    return list(kernels)


class Muon(torch.optim.Optimizer):
    """Steps in which a kernel, as a matrix of one row per output channel, is orthogonal.

    Jordan et al., "Muon", 2024. PyTorch's own would make the stored half of mirrored kernels
    orthogonal, and not the layer; and it takes kernels one at a time and in bfloat16, for
    which many CPUs have no units. `mirrored` holds the ids of kernels with mirror images.
    """

    def __init__(self, kernels, mirrored=(), **settings):
        super().__init__(kernels, {"momentum": 0.95} | settings)
        self.mirrored = mirrored

    @torch.no_grad()
    def step(self, closure=None):
        (group,) = self.param_groups
        alike = {}  # kernels by what they have in common
        for kernel in group["params"]:
            if kernel.grad is not None:
                key = (kernel.shape, id(kernel) in self.mirrored)
                alike.setdefault(key, []).append(kernel)
        for (shape, is_mirrored), kernels in alike.items():
            updates = self.momenta(kernels, group["momentum"])
            if is_mirrored:
                updates = orthogonal_with_images(updates)
            else:
                updates = orthogonal(updates)
            rows, columns = shape[0] * (2 if is_mirrored else 1), shape[1:].numel()
            rate = group["lr"] * max(1, rows / columns) ** 0.5
            updates.mul_(rate)  # which is a tensor in a CUDA graph, and so no `alpha`
            for kernel, update in zip(kernels, updates):
                kernel.mul_(1 - group["lr"] * group["weight_decay"])
                kernel.sub_(update)

    def momenta(self, kernels, momentum):
        """The gradients of kernels of one shape, with Nesterov momentum: (N, *shape)."""
        updates = []
        for kernel in kernels:
            state = self.state[kernel]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(kernel.grad)
            state["momentum_buffer"].lerp_(kernel.grad, 1 - momentum)
            updates.append(kernel.grad.lerp(state["momentum_buffer"], momentum))
        return torch.stack(updates)

    def load_state_dict(self, state):
        """As of any optimizer; an older last.pt has matrices, in the order of the memory."""
        super().load_state_dict(state)
        for kernel, values in self.state.items():
            momentum = values["momentum_buffer"]
            if momentum.ndim == kernel.ndim:
                continue
            if kernel.is_contiguous(memory_format=torch.channels_last):
                momentum = momentum.view(kernel.permute(0, 2, 3, 1).shape)
                values["momentum_buffer"] = momentum.permute(0, 3, 1, 2)
            else:
                values["momentum_buffer"] = momentum.view(kernel.shape)


def orthogonal_with_images(kernels):
    """As `orthogonal` of kernels and their mirror images together: of these, the kernels.

    What mirroring leaves as it is and what it turns around are orthogonal to each other:
    they are two matrices of half the size, each brought near 1 for itself.
    """
    # The norm of the matrix that both parts make up, so that both are scaled alike.
    sizes = kernels.flatten(1).norm(dim=1).repeat(2)
    if kernels.shape[2] % 2 == 1:  # no pairs of channels, but the columns of each
        images = kernels.flip(4)
        parts = torch.cat([kernels + images, kernels - images]) / 2
        even, odd = orthogonal(parts, sizes).chunk(2)
        return (even + odd) / 2**0.5
    first, second = kernels.chunk(2, 2)  # as `with_mirror_images` exchanges them
    second = second.flip(4)
    parts = torch.cat([first + second, first - second]) / 2**0.5
    even, odd = orthogonal(parts, sizes).chunk(2)
    return torch.cat([even + odd, (even - odd).flip(4)], 2) / 2


def orthogonal(kernels, sizes=None):
    """Kernels (N, out, ...) with the singular values of each, as a matrix, brought near 1.

    By five Newton-Schulz steps, which lead to 0.7 to 1.2, with the coefficients of Jordan et
    al. `sizes` (N,) are norms that no singular value exceeds (default: those of the kernels).
    Each step is x -> f x, where f is a polynomial of the small matrix x x^T, and makes of that
    f (x x^T) f: so it is enough to multiply the long x once, by the product of all f.
    """
    if sizes is None:
        sizes = kernels.flatten(1).norm(dim=1)
    matrices = kernels.flatten(2) / sizes.clamp(min=1e-7)[:, None, None]
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    a, b, c = 3.4445, -4.7750, 2.0315
    gram, product = torch.bmm(x, x.mT), None
    for left in reversed(range(5)):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else torch.bmm(factor, product)
        if left:
            gram = torch.bmm(torch.bmm(factor, gram), factor)
    x = torch.bmm(product, x)
    return (x.mT if is_tall else x).reshape(kernels.shape)
