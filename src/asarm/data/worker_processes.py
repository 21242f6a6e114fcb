"""Worker processes that read for a training process, and that end as soon as it says so or is gone.

A cluster's signals go to all processes of a job, and Ctrl-C to all of a terminal. Only the training process heeds them:
it ends its step, saves, and ends the workers. They ignore signals, and so also those by which Python ends them when a
training process exits, before it waits for them without a limit. Hence each worker watches a pipe.
"""

import atexit
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch

from asarm.utils.cluster.preemption import SIGNALS
from asarm.utils.errors import InputError, first_line

GRACE = 1.0  # seconds in which a worker may end what it does before it is ended


class WorkerProcesses:
    """What an iterable dataset of torch yields, read by `count` worker processes, or by this one if that is 0.

    Ends the workers when it is closed, as a context manager, or at the latest when this process exits, however it does.
    An exception of a worker is raised here, with the worker's traceback in its message.
    """

    def __init__(self, dataset: torch.utils.data.IterableDataset, count: int):
        self.count = count
        self.receiver, self.sender = multiprocessing.Pipe(duplex=False)
        atexit.register(_end, weakref.ref(self))
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=None, num_workers=count, worker_init_fn=self._begin_worker if count else None,
            collate_fn=_as_it_is,
        )  # fmt: skip
        self.iterator: Iterator[Any] = iter(loader)

    def __iter__(self) -> "WorkerProcesses":
        return self

    def __next__(self) -> Any:
        return next(self.iterator)

    def __enter__(self) -> "WorkerProcesses":
        return self

    def __exit__(self, _: type | None, error: BaseException | None, __: TracebackType | None) -> None:
        """Close. Raises InputError instead of torch's RuntimeError for a worker that was killed, as for its memory."""
        try:
            self.close()
        except RuntimeError as death:  # torch raises it from a signal handler: wherever this process happens to be
            error = death
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            raise InputError(
                f"a process that reads the data was killed ({first_line(error)}): if memory was short, lower "
                "num_workers or shuffle_buffer; the same command goes on from the last checkpoint"
            ) from error

    def close(self) -> None:
        """End the workers: those that are idle in order, others after GRACE seconds in the middle of what they do."""
        timer = threading.Timer(GRACE, self.end)
        try:
            timer.start()
            if self.count:
                self.iterator._shutdown_workers()  # type: ignore[attr-defined]  # else torch does it when it likes
        finally:
            timer.cancel()
            self.end()

    def end(self) -> None:
        """End the workers now. Does not wait for them."""
        os.write(self.sender.fileno(), bytes(self.count))  # a byte for each

    def _begin_worker(self, _: int) -> None:
        self.sender.close()  # so that the pipe ends with the training process
        for number in (*SIGNALS, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=self._await_end, daemon=True).start()

    def _await_end(self) -> None:
        os.read(self.receiver.fileno(), 1)  # also returns when there is nobody left to write
        os._exit(0)  # torch reports any other code as a worker that died


def _as_it_is(item: Any) -> Any:
    """Instead of torch's conversion to tensors, which share memory through sockets that die with a worker."""
    return item


def _end(reference: "weakref.ref[WorkerProcesses]") -> None:
    workers = reference()
    if workers is not None:
        workers.end()
