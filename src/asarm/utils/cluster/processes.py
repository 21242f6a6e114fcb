"""The processes of a run, as their launcher says: torchrun, accelerate launch, mpirun, srun."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from asarm.utils.errors import InputError

Part = TypeVar("Part")
# Variables that hold the number of a process, the number of all, and the process's number on its host. Those of a step
# of srun come last: torchrun, too, is started by srun where there are several hosts.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Shard:
    """What one of `count` processes does of a run: every count-th part of the work, from number `index` (0, 1, ...)."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"

    def of(self, work: Sequence[Part]) -> Sequence[Part]:
        """This process's share."""
        return work[self.index :: self.count]


WHOLE = Shard()  # of a run of one process


def this_shard() -> Shard:
    """What this process does: all, if no launcher says otherwise. Raises InputError if its number is not one of all."""
    rank, size, _ = _names()
    shard = Shard(_number(rank, 0), _number(size, 1))
    if shard.count < 1:
        raise InputError(f"{size}={shard.count} is no number of processes: give at least 1")
    if shard.index >= shard.count:
        last = shard.count - 1
        raise InputError(f"{rank}={shard.index} is no number of a process: with {size}={shard.count} give 0 to {last}")
    return shard


def local_rank() -> int:
    """The number of this process among those of the run on this host."""
    return _number(_names()[2], 0)


def use_own_gpu() -> None:
    """Let "cuda" mean another GPU in each process of a host, as far as there are GPUs."""
    import torch

    if this_shard().count > 1 and torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())


def connect(timeout: timedelta) -> None:
    """Connect the processes, by gloo, for what must be exchanged. timeout: how long one waits for others.

    Raises InputError when they were not started by a launcher that says where they meet.
    """
    import torch

    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise InputError("the processes do not know where to meet: start them with torchrun or accelerate launch")
    if not torch.distributed.is_initialized():
        shard = this_shard()
        torch.distributed.init_process_group("gloo", rank=shard.index, world_size=shard.count, timeout=timeout)
        atexit.register(torch.distributed.destroy_process_group)


def usable_cpus() -> int:
    """How many CPUs this process may keep busy while others of the run wait: its task's under Slurm, or all that it may
    run on."""
    if "SLURM_CPUS_PER_TASK" in os.environ:
        return max(1, _number("SLURM_CPUS_PER_TASK", 1))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cpus() -> int:
    """How many CPUs this process may keep busy while others of the run on this host do the same: its share."""
    return max(1, usable_cpus() // _number("LOCAL_WORLD_SIZE", 1))


def shows_progress() -> bool:
    """Whether this process shows how far the run has come: the first of all, and of each job of a Slurm array, which
    has a log of its own."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return _number("SLURM_PROCID", 0) == local_rank() == 0
    return this_shard().index == 0


def _names() -> tuple[str, str, str]:
    """The variables of the launcher that started this process."""
    return next((names for names in LAUNCHERS if names[1] in os.environ), LAUNCHERS[0])


def _number(name: str, default: int) -> int:
    """The number that a variable of the environment holds. InputError if that is none."""
    value = os.environ.get(name, "").strip() or str(default)
    if not value.isdecimal():
        raise InputError(
            f"{name}={value} is no number: unset it, or start the processes with torchrun, accelerate or srun"
        )
    return int(value)
