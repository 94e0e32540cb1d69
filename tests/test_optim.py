"""Optimizers, schedules, averaged weights, and the step."""

import contextlib
import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import OwnNet
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode

import engine
import optim
from engine import Training
from layers import with_mirror_images
from machine import World, in_layout
from model import ARCHS, build, try_out
from train import parse_arguments
from utils import UserError

# The same from front to back: the MixUp of docs/customize.md leaves them as they are, and
# with it the losses that are computed here by hand.
IMAGES = torch.randint(
    0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)
)
IMAGES = torch.cat([IMAGES, IMAGES.flip(0)])
LABELS = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])


def start(*options, arch="small", steps=100, net=None, teachers=()):
    """A `Training` of a network of the tests' own with these options of train.py."""
    args, _ = parse_arguments(["--arch", arch, *map(str, options)])
    if net is None:
        net = build(arch, "dilated", "batch", None)
    _, head = try_out(net)
    return Training(net, head, args, steps, torch.float32, teachers=teachers)


def names_of(net, weights):
    by_id = {id(weight): name for name, weight in net.named_parameters()}
    return [by_id[id(weight)].removeprefix("body.") for weight in weights]


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_the_size_of_a_gradient_does_not_change_a_step_of_muon(is_mirrored):
    """But where it is 0, as in front of weights of 0, the kernel stays as it is."""
    torch.manual_seed(0)
    before, gradient = torch.randn(2, 16, 8, 3, 3)
    after = []
    for scale in (1, 2**-20, 0):
        kernel = nn.Parameter(before.clone())
        kernel.grad = scale * gradient
        known = {id(kernel)} if is_mirrored else set()
        optim.Muon([kernel], known, lr=0.3, weight_decay=0.0).step()
        after.append(kernel.detach())
    assert torch.allclose(after[0], after[1], atol=1e-5)
    assert torch.equal(after[2], before)
    assert not torch.allclose(after[0], before, atol=1e-2)


@pytest.mark.parametrize(("epochs", "expected"), [(24, 8), (2, 1)])
def test_steps_are_a_third_of_the_epochs_apart(epochs, expected):
    args, _ = parse_arguments(["--epochs", str(epochs)])
    assert args.step_epochs == expected


def test_groups_of_weights_of_a_table():
    own = start("--optimizer", "muon", "--weight-decay", 0.01, "--muon-decay", 0.02)
    sgd, muon = own.optimizers
    assert muon.param_groups[0]["weight_decay"] == 0.02
    decayed, free = sgd.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0)
    assert decayed["nesterov"]
    assert decayed["momentum"] == 0.9
    assert all(".norm." in name for name in names_of(own.net, free["params"]))
    assert names_of(own.net, decayed["params"]) == [
        "c2.down.depthwise.weight",
        "c4.conv.depthwise.weight",
        "o.conv.conv.weight",
    ]
    kernels = names_of(own.net, muon.param_groups[0]["params"])
    others = names_of(own.net, decayed["params"] + free["params"])
    everything = names_of(own.net, own.net.parameters())
    assert sorted(kernels + others) == sorted(everything)


def test_groups_of_weights_of_a_class():
    """Its last layer is linear: it is that one, and no convolution, that SGD keeps."""
    own = start("--optimizer", "muon", arch="own")
    sgd, muon = own.optimizers
    assert names_of(own.net, muon.param_groups[0]["params"]) == [
        "stem.weight",
        "shrink1.weight",
        "deep.1.weight",
        "shrink2.weight",
        "shrink3.weight",
        "last.weight",
        "hidden.weight",
    ]
    matrices = names_of(own.net, sgd.param_groups[0]["params"])
    assert matrices == ["deep.0.weight", "fc.weight"]


@pytest.mark.parametrize("optimizer", optim.DEFAULTS)
def test_norms_over_several_axes_do_not_decay(monkeypatch, optimizer):
    class Normed(nn.Sequential):
        def __init__(self, norm):
            norms = nn.LayerNorm((8, 8, 8)), nn.RMSNorm((8, 8))
            super().__init__(nn.Conv2d(3, 8, 4, 4), *norms)
            self.extend([nn.Conv2d(8, 10, 1), nn.AvgPool2d(8)])

    monkeypatch.setitem(ARCHS, "normed", Normed)
    own = start("--optimizer", optimizer, "--weight-decay", 0.1, arch="normed")
    decayed, free = own.optimizers[0].param_groups
    assert decayed["weight_decay"] > free["weight_decay"] == 0
    names = ["0.bias", "1.weight", "1.bias", "2.weight", "3.bias"]
    assert names_of(own.net, free["params"]) == names


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("optimizer", optim.DEFAULTS)
def test_frozen_weights_are_left_alone(optimizer, freeze):
    """Statistics as well with --freeze; a class of one's own may want them to move."""
    net = build("own", "dilated", "batch", None)
    net.body.stem.weight.requires_grad_(False)
    net.body.bn1.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    own = start("--optimizer", optimizer, "--weight-decay", 0.1, net=net, arch="own")
    stepped = set()
    for made in own.optimizers:
        for group in made.param_groups:
            stepped.update(id(weight) for weight in group["params"])
    assert id(net.body.stem.weight) not in stepped
    assert id(net.body.bn1.weight) not in stepped
    assert id(net.body.fc.weight) in stepped
    own.args.freeze = freeze
    own.start_epoch()
    own.step(IMAGES, LABELS)
    for name, value in net.state_dict().items():
        if name in ("body.stem.weight", "body.bn1.weight"):
            assert torch.equal(value, before[name]), name
        if name == "body.bn1.running_mean":
            assert torch.equal(value, before[name]) == freeze
    for name in ("body.fc.weight", "body.last.weight", "body.shrink1.weight"):
        assert not torch.equal(net.state_dict()[name], before[name]), name


class Replacing(nn.BatchNorm2d):
    """Puts a new tensor in the place of a buffer in each pass, as ghost batch norm does."""

    def forward(self, x):
        if self.training:
            mean = x.detach().mean((0, 2, 3))
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean
        return (x - self.running_mean.view(1, -1, 1, 1)) / 50


class Ghost(OwnNet):
    def __init__(self, classes=10):
        super().__init__(classes)
        self.bn1 = Replacing(8)


def test_the_average_follows_buffers_that_are_replaced(monkeypatch):
    monkeypatch.setitem(ARCHS, "ghost", Ghost)
    own = start(arch="ghost", net=build("ghost", "dilated", None, None))
    decay, expected = 1 - 1 / max(1, own.args.ema * 100), None
    own.start_epoch()
    for _ in range(3):
        own.step(IMAGES, LABELS)
        now = own.net.body.bn1.running_mean
        expected = now if expected is None else decay * expected + (1 - decay) * now
        own.ema.net.eval()
    assert expected.abs().max() > 0
    assert torch.allclose(own.ema.net.body.bn1.running_mean, expected)


def test_kernels_that_are_computed_are_left_to_sgd(capsys, monkeypatch):
    class Normed(OwnNet):
        def __init__(self, classes=10):
            super().__init__(classes)
            nn.utils.parametrizations.weight_norm(self.last)

    monkeypatch.setitem(ARCHS, "normed", Normed)
    net = build("normed", "dilated", None, None)
    own = start("--optimizer", "muon", arch="normed", net=net)
    assert (
        "kernels of 1 layers are computed from other weights" in capsys.readouterr().out
    )
    sgd, _ = own.optimizers
    trained = names_of(net, sgd.param_groups[0]["params"])
    before = net.body.last.weight.clone()
    assert "last.parametrizations.weight.original1" in trained
    own.start_epoch()
    own.step(IMAGES, LABELS)
    assert not torch.equal(net.body.last.weight, before)


def test_a_layer_used_twice_is_stepped_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.same = nn.Conv2d(8, 8, 3, padding=1)
            self.again = nn.Conv2d(8, 8, 3, padding=1)
            self.again.weight = self.same.weight
            self.fc = nn.Linear(8, 10)

        def forward(self, x):
            x = self.again(self.same(self.first(x)))
            return self.fc(x.mean((2, 3)))

    net = Twice()
    kernels = optim.mixing_kernels(net, net.fc)
    assert [kernel.shape[0] for kernel in kernels] == [8, 8]


def permuted(kernel):
    """The same values in an order of its own, as the memory of some checkpoints."""
    return kernel.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


LAYOUTS = {
    "channels last": lambda kernel: kernel.to(memory_format=torch.channels_last),
    "contiguous": lambda kernel: kernel.contiguous(),
    "permuted": permuted,
}


@pytest.mark.parametrize("of_kernel", LAYOUTS)
@pytest.mark.parametrize("of_gradient", LAYOUTS)
def test_muon_makes_steps_of_orthogonal_rows(of_kernel, of_gradient):
    """Against the definition: a step is a matrix whose singular values are all near 1."""
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(LAYOUTS[of_kernel](torch.randn(16, 8, 3, 3)))
    before = kernel.detach().clone()
    muon = optim.Muon([kernel], lr=0.5, weight_decay=0.0)
    kernel.grad = LAYOUTS[of_gradient](torch.randn(16, 8, 3, 3))
    muon.step()
    step = (kernel.detach() - before) / 0.5
    assert 0.6 < torch.linalg.svdvals(step.flatten(1)).min()
    assert torch.linalg.svdvals(step.flatten(1)).max() < 1.3
    # Downhill, and made of each number's own gradient, in whichever order they lie.
    _, _, rows = torch.linalg.svd(kernel.grad.flatten(1), full_matrices=False)
    assert torch.allclose(step.flatten(1) @ rows.T @ rows, step.flatten(1), atol=0.02)
    assert (step * kernel.grad).sum() < 0


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (48, 3, 3, 3), (20, 30)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_muon_is_pytorchs_and_goes_on_with_its_momentum(shape, layout, monkeypatch):
    """In float64, and with the state that PyTorch's has after three steps."""
    if len(shape) == 2 and layout != "contiguous":
        pytest.skip("a matrix has one layout")
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self)  # which it takes

    def matrix_of(kernel):  # as PyTorch's got it: of kernels in channels last by pixels
        is_last = layout == "channels last"
        return (kernel.permute(0, 2, 3, 1) if is_last else kernel).flatten(1).clone()

    torch.manual_seed(0)
    kernel = nn.Parameter(LAYOUTS[layout](torch.randn(shape, dtype=torch.float64)))
    other = nn.Parameter(matrix_of(kernel.detach()))
    settings = {"lr": 0.3, "weight_decay": 0.1}
    theirs = torch.optim.Muon([other], **settings)
    ours = optim.Muon([kernel], **settings)
    for step in range(6):
        if step == 3:
            ours = optim.Muon([kernel], **settings)
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        kernel.grad = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64))
        other.grad = matrix_of(kernel.grad)
        ours.step()
        theirs.step()
        assert (matrix_of(kernel.detach()) - other).abs().max() < 1e-6


def test_float32_is_enough_for_kernels_of_nearly_dependent_rows():
    """With singular values from 1 to 1e-6, whose squares float32 cannot tell from 0."""
    torch.manual_seed(0)
    rows = torch.linalg.qr(torch.randn(44, 44, dtype=torch.float64)).Q
    columns = torch.linalg.qr(torch.randn(396, 44, dtype=torch.float64)).Q
    values = torch.logspace(0, -6, 44, dtype=torch.float64)
    kernel = ((rows * values) @ columns.T)[None]
    exact = optim.orthogonal(kernel)  # as PyTorch's, says the test above
    assert (optim.orthogonal(kernel.float()) - exact).abs().max() < 5e-4


@pytest.mark.parametrize("shape", [(44, 88, 3, 3), (24, 3, 3, 3), (80, 64, 1, 1)])
def test_muon_of_mirrored_kernels_is_that_of_all_of_them(shape):
    """Half of them, with the gradient of all, take the step that all take: to 1e-12."""
    torch.manual_seed(0)
    half = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    whole = nn.Parameter(with_mirror_images(half.detach()))
    settings = {"lr": 0.3, "weight_decay": 0.1}
    of_half = optim.Muon([half], {id(half)}, **settings)
    of_whole = optim.Muon([whole], **settings)
    for _ in range(3):
        whole.grad = with_mirror_images(torch.randn(shape, dtype=torch.float64))
        half.grad = 2 * whole.grad[: shape[0]]  # each weight is in two kernels
        of_half.step()
        of_whole.step()
    assert (with_mirror_images(half.detach()) - whole).abs().max() < 1e-12


def test_muon_takes_kernels_of_one_shape_together():
    """As each for itself, and knows which of them are mirrored: of "small", all."""
    free = build("small", "dilated", "batch", None, kernels="free")
    assert start("--optimizer", "muon", net=free).optimizers[1].mirrored == set()
    own = start("--optimizer", "muon")
    muon = own.optimizers[1]
    kernels = muon.param_groups[0]["params"]
    assert muon.mirrored.issuperset(map(id, kernels))
    own.start_epoch()
    own.backward(IMAGES, LABELS)
    before = [kernel.detach().clone() for kernel in kernels]
    own.optimizers[1].step()
    for old, kernel in zip(before, kernels, strict=True):
        alone = nn.Parameter(old.clone())
        alone.grad = kernel.grad
        settings = {key: muon.param_groups[0][key] for key in ("lr", "weight_decay")}
        optim.Muon([alone], {id(alone)}, **settings).step()
        assert torch.allclose(alone, kernel, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "decay"),
    [("adam", torch.optim.Adam, 0.0), ("adamw", torch.optim.AdamW, 0.05)],
)
def test_adam_and_adamw_are_pytorchs(name, kind, decay):
    """Against a plain loop of PyTorch's own over the same weights."""
    net = build("small", "dilated", "batch", None)
    other = copy.deepcopy(net)
    own = start("--optimizer", name, "--schedule", "step", "--step-epochs", 9, net=net)
    groups = [
        {
            "params": [w for w in other.parameters() if w.ndim > 1],
            "weight_decay": decay,
        },
        {"params": [w for w in other.parameters() if w.ndim == 1], "weight_decay": 0},
    ]
    by_pytorch = kind(groups, lr=0.003)
    smoothing = own.args.label_smoothing
    for _ in range(3):
        own.start_epoch()
        own.step(IMAGES, LABELS)
        loss = F.cross_entropy(other.train()(IMAGES), LABELS, label_smoothing=smoothing)
        by_pytorch.zero_grad()
        loss.backward()
        by_pytorch.step()
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def rates(schedule, *options, losses, steps=1):
    """The learning rate of each epoch of some steps, told these losses."""
    options = ["--schedule", schedule, "--lr", 0.2, *options]
    own = start("--optimizer", "sgd", *options, steps=steps * len(losses))
    seen = []
    for loss in losses:
        seen.append(own.lr)
        for optimizer in own.optimizers:
            optimizer.step()
        if schedule in optim.STEPPED_EACH_BATCH:
            for _ in range(steps):
                own.schedules[0].step()
        own.end_epoch(loss)
    return seen


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_schedules():
    """Against their definitions, of one step per epoch."""
    falling = [1.0] * 10
    onecycle = rates("onecycle", losses=falling)
    assert onecycle[0] == pytest.approx(0.02)
    assert onecycle[2] == max(onecycle) == pytest.approx(0.2)
    assert onecycle[2:] == sorted(onecycle[2:], reverse=True)
    assert onecycle[-1] < 1e-4
    for count in (1, 2, 3):  # as in a dry run: no step is at a rate of almost 0
        assert rates("onecycle", losses=falling[:count])[0] >= 0.02
    cosine = rates("cosine", losses=falling)
    assert cosine[0] == 0.2
    assert cosine[5] == pytest.approx(0.1)
    step = rates("step", "--gamma", 0.9, "--step-epochs", 2, losses=falling)
    assert step == pytest.approx([0.2 * 0.9 ** (epoch // 2) for epoch in range(10)])


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_onecycle_goes_on_as_pytorchs_own():
    """After a resume, on the second of two optimizers, against PyTorch's without one."""
    rate = 0.03
    weight = nn.Parameter(torch.zeros(1))
    expected = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([weight], rate),
        max_lr=rate,
        total_steps=20,
        pct_start=0.25,
        cycle_momentum=False,
        div_factor=10,
        final_div_factor=1000,
    )
    options = ["--optimizer", "muon", "--muon-lr", rate, "--schedule", "onecycle"]
    options += ["--peak", 0.25]
    own = start(*options, steps=20)
    for step in range(20):
        if step == 7:
            state, weights = own.state_dict(), own.ema.net.state_dict()
            own = start(*options, steps=20)
            own.load_state_dict(copy.deepcopy(state), weights)
        found = own.optimizers[1].param_groups[0]["lr"]
        assert found == pytest.approx(expected.get_last_lr()[0], rel=1e-12)
        own.step(IMAGES, LABELS)
        if step < 19:
            expected.step()


def test_plateau_waits_for_the_loss_it_is_told():
    options = ["--gamma", 0.5, "--patience", 1]
    assert rates("plateau", *options, losses=[3, 2, 1, 0.5]) == [0.2] * 4
    stuck = rates("plateau", *options, losses=[1, 1, 1, 1, 1, 1])
    assert stuck == pytest.approx([0.2, 0.2, 0.2, 0.1, 0.1, 0.05])


def test_average_of_the_weights():
    """Against the formula: the first weights, then a fifth of each of the later ones."""
    own = start("--ema", 0.05)  # of 100 steps: an average over 5
    names = ("body.c1.conv.conv.weight", "body.c4.conv.norm.running_var")
    expected = None
    for _ in range(4):
        own.step(IMAGES, LABELS)
        now = [own.net.state_dict()[name].clone() for name in names]
        expected = expected or now
        expected = [a + (b - a) / 5 for a, b in zip(expected, now)]
    for name, value in zip(names, expected):
        assert torch.allclose(own.ema.net.state_dict()[name], value, atol=1e-6)


def test_average_is_that_of_pytorchs_averaged_model():
    own = start("--ema", 0.05)
    theirs = AveragedModel(
        own.net, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True
    )
    for _ in range(4):
        own.step(IMAGES, LABELS)
        theirs.update_parameters(own.net)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():  # it averages counters too, and rounds them down
            assert torch.equal(own.ema.net.state_dict()[name], value), name


def test_a_step_in_bfloat16_reads_the_weights_of_the_last_one():
    """Autocast keeps what it has cast until it is left: around a whole loop, for ever."""
    own = start("--optimizer", "sgd", "--lr", 0.1)
    _, head = try_out(own.net)
    own = Training(own.net, head, own.args, 100, torch.bfloat16)
    own.start_epoch()
    found, expected, precisions = [], [], set()
    own.net.body.c1.conv.conv.register_forward_hook(
        lambda *call: precisions.add(call[2].dtype)
    )
    for _ in range(3):
        alone = copy.deepcopy(own.net)
        with torch.autocast("cpu", torch.bfloat16):
            scores = alone(IMAGES).float()
        smoothing = own.args.label_smoothing
        loss = F.cross_entropy(scores, LABELS, label_smoothing=smoothing)
        expected.append(loss.item())
        found.append(own.step(IMAGES, LABELS)[0].item())
    assert found == pytest.approx(expected, rel=1e-3)
    assert len(set(found)) == 3
    assert precisions == {torch.bfloat16}


def test_l1_penalty_is_that_of_all_parameters():
    net = build("small", "dilated", "batch", None)
    size = sum(weight.abs().sum().item() for weight in net.parameters())
    losses = []
    for penalty in (0, 0.001):
        own = start("--l1", penalty, net=copy.deepcopy(net))
        losses.append(own.step(IMAGES, LABELS)[0].item())
    assert losses[1] - losses[0] == pytest.approx(0.001 * size, rel=1e-3)


def test_the_loss_is_one_function(monkeypatch):
    """As MixUp would, another loss gets the batch and decides what is minimised."""
    seen = []

    def loss(net, images, labels, smoothing):
        seen.append((images.shape, labels.tolist(), smoothing))
        scores = net(images.flip(0))
        return scores.square().mean(), scores

    monkeypatch.setattr(engine, "batch_loss", loss)
    own = start("--label-smoothing", 0.3)
    value, right = own.step(IMAGES, LABELS)
    assert seen == [((8, 3, 32, 32), LABELS.tolist(), 0.3)]
    assert value > 0
    assert isinstance(right, torch.Tensor)


@pytest.mark.parametrize("count", [1, 2])
def test_teachers_count_as_much_as_the_labels(count):
    """Half of the loss is the cross-entropy with the labels, as it is without a teacher;
    the other half is the divergence from the teachers' mean, up to its own entropy."""
    net = build("small", "dilated", "batch", None)
    teachers = [build("small", "dilated", "batch", None).eval() for _ in range(count)]
    before = copy.deepcopy([teacher.state_dict() for teacher in teachers])
    alone = start("--label-smoothing", 0, net=copy.deepcopy(net))
    taught = start("--label-smoothing", 0, net=copy.deepcopy(net), teachers=teachers)
    with torch.no_grad():
        learned = F.log_softmax(copy.deepcopy(net).train()(IMAGES), dim=1)
        known = sum(F.softmax(teacher(IMAGES), dim=1) for teacher in teachers)
        known = (known / count).log()
    divergence = F.kl_div(learned, known, reduction="batchmean", log_target=True)
    entropy = torch.distributions.Categorical(logits=known).entropy().mean()
    loss, _ = taught.step(IMAGES, LABELS)
    from_labels, _ = alone.step(IMAGES, LABELS)
    expected = (from_labels + divergence + entropy) / 2
    torch.testing.assert_close(loss, expected)
    for teacher, weights in zip(teachers, before, strict=True):
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, weights[name]), name


def test_each_optimizer_has_its_own_rate():
    for optimizer, defaults in optim.DEFAULTS.items():
        args, _ = parse_arguments(["--optimizer", optimizer])
        assert args.lr == defaults["lr"]
        assert args.weight_decay == defaults["weight_decay"]
        args, _ = parse_arguments(["--optimizer", optimizer, "--lr", "0.5"])
        assert args.lr == 0.5


def test_no_product_is_made_that_nothing_reads():
    """Two of each of the five steps, the first one's and the last one's but for one, and two."""
    with TorchCalls() as calls:
        optim.orthogonal(torch.randn(2, 4, 6))
    assert calls.names.count("bmm") == 1 + 4 + 4 * 2 + 1
    assert not {"matmul", "__matmul__", "eye"} & set(calls.names)


class TorchCalls(TorchFunctionMode):
    """Notes the name of every function of PyTorch that is called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


class Graph:
    """In the place of a CUDA graph: it replays what was called while it was recorded."""

    @contextlib.contextmanager
    def record(self, own):
        update, groups = own.update, engine.weight_groups(own)

        def recorded(*places):
            settings = [dict(group) for group in groups]
            results = torch.zeros(()), torch.zeros((), dtype=torch.long)

            def replay():
                now = [dict(group) for group in groups]
                for group, values in zip(groups, settings):
                    group |= values
                for place, value in zip(results, update(*places)):
                    place.copy_(value)
                for group, values in zip(groups, now):
                    group.clear()
                    group |= values
                own.ema.updates -= 1  # which a graph does not count

            self.replay = replay
            own.ema.updates += 1  # what recording leaves behind
            return results

        own.update = recorded
        yield
        own.update = update


def replaying(own, monkeypatch):
    """Let a training on the CPU replay its updates; returns the graphs that it made."""
    made = []
    monkeypatch.setattr(
        torch.cuda, "CUDAGraph", lambda: made.append(Graph()) or made[-1]
    )
    monkeypatch.setattr(
        torch.cuda, "graph", lambda graph, capture_error_mode: graph.record(own)
    )
    own.replay.is_on = True
    return made


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_replayed_updates_are_those_of_python(monkeypatch, optimizer):
    """Each with the images, labels and rates of its own step, also of another size."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for step in range(12):
        side = 24 if step < 6 else 32
        images = torch.randint(0, 256, (8, 3, side, side), generator=generator)
        batches.append((images, torch.randint(0, 10, (8,), generator=generator)))
    found = []
    for is_replayed in (False, True):
        torch.manual_seed(0)
        own = start("--optimizer", optimizer, "--weight-decay", 0.05, steps=12)
        made = replaying(own, monkeypatch) if is_replayed else None
        own.start_epoch()
        metrics = []
        for images, labels in batches:
            metrics += own.step(images, labels)
        weights = [*own.net.state_dict().values(), *own.ema.net.state_dict().values()]
        metrics = [one.item() for one in metrics]  # as an epoch reads them, at its end
        found.append([metrics, weights, own.ema.updates])
        assert all(
            isinstance(group["lr"], float) for group in engine.weight_groups(own)
        )
    (metrics, weights, updates), (replayed, others, counted) = found
    assert len(made) == 2
    assert replayed == pytest.approx(metrics, rel=1e-3)
    assert counted == updates == 12
    for weight, other in zip(weights, others, strict=True):
        torch.testing.assert_close(other, weight, rtol=1e-3, atol=1e-4)


class Deciding(nn.Sequential):
    """Draws or keeps something in each pass that replaying would leave as it was."""

    def __init__(self, what):
        super().__init__(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1))
        self.what, self.count, self.freed = what, 0, []
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        if self.what == "random":
            x = x * random.random()
        elif self.what == "numpy":
            x = x * np.random.rand()
        elif self.what == "torch":
            x = x * torch.rand(())
        elif self.what == "count":
            self.count += 1
        elif self.what == "buffer":
            self.mean = self.mean + x.detach().mean()
        elif self.what == "twice":  # the second may lie where a freed one lay
            first = StorageWeakRef(self.mean.untyped_storage())
            self.mean = self.mean + x.detach().mean()
            self.freed.append(first.expired())
            self.mean = self.mean + x.detach().mean()
        elif self.what == "data":
            self[0].weight.data = torch.renorm(self[0].weight.data, 2, 0, 1)
        return super().forward(x)


DECIDED = [
    "random",
    "numpy",
    "torch",
    "count",
    "buffer",
    "twice",
    "data",
    "outside",
    "",
]


@pytest.mark.parametrize("what", DECIDED)
def test_what_python_decides_is_not_replayed(monkeypatch, capsys, what):
    monkeypatch.setitem(ARCHS, "deciding", lambda classes: Deciding(what))
    net = build("deciding", "dilated", None, None)
    own = start("--optimizer", "sgd", arch="deciding", net=net)
    made = replaying(own, monkeypatch)
    own.count = 0
    net.body.freed.clear()
    for _ in range(5):
        own.step(IMAGES, LABELS)
        own.count += what == "outside"  # no part of an update, but it may read this
        own.start_epoch()
    assert len(made) == (what in ("", "outside"))
    assert not any(net.body.freed[:1])  # of the one step that was watched
    reason = "a step draws, counts or replaces something in Python"
    if what == "outside":
        reason = "layers, or numbers of the training, have changed"
    line = f"note      no CUDA graph: {reason}\n"
    assert capsys.readouterr().out == (line if what else "")


def change(own, what):
    if what == "momentum":
        own.optimizers[0].param_groups[0]["momentum"] = 0.5
    elif what == "option":
        own.args.label_smoothing = 0.5
    elif what == "layer":
        own.net.body.c1.conv.norm.momentum = 0.5
    elif what == "frozen":
        own.net.body.c1.conv.conv.weight.requires_grad_(False)


@pytest.mark.parametrize("what", ["momentum", "option", "layer", "frozen", ""])
def test_a_graph_is_left_when_something_has_changed(monkeypatch, capsys, what):
    own = start("--optimizer", "sgd")
    replaying(own, monkeypatch)
    for epoch in range(2):
        own.start_epoch()
        for _ in range(5):
            own.step(IMAGES, LABELS)
        if epoch == 0:
            assert own.replay.graph
            change(own, what)
    assert own.replay.is_on == (what == "")
    assert capsys.readouterr().out.count("note      no CUDA graph") == (what != "")


def fail_to_record(monkeypatch, error):
    """Let recording fail as PyTorch does: with another error at its end."""

    @contextlib.contextmanager
    def record(graph, capture_error_mode):
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error")

    own = start("--optimizer", "sgd")
    replaying(own, monkeypatch)
    monkeypatch.setattr(torch.cuda, "graph", record)
    for _ in range(3):
        own.step(IMAGES, LABELS)

    def broken(images, labels):
        raise error

    own.update = broken
    own.step(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("operation not permitted\nand more"), "operation not permitted"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_step_that_cannot_be_recorded_is_said(monkeypatch, error, reason):
    with pytest.raises(UserError) as caught:
        fail_to_record(monkeypatch, error)
    line = f"a step cannot be a CUDA graph ({reason}): give --cuda-graph off"
    assert str(caught.value) == line


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_momentum_is_resumed_in_the_layout_of_the_weights(optimizer):
    """A fused step on CUDA wants it so, whatever device wrote the last.pt."""
    before = start("--optimizer", optimizer)
    in_layout(before.net, torch.contiguous_format)
    before.step(IMAGES, LABELS)
    after = start("--optimizer", optimizer)
    after.load_state_dict(before.state_dict(), before.ema.net.state_dict())
    for mine, other in zip(after.optimizers, before.optimizers, strict=True):
        pairs = zip(mine.state.items(), other.state.values(), strict=True)
        for (weight, kept), expected in pairs:
            momentum = kept["momentum_buffer"]
            assert torch.equal(momentum, expected["momentum_buffer"])
            assert momentum.stride() == weight.stride()


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("CUDA out of memory")]
)
def test_other_errors_while_a_step_is_recorded_stay(monkeypatch, error):
    with pytest.raises(type(error)) as caught:
        fail_to_record(monkeypatch, error)
    assert caught.value is error


@pytest.mark.parametrize(
    ("options", "dtype", "expected"),
    [
        ([], torch.bfloat16, True),
        ([], torch.float32, True),
        ([], torch.float16, False),
        (["--cuda-graph", "off"], torch.bfloat16, False),
        (["--deterministic"], torch.bfloat16, False),
        (["--optimizer", "adamw"], torch.bfloat16, False),
        (["--arch", "own"], torch.bfloat16, False),
    ],
)
def test_what_is_recorded_as_a_graph(options, dtype, expected):
    own = start(
        *options,
        net=build("own" if "own" in options else "small", "dilated", None, None),
    )
    assert not engine.can_replay(own)  # on the CPU
    own.device = torch.device("cuda")
    own.scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    assert engine.can_replay(own) == expected
    own.world = World(0, 2)
    assert not engine.can_replay(own)
