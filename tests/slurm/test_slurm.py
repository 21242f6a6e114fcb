"""The wrappers as jobs of a real Slurm: bash tests/slurm/run.sh starts one and runs these tests.

The repository is a copy whose path has a space. Training is interrupted by its time limit, and pre-empted by jobs of a
partition of higher priority; what it then prints and writes must show that no step was lost or taken twice. Two nodes
train as one process does, and arrays of jobs share an evaluation.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
ON = os.environ.get("ASARM_TEST_SLURM") == "1"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(not ON, reason="needs a Slurm of its own: bash tests/slurm/run.sh"),
]

# Folder of the results: wrapper, arguments.
EVALUATIONS = {
    "decode-tiny": ("_run_speculative_decoding.sh", "tiny --num_texts 4 --k_sweep_texts 0"),
    "stories-tiny": ("_run_nlp_infill_eval.sh", "tiny --max_items 2 --trials 1 --gap_length oracle"),
    "language-tiny": ("_run_nlp_infill_eval.sh", "language tiny --max_items 4"),
    "code-tiny": ("_run_code_infill_eval.sh", "tiny --max_items 2 --samples_per_task 1 --gap_length oracle"),
}
SMALL = [
    "--train_files", REPO / "src/asarm/eval_datasets/sample_text.txt", "--vocab_size", "300", "--block_size", "64",
    "--n_embd", "64", "--n_layer", "2", "--eval_blocks", "4", "--eval_decodings", "2", "--logging_steps", "1",
]  # fmt: skip
ENDLESS = 100_000  # steps that no test waits for
MORE = 20  # steps that a training must take after it went on


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A copy of the repository, without results and environments."""
    copy = tmp_path_factory.mktemp("slurm") / "my repo"
    unwanted = (".git", ".venv*", "results", "__pycache__", ".pytest_cache", ".ruff_cache", "*.egg-info", "slurm-*.out")
    return Path(shutil.copytree(REPO, copy, ignore=shutil.ignore_patterns(*unwanted)))


def command(program, *arguments, cwd="/"):
    """What a program prints. CalledProcessError when it fails."""
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "HF_HUB_OFFLINE": "1", "MASTER_ADDR": "127.0.0.1"}
    words = [program, *map(str, arguments)]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=cwd).stdout.strip()


def finish(*arguments, cwd="/"):
    """Hand in a job, or an array, and wait for its end, which `sbatch --wait` sees up to ten seconds late."""
    number = command("sbatch", "--parsable", *arguments, cwd=cwd)
    while command("squeue", "--noheader", "--jobs", number):
        time.sleep(0.3)
    codes = re.findall(r"\bExitCode=(\S*)", command("scontrol", "show", "job", number))
    assert codes
    assert set(codes) == {"0:0"}, f"job {number} ended with {codes}"


class Job:
    """A job that was handed in in a folder, where its output goes, too."""

    def __init__(self, *arguments, cwd):
        self.number = command("sbatch", "--parsable", *arguments, cwd=cwd)
        self.log = Path(cwd) / f"slurm-{self.number}.out"

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def about(self, name: str) -> str:
        return re.search(rf"\b{name}=(\S*)", command("scontrol", "show", "job", self.number))[1]

    def wait(self, condition, seconds: float, lost=("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")):
        """Until condition() holds; fails with the job's output when it does not come to that, or the job is lost."""
        end = time.monotonic() + seconds
        while not (result := condition()):
            over = self.about("JobState") in lost
            assert not over, f"{self.about('JobState')}\n{self.output}"
            assert time.monotonic() < end, f"still {self.about('JobState')} after {seconds} s\n{self.output}"
            time.sleep(0.2)
        return result

    def cancel(self):
        """End the job, and wait until it has left the queue: its state is CANCELLED a moment before that."""
        command("scancel", self.number)
        self.wait(lambda: command("squeue", "--noheader", "--jobs", self.number) == "", 60, lost=())

    def complete(self, seconds: float):
        self.wait(lambda: self.about("JobState") == "COMPLETED", seconds)
        assert self.about("ExitCode") == "0:0"


def lines(run: Path) -> list[dict]:
    """The lines of metrics.jsonl that tell of a step of training."""
    path = run / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in found if "joint" in line]


def test_every_wrapper_is_tested():
    tested = {wrapper for wrapper, _ in EVALUATIONS.values()} | {"_run_training.sh"}
    assert {path.name for path in REPO.glob("_run_*.sh")} == tested


@pytest.mark.parametrize(
    ("results", "where"), zip(EVALUATIONS, 2 * ["in the repository", "in another copy"], strict=True)
)
def test_evaluations(repo, tmp_path, results, where):
    wrapper, arguments = EVALUATIONS[results]
    shutil.rmtree(repo / "results", ignore_errors=True)
    if where == "in the repository":
        cwd = repo
    else:  # Slurm gets the whole path, and that is what counts
        cwd, wrapper = tmp_path, repo / wrapper
        (tmp_path / "src/scripts").mkdir(parents=True)
        (tmp_path / "src/scripts/environment.sh").write_text("echo the wrong copy; exit 1\n")
    finish("--output=job.out", wrapper, *arguments.split(), cwd=cwd)
    assert str(repo / "results" / results) in (cwd / "job.out").read_text()
    assert (repo / "results" / results / "metrics.json").exists()
    assert [path.name for path in (repo / "results").iterdir()] == [results]
    assert not (tmp_path / "results").exists()


def results_of(folder: Path) -> list[str]:
    """The lines of an evaluation, without times. Nothing of several processes may be left."""
    assert sorted(path.name for path in folder.glob("*s-*.json*")) == []
    assert not (folder / "shards.json").exists()
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [json.dumps(row | {"seconds": 0}) for row in rows]


@pytest.fixture(scope="module")
def alone(repo, tmp_path_factory):
    """The results of evaluations by one process, outside of Slurm, by folder."""
    found = {}
    for results in ("decode-tiny", "code-tiny"):
        wrapper, arguments = EVALUATIONS[results]
        folder = tmp_path_factory.mktemp("alone") / results
        command("bash", repo / wrapper, *arguments.split(), "--output_dir", folder)
        found[results] = results_of(folder)
    return found


@pytest.mark.parametrize(
    ("results", "options"),
    [
        ("decode-tiny", ["--array=0-3"]),
        ("code-tiny", ["--array=1-3:2", "--partition=both", "--nodes=2", "--ntasks-per-node=1"]),
    ],
)
def test_an_array_shares_an_evaluation(repo, tmp_path, alone, results, options):
    """Four processes: those of four jobs, or those on two nodes of two jobs."""
    wrapper, arguments = EVALUATIONS[results]
    folder, output = tmp_path / "run", f"--output={tmp_path}/%a.out"
    finish(output, *options, repo / wrapper, *arguments.split(), "--output_dir", folder)
    assert results_of(folder) == alone[results]
    logs = "".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert logs.count(f": {folder}") == 1  # one process has merged
    assert all(f"shard {rank} of 4: " in logs for rank in range(4))


def test_an_array_with_gaps_is_refused(repo, tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        command("sbatch", "--wait", f"--output={tmp_path}/%a.out", "--array=0,1,5", "_run_nlp_infill_eval.sh", cwd=repo)
    assert caught.value.returncode == 2
    assert (tmp_path / "5.out").read_text().startswith("an array shares the work by numbers like 0-7, not 3 between 0")


def test_a_pre_empted_evaluation_goes_on(repo, tmp_path):
    """Two tasks are stopped when some of their lines are written, and put the job back."""
    run, arguments = (
        tmp_path / "run",
        "tiny --samplers sequential assd-self --trials 4 --gap_length oracle --batch_size 1",
    )
    options = ["--partition=main", "--ntasks-per-node=2", repo / "_run_nlp_infill_eval.sh", *arguments.split()]
    job = Job(*options, "--output_dir", run, cwd=tmp_path)
    job.wait(lambda: any(path.stat().st_size for path in run.glob("samples-*.jsonl")), 100)
    finish("--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap", "true")
    job.complete(300)
    assert int(job.about("Restarts")) == 1
    left = [int(number) for number in re.findall(r"; (\d+) of \d+ gaps to fill", job.output)]
    assert len(left) == 4
    assert sum(left[:2]) > sum(left[2:]) > 0
    assert len(set(results_of(run))) == len(results_of(run)) == sum(left[:2])


@pytest.mark.parametrize("where", ["in the repository", "elsewhere"])
def test_training(repo, tmp_path, where):
    shutil.rmtree(repo / "results", ignore_errors=True)
    name, cwd = ("_run_training.sh", repo) if where == "in the repository" else (repo / "_run_training.sh", tmp_path)
    finish(name, "tiny", *SMALL, "--cache_dir", tmp_path, "--max_steps", 10, cwd=cwd)
    run = repo / "results/train-tiny"
    assert [line["step"] for line in lines(run)] == list(range(1, 11))
    assert (run / "model/model.safetensors").exists()
    assert (run / "metrics.json").exists()
    # Its model decodes with the other wrapper.
    decode = ["--model", run / "model", "--num_texts", 2, "--length", 64, "--k_sweep_texts", 0]
    finish(repo / "_run_speculative_decoding.sh", "tiny", *decode, cwd=tmp_path)
    assert (repo / "results/decode-tiny/metrics.json").exists()


def test_training_on_two_nodes_is_that_of_one_process(repo, tmp_path):
    losses = []
    for nodes in (1, 2):
        run = tmp_path / f"on-{nodes}"
        options = [f"--nodes={nodes}", "--ntasks-per-node=1", "--partition=both", f"--output={tmp_path}/{nodes}.out"]
        settings = ["--max_steps", MORE + 1, "--gradient_accumulation_steps", 2 // nodes, "--cache_dir", tmp_path]
        finish(*options, repo / "_run_training.sh", "tiny", *SMALL, *settings, "--output_dir", run)
        losses.append([line["joint"] for line in lines(run)])
    assert_same_curve(*losses, 1e-3)
    assert losses[0][-1] < losses[0][0]


def test_a_failure_is_the_exit_code_of_the_job(repo):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        command("sbatch", "--wait", "--output=failed.out", "_run_training.sh", "papper", cwd=repo)
    assert caught.value.returncode == 2
    assert (repo / "failed.out").read_text().startswith("asarm train: unknown preset 'papper'")


@pytest.fixture(scope="module")
def train(repo, tmp_path_factory):
    """Hand in a training without end: train(NAME, options of sbatch, passes of a step) -> job, its folder."""
    cache = tmp_path_factory.mktemp("cache")

    def start(name, *options, passes=2):
        run = repo / "results" / name
        settings = [*SMALL, "--max_steps", ENDLESS, "--gradient_accumulation_steps", passes]
        settings += ["--save_steps", ENDLESS, "--eval_steps", ENDLESS, "--output_dir", run, "--cache_dir", cache]
        return Job(*options, "_run_training.sh", "tiny", *settings, cwd=repo), run

    return start


def goes_on(job, run) -> list[float]:
    """The losses of a job that was requeued, went on at the step at which it had stopped, and took each step once."""
    job.wait(lambda: re.search(r"resumed at step \d+ from", job.output), 120)
    stops = [int(step) for step in re.findall(r"stopped at step (\d+) by a signal", job.output)]
    resumptions = [int(step) for step in re.findall(r"resumed at step (\d+) from", job.output)]
    assert stops, job.output
    assert resumptions == stops
    assert stops[0] > 0
    assert len(stops) == int(job.about("Restarts"))
    job.wait(lambda: len(lines(run)) >= stops[-1] + MORE, 120)
    job.cancel()
    steps = [line["step"] for line in lines(run)]
    assert steps == list(range(1, len(steps) + 1))
    return [line["joint"] for line in lines(run)]


def assert_same_curve(losses: list[float], others: list[float], tolerance: float) -> None:
    """Of as many steps as both have."""
    count = min(len(losses), len(others))
    assert count > MORE
    assert losses[:count] == pytest.approx(others[:count], rel=tolerance, abs=0)


@pytest.fixture(scope="module")
def limited(train):
    """The losses of a training whose time was nearly up: Slurm sends SIGUSR1 two minutes before the end."""
    job, run = train("limited", "--time=60")
    job.wait(lambda: lines(run), 100)
    elapsed = sum(int(part) * unit for part, unit in zip(job.about("RunTime").split(":"), (3600, 60, 1), strict=True))
    command("scontrol", "update", f"JobId={job.number}", f"TimeLimit={elapsed // 60 + 2}")
    job.wait(lambda: int(job.about("Restarts")) == 1, 60)
    command("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    return goes_on(job, run)


def test_time_is_up(limited):
    assert limited[-1] < limited[0]


def pre_empt(job, run):
    """Let a job that is more urgent take the whole node for a moment."""
    job.wait(lambda: lines(run), 100)
    finish("--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap", "true")


def test_pre_empted(train, limited):
    """One process: Slurm gives it SIGTERM at the end of the partition's grace time, and puts the job back."""
    job, run = train("pre-empted", "--partition=main")
    pre_empt(job, run)
    assert_same_curve(goes_on(job, run), limited, 0)


def test_pre_empted_with_two_tasks(train, limited):
    """Slurm gives tasks of srun SIGTERM at the beginning of the grace time, and does not put back a job that ends
    before the end of it: the training does that itself."""
    job, run = train("two", "--partition=main", "--ntasks-per-node=2", passes=1)
    pre_empt(job, run)
    assert_same_curve(goes_on(job, run), limited, 1e-3)


def test_a_cancelled_job_saves_and_is_not_put_back(train):
    job, run = train("cancelled")
    job.wait(lambda: lines(run), 100)
    job.cancel()
    assert "stopped at step" in job.output
    assert job.about("JobState") == "CANCELLED"
    assert list(run.glob("checkpoint-*"))
