"""Grad-CAM: where in an image the network saw a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017.
"""

import matplotlib
import torch
import torch.nn.functional as F


def grad_cam(net, images, targets):
    """How far each place speaks for a class: (N, h, w), its largest value scaled to 1.

    `images` are uint8 (N, 32, 32, 3), `targets` (N,) the numbers of the classes. The map
    is that of the last block before the output, C4's: its channels, weighted by the mean
    gradient of the class's logit, summed, and cut off below 0. Where nothing speaks for
    the class it is 0 throughout.
    """
    net.eval()
    kept = {}
    *_, block, _ = net.children()
    hook = block.register_forward_hook(lambda *call: kept.update(features=call[-1]))
    device = next(net.parameters()).device
    with torch.enable_grad():
        logits = net(images.permute(0, 3, 1, 2).to(device))
    hook.remove()
    features = kept["features"]
    score = logits.gather(1, targets.to(device)[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, features)
    weights = gradient.mean((2, 3), keepdim=True)
    maps = F.relu((weights * features).sum(1)).detach().cpu()
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


def overlay(images, maps):
    """Images with their maps laid over them in colour, uint8 (N, 32, 32, 3)."""
    size = images.shape[1:3]
    maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    colours = torch.from_numpy(
        matplotlib.colormaps["inferno"](maps[:, 0].numpy())[..., :3]
    )
    return (0.4 * images + 0.6 * 255 * colours).round().to(torch.uint8)
