"""Which part of a run a process does, as its launcher says."""

import os

import pytest

from asarm.utils.cluster.processes import (
    LAUNCHERS,
    Shard,
    local_rank,
    own_cpus,
    shows_progress,
    this_shard,
    usable_cpus,
)
from asarm.utils.errors import InputError

CPUS = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [*(name for names in LAUNCHERS for name in names), *os.environ]:
        if name.startswith(("SLURM_", "LOCAL_")) or any(name in names for names in LAUNCHERS):
            monkeypatch.delenv(name, raising=False)


def start(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("variables", "shard", "local"),
    [
        ({}, Shard(), 0),
        ({"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1}, Shard(5, 8), 1),
        ({"SLURM_PROCID": 2, "SLURM_STEP_NUM_TASKS": 4, "SLURM_LOCALID": 0}, Shard(2, 4), 0),
        ({"SLURM_PROCID": 0, "SLURM_NTASKS": 4}, Shard(), 0),  # a batch script, which is not a task of a step
        ({"SLURM_PROCID": 0, "SLURM_STEP_NUM_TASKS": 1, "RANK": 1, "WORLD_SIZE": 2}, Shard(1, 2), 0),
        ({"SLURM_ARRAY_TASK_ID": 3, "SLURM_ARRAY_TASK_COUNT": 8}, Shard(), 0),  # that is left to the wrappers
        ({"OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_LOCAL_RANK": 1}, Shard(1, 2), 1),
    ],
)
def test_launchers(monkeypatch, variables, shard, local):
    start(monkeypatch, **variables)
    assert (this_shard(), local_rank()) == (shard, local)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": 2, "WORLD_SIZE": 2}, "RANK=2 is no number of a process: with WORLD_SIZE=2 give 0 to 1"),
        ({"RANK": 0, "WORLD_SIZE": 0}, "WORLD_SIZE=0 is no number of processes"),
        ({"RANK": "one", "WORLD_SIZE": 2}, "RANK=one is no number"),
    ],
)
def test_bad_numbers(monkeypatch, variables, message):
    start(monkeypatch, **variables)
    with pytest.raises(InputError, match=message):
        this_shard()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_all_work(count):
    shares = [Shard(index, count).of(range(5)) for index in range(count)]
    assert sorted(number for share in shares for number in share) == list(range(5))


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"RANK": 0, "WORLD_SIZE": 2}, True),
        ({"RANK": 1, "WORLD_SIZE": 2}, False),
        ({"RANK": 5, "WORLD_SIZE": 8, "SLURM_ARRAY_TASK_ID": 5, "SLURM_PROCID": 0}, True),
        ({"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "SLURM_ARRAY_TASK_ID": 2, "SLURM_PROCID": 1}, False),
    ],
)
def test_one_process_of_a_log_shows_progress(monkeypatch, variables, shown):
    start(monkeypatch, **variables)
    assert shows_progress() == shown


@pytest.mark.parametrize(
    ("variables", "usable", "own"),
    [
        ({}, CPUS, CPUS),
        ({"LOCAL_WORLD_SIZE": 2}, CPUS, max(1, CPUS // 2)),
        ({"LOCAL_WORLD_SIZE": 1000}, CPUS, 1),
        ({"SLURM_CPUS_PER_TASK": 12}, 12, 12),
        ({"SLURM_CPUS_PER_TASK": 12, "LOCAL_WORLD_SIZE": 4}, 12, 3),  # torchrun in one task
    ],
)
def test_cpus(monkeypatch, variables, usable, own):
    start(monkeypatch, **variables)
    assert (usable_cpus(), own_cpus()) == (usable, own)
