"""Grad-CAM: where in an image the network saw a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017.
"""

import matplotlib
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from plots import most_confident, plot_images


class MapRecorder(TorchFunctionMode):
    """Keeps every feature map (N, C, H, W) that is computed while it is on, in order."""

    def __init__(self):
        super().__init__()
        self.maps = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_map = isinstance(result, torch.Tensor) and result.ndim == 4
        if is_map and result.requires_grad and max(result.shape[2:]) > 1:
            self.maps.append(result)
        return result


def grad_cam(net, images, targets):
    """How far each place speaks for a class: (N, h, w), its largest value scaled to 1.

    `images` are uint8 (N, 32, 32, 3), `targets` (N,) the numbers of the classes. The map
    is that of the last feature map with height and width on the way to the scores: its
    channels, weighted by the mean gradient of the class's score, summed, and cut off below
    0. Where nothing speaks for the class it is 0 throughout, as it is where there is none.
    """
    net.eval()
    device = next(net.parameters()).device
    with torch.enable_grad(), MapRecorder() as recorder:
        pixels = images.permute(0, 3, 1, 2).to(device, torch.float32)
        scores = net(pixels.requires_grad_())
    score = scores.gather(1, targets.to(device)[:, None]).sum()
    for features in reversed(recorder.maps):
        (gradient,) = torch.autograd.grad(
            score, features, retain_graph=True, allow_unused=True
        )
        if gradient is not None:
            weights = gradient.mean((2, 3), keepdim=True)
            maps = F.relu((weights * features).sum(1)).detach().cpu()
            return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)
    return torch.zeros(images.shape[:3])


def overlay(images, maps):
    """Images with their maps laid over them in colour, uint8 (N, 32, 32, 3)."""
    size = images.shape[1:3]
    maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    colours = torch.from_numpy(
        matplotlib.colormaps["inferno"](maps[:, 0].numpy())[..., :3]
    )
    return (0.4 * images + 0.6 * 255 * colours).round().to(torch.uint8)


def plot_evidence(net, images, labels, probabilities, classes, path):
    """Grad-CAM of two right answers and four mistakes, the most confident ones.

    Of each the image, and what speaks for the class predicted and for another one: the
    actual class, or where that was predicted the one that came second.
    """
    likeliest = probabilities.topk(2)
    confidence, predicted = likeliest.values[:, 0], likeliest.indices[:, 0]
    right = most_confident(confidence, predicted == labels, 2)
    wrong = most_confident(confidence, predicted != labels, 4)
    chosen = torch.cat([right, wrong])
    images, labels, predicted = images[chosen], labels[chosen], predicted[chosen]
    second = likeliest.indices[chosen, 1]
    others = torch.where(predicted == labels, second, labels)
    for_predicted = overlay(images, grad_cam(net, images, predicted))
    for_others = overlay(images, grad_cam(net, images, others))
    cells = torch.stack([images, for_predicted, for_others], 1).flatten(0, 1)
    titles = []
    for label, guess, other, share in zip(
        labels, predicted, others, confidence[chosen]
    ):
        place = "second" if guess == label else "actual"
        titles.append(f"{classes[label]}\n→ {classes[guess]} {share:.0%}")
        titles.append(f"evidence for\n{classes[guess]}")
        titles.append(f"evidence for\n{classes[other]} ({place})")
    heading = (
        "Grad-CAM of right answers, then mistakes: actual → predicted; "
        "each map scaled to its own maximum"
    )
    plot_images(cells, titles, 6, path, heading)
