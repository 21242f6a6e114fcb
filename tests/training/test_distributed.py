"""Distributed training: two processes (gloo, on the CPU) do what one does with twice the accumulation steps."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch

from asarm.cli.train import parse_arguments
from asarm.models.load import load
from asarm.training import distributed
from asarm.training.distributed import fsdp_plugin
from asarm.training.trainer import Trainer
from asarm.utils.errors import InputError
from asarm.utils.folder_lock import locked
from support.llama import save_llama
from support.training import PROSE, run_config, steps, weights

OPTIONS = {
    "block_size": 32, "max_steps": 20, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 5,
    "eval_steps": 10, "save_steps": 10, "logging_steps": 1, "held_out": 0.1, "eval_blocks": 8, "eval_decodings": 2,
    "vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "mask_low": 0.3,
    "draft_weight": 0.5, "streams": 4, "num_workers": 2,
}  # fmt: skip


def free_port():
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


ONE = [sys.executable, "-m", "asarm"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "asarm"]
# Its launcher of GPUs is the one that starts several processes; with none there they run on the CPU.
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
    "--dynamo_backend=no", f"--main_process_port={free_port()}",
]  # fmt: skip
ACCELERATE = [*LAUNCH, "--multi_gpu", "--module", "asarm"]
ACCELERATE_FSDP = [*LAUNCH, "--use_fsdp", "--fsdp_version=2", "--module", "asarm"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same text as a file and as a folder of JSON lines."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "prose.txt").write_text(PROSE, encoding="utf-8")
    save_llama(folder / "llama", PROSE, tie_word_embeddings=True)
    (folder / "lines").mkdir()
    for file in range(4):
        rows = [json.dumps({"text": PROSE[n * 100 : n * 100 + 150]}) for n in range(file, 400, 4)]
        (folder / "lines" / f"{file}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def command(launcher, sources, run, kind="file", **changes):
    source = {
        "file": {"train_files": sources / "prose.txt"},
        "stream": {"dataset": sources / "lines"},
        "unpacked": {"train_files": sources / "lines", "unpacked": True, "order": "random", "loss_scale": "rate"},
        "lora": {
            "train_files": sources / "prose.txt", "init_from": sources / "llama", "lora_rank": 4, "learning_rate": 0.02,
        },
    }  # fmt: skip
    options = OPTIONS | source[kind] | {"output_dir": run, "cache_dir": sources / "cache"} | changes
    return [*launcher, "train", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def environment(**more):
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "ACCELERATE_"))}
    return keep | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def train(*arguments, env=None, **changes):
    done = subprocess.run(
        command(*arguments, **changes),
        capture_output=True,
        text=True,
        env=env or environment(),
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def train_here(*arguments, **changes):
    """Train in this process. Returns the trainer, after its run."""
    trainer = Trainer(parse_arguments(command([], *arguments, **changes)[1:]))
    trainer.run()
    return trainer


def curve(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return torch.tensor([[line["joint"], line["draft"]] for line in lines if "joint" in line])


def nll(run):
    return json.loads((run / "metrics.json").read_text())["nll_0.5"]


@pytest.fixture(scope="module")
def single(sources, tmp_path_factory):
    """The runs of one process, by kind of source."""
    runs = {}

    def of(kind):
        if kind not in runs:
            runs[kind] = tmp_path_factory.mktemp("single") / kind
            train(ONE, sources, runs[kind], kind, gradient_accumulation_steps=4)
        return runs[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "kind"),
    [(TORCHRUN, "file"), (TORCHRUN, "stream"), (TORCHRUN, "unpacked"), (TORCHRUN, "lora"), (ACCELERATE, "file")],
    ids=["torchrun-file", "torchrun-stream", "torchrun-unpacked", "torchrun-lora", "accelerate-file"],
)  # fmt: skip
def test_two_processes_give_the_curve_of_one(sources, single, tmp_path, launcher, kind):
    run = tmp_path / "run"
    train(launcher, sources, run, kind, gradient_accumulation_steps=2)
    expected = curve(single(kind))
    assert expected.shape == (20, 2)
    assert expected[-1, 0] < expected[0, 0] - 0.2
    difference = (curve(run) - expected).abs().max()
    print(f"largest difference of the losses: {difference:.2g}")
    assert difference < 1e-4
    assert nll(run) == pytest.approx(nll(single(kind)), abs=1e-4)
    assert json.loads((run / "config.json").read_text())["micro_batches_per_step"] == 4


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(sources, single, tmp_path):
    """From one to two and back, at steps at which the readers of the stream are in the middle of what they read."""
    run, expected = tmp_path / "run", curve(single("stream"))
    shutil.copytree(single("stream"), run)

    def back_to_step(step):
        for path in [run / "model", *(run / f"checkpoint-{later:06d}" for later in steps(run) if later > step)]:
            shutil.rmtree(path)

    back_to_step(10)
    done = train(TORCHRUN, sources, run, "stream", gradient_accumulation_steps=2, save_steps=5)
    assert "resumed at step 10" in done.stderr
    back_to_step(15)
    assert train_here(sources, run, "stream", gradient_accumulation_steps=4).resumed.name == "checkpoint-000015"
    difference = (curve(run) - expected).abs().max()
    print(f"largest difference of the losses: {difference:.2g}")
    assert len(curve(run)) == 20
    assert difference < 1e-5


@pytest.mark.slow
def test_a_sharded_run_goes_on_in_one_process_and_back(sources, single, tmp_path):
    """FSDP on two processes saves; one process goes on from there; its checkpoint goes on sharded."""
    run, env = tmp_path / "run", environment(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    train(TORCHRUN, sources, run, "file", gradient_accumulation_steps=2, env=env)
    expected = curve(single("file"))
    assert (curve(run) - expected).abs().max() < 1e-4
    assert nll(run) == pytest.approx(nll(single("file")), abs=1e-4)
    sharded, whole = weights(run), weights(single("file"))
    assert sharded.keys() == whole.keys()
    assert all((sharded[name] - value).abs().max() < 1e-3 for name, value in whole.items())

    def back_to_step_10():
        for path in [*(run / "model").iterdir(), *run.glob("checkpoint-000020/**/*"), run / "metrics.json"]:
            if path.is_file():
                path.unlink()

    back_to_step_10()
    done = train(ONE, sources, run, "file", gradient_accumulation_steps=4)
    assert "resumed at step 10" in done.stderr
    assert "checkpoint-000020 is torn" in done.stderr
    assert (curve(run) - expected).abs().max() < 1e-4
    back_to_step_10()
    assert "resumed at step 10" in train(TORCHRUN, sources, run, "file", gradient_accumulation_steps=2, env=env).stderr
    assert (curve(run) - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_a_sharded_llama_in_bfloat16(sources, tmp_path):
    """Its input and output layers are one. What is computed in bfloat16, and what not, is as in one process."""
    options = {"init_from": sources / "llama", "bf16": True, "max_steps": 4, "eval_decodings": 0}
    train_here(sources, tmp_path / "one", gradient_accumulation_steps=4, **options)
    train(ACCELERATE_FSDP, sources, tmp_path / "two", gradient_accumulation_steps=2, **options)
    one, two = (curve(tmp_path / name) for name in ("one", "two"))
    difference = (one - two).abs().max()
    print(f"largest difference of the losses: {difference:.2g}")
    assert len(one) == 4
    assert difference < 1e-5
    whole, sharded = (load(tmp_path / name / "model")[0].state_dict() for name in ("one", "two"))
    assert all(torch.allclose(value, whole[name], atol=1e-4) for name, value in sharded.items())


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FSDP_VERSION", "1", "give it fsdp_version: 2"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "use --gradient_checkpointing instead"),
    ],
)
def test_settings_of_fsdp_that_are_not_supported(monkeypatch, variable, value, message):
    assert fsdp_plugin() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert fsdp_plugin().fsdp_version == 2
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=message):
        fsdp_plugin()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "muon"}, "optimizer muon needs whole matrices"),
        ({"init_from": "llama", "lora_rank": 4}, "is not for FSDP"),
    ],
)
def test_what_is_not_sharded(tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(distributed, "is_sharded", lambda _: True)
    with pytest.raises(InputError, match=message):
        distributed.wrap(None, None, run_config(tmp_path, **changes).training)


@pytest.mark.slow
def test_processes_of_two_runs_do_not_write_to_one_folder(sources, tmp_path):
    """The first process of the second run is refused, and the others end with it."""
    with locked(tmp_path / "run"):
        failed = subprocess.run(
            command(TORCHRUN, sources, tmp_path / "run", gradient_accumulation_steps=2),
            env=environment(), capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
    assert failed.returncode != 0
    assert failed.stderr.count(f"run is in use by process {os.getpid()} on host ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(sources, tmp_path):
    run = tmp_path / "run"
    long = command(TORCHRUN, sources, run, "stream", max_steps=100_000, gradient_accumulation_steps=2)
    launcher = subprocess.Popen(long, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_bytes()) < 100:
        assert launcher.poll() is None, launcher.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ranks = {
        process.environ()["RANK"]: process for process in psutil.Process(launcher.pid).children()
        if "RANK" in process.environ()
    }  # fmt: skip
    for process in [ranks["1"], *ranks["1"].children()]:  # and the workers that read for it
        process.send_signal(signal.SIGUSR1)
    errors = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 0, errors[-3000:]
    (stopped,) = {step for step in steps(run) if step % 10} or {steps(run)[-1]}
    assert f"stopped at step {stopped} by a signal" in errors
    states = json.loads((run / f"checkpoint-{stopped:06d}" / "data.json").read_text())
    assert sorted(states) == ["0", "1", "2", "3"]  # the readers of both


@pytest.mark.slow
def test_streams_that_processes_cannot_share_are_one_line(sources, tmp_path):
    done = subprocess.run(
        command(ONE, sources, tmp_path / "run", "stream", held_out=1e-6),
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("asarm train: the held-out documents of")
