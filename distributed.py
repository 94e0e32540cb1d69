"""The processes of a training: one by itself, or those that torchrun started.

torchrun --standalone --nproc-per-node=2 train.py ...
"""

import os
import re
import sys
from datetime import timedelta
from typing import NamedTuple

import joblib
import torch
import torch.distributed as dist

from utils import UserError


class World(NamedTuple):
    """The processes that train together, and which of them this one is."""

    rank: int = 0
    size: int = 1

    def shard(self, items):
        """What of a sequence falls to this process: every `size`-th item."""
        return items[self.rank :: self.size]

    def gather(self, own):
        """The whole sequence, in order, on every process; `own` is its share."""
        if self.size == 1:
            return own
        shares = [None] * self.size
        dist.all_gather_object(shares, own)
        whole = [None] * sum(map(len, shares))
        for rank, items in enumerate(shares):
            whole[rank :: self.size] = items
        return whole

    def sum(self, tensor):
        """The sum of a tensor over the processes, in its place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_buffers(self, *modules):
        """Give every process the first one's buffers, such as running statistics."""
        if self.size > 1:
            for module in modules:
                for buffer in module.buffers():
                    dist.broadcast(buffer, 0)

    def first_on_its_node(self, function):
        """Call a function, on each node in one process before the others.

        What one downloads, the others find there.
        """
        waits = self.size > 1 and int(os.environ["LOCAL_RANK"]) > 0
        if waits:
            dist.barrier()
        result = function()
        if self.size > 1 and not waits:
            dist.barrier()
        return result


ALONE = World()


def cores():
    """How many CPU cores are this process's, by affinity and the container's limits."""
    return max(1, joblib.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def join(device):
    """Join the processes that torchrun started, where it did.

    Returns the `World` and the device of this process: a GPU each, or all the CPU. All but
    the first print nothing from here on. Raises UserError where GPUs are too few.
    """
    if torch.get_num_threads() > cores():  # torch does not see a container's limits
        torch.set_num_threads(cores())
    if not dist.is_torchelastic_launched():
        return ALONE, device
    count = torch.cuda.device_count()
    if device.type == "mps":
        raise UserError("torchrun takes --device cpu here: MPS knows one process alone")
    if device.type == "cuda":
        if int(os.environ["LOCAL_WORLD_SIZE"]) > count:
            raise UserError(f"there are {count} GPUs here: --nproc-per-node={count}")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    elif os.environ.get("OMP_NUM_THREADS") == "1":  # as torchrun sets it, unless it is
        torch.set_num_threads(cores())
    backend = "nccl" if device.type == "cuda" else "gloo"
    # torchrun keeps its store when it restarts: without a prefix the new processes may
    # find the addresses of the dead there.
    store, rank, size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    world = World(rank, size)
    # One may wait for all of another's trainings; of one that dies torchrun knows.
    settings = {
        "rank": world.rank,
        "world_size": world.size,
        "timeout": timedelta(days=7),
        "device_id": device if device.type == "cuda" else None,
    }
    dist.init_process_group(backend, store=store, **settings)
    if world.rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return world, device


def leave():
    """Leave the processes of `join`, if there are others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_lost(error):
    """Whether an error is that of a connection whose other process has gone."""
    return dist.is_initialized() and bool(
        re.search("gloo|nccl", str(error), re.IGNORECASE)
    )


def run_id():
    """What torchrun calls this training, in all its restarts; None without it."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def is_restart():
    """Whether torchrun has started this training again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
