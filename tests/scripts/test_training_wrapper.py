"""_run_training.sh: presets, several processes, and Slurm, with stand-ins for python3, srun and scontrol."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import XLNetConfig, XLNetLMHeadModel

from support.hub import Hub
from support.paths import REPO
from support.training import PROSE
from support.wrappers import active, run
from support.xlnet_tokenizer import write_spiece_model

TRAIN = "_run_training.sh"


@pytest.fixture
def wrapper(repo):
    return Path(shutil.copy(REPO / TRAIN, repo / TRAIN))


@pytest.fixture
def slurm(bare, tmp_path):
    """A job of two nodes with two tasks each; its srun runs the second task."""
    programs = Path(bare["PATH"].split(":")[0])
    (programs / "scontrol").write_text('#!/bin/sh\n[ "$2" = hostnames ] && printf "%s\\n" node1 node2\n')
    (programs / "srun").write_text(
        '#!/bin/bash\necho "srun $1 $2 $MASTER_ADDR $MASTER_PORT"\nshift 2\nSLURM_PROCID=3 SLURM_LOCALID=1 exec "$@"\n'
    )
    python = (programs / "python3").read_text()
    (programs / "python3").write_text(
        python.replace("printf 'ran:", "printf 'rank %s %s of %s, ' $RANK $LOCAL_RANK $WORLD_SIZE; printf 'ran:")
    )
    for name in ("scontrol", "srun"):
        (programs / name).chmod(0o755)
    return bare | {
        "SLURM_JOB_ID": "123",
        "SLURM_NTASKS": "4",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], "paper-nlp --output_dir {repo}/results/train-paper-nlp"),
        (["tiny", "--seed", "7"], "tiny --output_dir {repo}/results/train-tiny --seed 7"),
        (["--dry_run"], "paper-nlp --output_dir {repo}/results/train-paper-nlp --dry_run"),
        (["--train_files", "a b", "--output_dir", "c"], "--train_files a b --output_dir c"),
        (["--seed", "7", "--dataset=a", "--output_dir", "c"], "--seed 7 --dataset=a --output_dir c"),
        (["tiny", "--train_files", "a"], "tiny --output_dir {repo}/results/train-tiny --train_files a"),
    ],
)
def test_arguments_are_passed_on(wrapper, bare, tmp_path, given, passed):
    result = run(wrapper, *given, env=bare, cwd=tmp_path)
    assert result.stdout == f"ran: -m asarm train {passed.format(repo=wrapper.parent)}\n", result.stderr


def test_several_processes_on_one_machine(wrapper, bare, tmp_path):
    result = run(wrapper, "tiny", env=bare | {"NPROC_PER_NODE": "2"}, cwd=tmp_path)
    log = (tmp_path / "log").read_text().splitlines()
    assert result.returncode == 0
    assert "-m torch.distributed.run --standalone --nproc_per_node=2 -m asarm train tiny" in log[-1]


def test_tasks_of_slurm_get_their_ranks(wrapper, slurm, tmp_path):
    result = run(wrapper, "tiny", "--seed", "7", env=slurm, cwd=tmp_path)
    first, second = result.stdout.splitlines()
    assert first == "srun --kill-on-bad-exit=1 --cpus-per-task=2 node1 20123"
    assert second == (
        f"rank 3 1 of 4, ran: -m asarm train tiny --output_dir {wrapper.parent}/results/train-tiny --seed 7"
    )


def test_exit_code_and_line_of_bad_input(wrapper, tmp_path):
    result = run(wrapper, "papper", env=active(), cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("asarm train: unknown preset 'papper': choose from tiny, small, paper-nlp,")


@pytest.mark.slow
def test_a_dry_run_of_tiny(wrapper, tmp_path):
    result = run(wrapper, "tiny", "--dry_run", "--cache_dir", tmp_path / "cache", env=active(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for part in ("800 steps of 1,024 tokens", "estimated", "--- text 4 of the first batch ---"):
        assert part in result.stdout
    assert not (wrapper.parent / "results").exists()


@pytest.mark.slow
def test_a_dry_run_of_the_paper_starts_from_pickled_weights(wrapper, tmp_path):
    """XLNet's repository as it is said to be: pytorch_model.bin and spiece.model, and nothing newer."""
    model, dataset = tmp_path / "model", tmp_path / "dataset"
    for folder in (model, dataset):
        folder.mkdir()
    write_spiece_model(model, PROSE, 60)
    shape = {"vocab_size": 80, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
    reference = XLNetLMHeadModel(XLNetConfig(**shape))
    reference.config.save_pretrained(model)
    torch.save(reference.state_dict(), model / "pytorch_model.bin")
    rows = [json.dumps({"text": text}) for text in PROSE.splitlines()]
    (dataset / "train.jsonl").write_text("\n".join(rows))
    with Hub({"xlnet/xlnet-base-cased": {"main": model}, "Skylion007/openwebtext": {"main": dataset}}) as hub:
        env = active() | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "*",
        }
        result = run(wrapper, "--dry_run", env=env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"xlnet, [\d,]+ parameters; streamed from Skylion007/openwebtext by 16 readers", result.stdout)
    assert "cats of house" in result.stdout
    assert [request for request in hub.requests if re.search("GET /cdn/xlnet/.*/pytorch_model.bin", request)]
