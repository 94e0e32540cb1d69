"""A DataLoader whose worker processes end with the script, however that ends."""

import atexit
import multiprocessing
import signal
import weakref

from torch.utils.data import DataLoader

WORKERS = weakref.WeakSet()  # the processes that loaders of this module started


class Loader(DataLoader):
    """A DataLoader that notes its worker processes, for `stop_workers` to end at exit."""

    def __init__(self, *args, **settings):
        super().__init__(*args, worker_init_fn=leave_stopping_to_parent, **settings)

    def __iter__(self):
        if self.num_workers == 0:
            return super().__iter__()
        atexit.unregister(stop_workers)  # one call serves any number of loaders
        atexit.register(stop_workers)
        others = set(multiprocessing.active_children())
        try:
            return super().__iter__()
        finally:  # also where Ctrl-C comes while they start
            WORKERS.update(set(multiprocessing.active_children()) - others)


def leave_stopping_to_parent(_):
    """In a worker: what stops the training stops the workers, by its own hand."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def stop_workers():
    """End the worker processes that still run, and no other process.

    They ignore the signal by which Python ends its child processes at exit: Python would
    wait for ever for those of a loader that is still held.
    """
    running = [child for child in multiprocessing.active_children() if child in WORKERS]
    if running and hasattr(signal, "SIGCHLD"):
        # Or torch raises an error as soon as it hears of the first that is killed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in running:
        worker.kill()
