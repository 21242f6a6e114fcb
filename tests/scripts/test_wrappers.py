"""The shell wrappers, in a copy of the repository whose path has a space. Nothing is installed: where an environment
has to be made, a stand-in for python3 records how it was called."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.wrappers import WRAPPER, active, installations, run


def test_active_environment_is_used_as_it_is(repo, tmp_path, tiny_folder, sample_text):
    text = tmp_path / "a text.txt"
    text.write_text(sample_text * 3, encoding="utf-8")
    options = ["--model", tiny_folder, "--text", "a text.txt", "--length", "32", "--num_texts", "2"]
    result = run(repo / WRAPPER, "tiny", *options, "--k_sweep_texts", 0, env=active(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "| sequential " in result.stdout
    assert "| sequential | 2 |" in (repo / "results/decode-tiny/table.md").read_text()
    assert (repo / "results/decode-tiny/metrics.json").exists()
    assert not (repo / ".venv").exists()
    again = run(repo / WRAPPER, "tiny", *options, "--k_sweep_texts", 0, "--k", 2, env=active(), cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("asarm decode: ")
    assert "(k 4, now 2)" in again.stderr


def test_exit_code_and_line_of_bad_input(repo, tmp_path):
    result = run(repo / WRAPPER, "papper", env=active(), cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "asarm decode: unknown preset 'papper': choose from paper, small, tiny\n"


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], "decode paper --output_dir {repo}/results/decode-paper"),
        (["--k", "7"], "decode paper --output_dir {repo}/results/decode-paper --k 7"),
        (["tiny", "--k", "7"], "decode tiny --output_dir {repo}/results/decode-tiny --k 7"),
        (["ablate-k"], "decode ablate-k paper --output_dir {repo}/results/decode-ablate-k-paper"),
        (
            ["ablate-tolerance", "tiny", "--k", "7"],
            "decode ablate-tolerance tiny --output_dir {repo}/results/decode-ablate-tolerance-tiny --k 7",
        ),
    ],
)
def test_arguments_are_passed_on(repo, bare, tmp_path, given, passed):
    result = run(repo / WRAPPER, *given, env=bare, cwd=tmp_path)
    assert result.stdout == f"ran: -m asarm {passed.format(repo=repo)}\n"


def test_installs_once_and_again_when_requirements_change(repo, bare, tmp_path):
    assert run(repo / WRAPPER, env=bare, cwd=tmp_path).returncode == 0
    assert len(installations(bare)) == 2  # the requirements, and the package
    assert f"-r {repo}/requirements.txt" in installations(bare)[0]
    assert run(repo / WRAPPER, env=bare, cwd=tmp_path).returncode == 0
    assert len(installations(bare)) == 2
    with (repo / "requirements.txt").open("a") as file:
        file.write("another==1.0\n")
    assert run(repo / WRAPPER, env=bare, cwd=tmp_path).returncode == 0
    assert len(installations(bare)) == 4


def test_interrupted_installation_is_started_over(repo, bare, tmp_path):
    failed = run(repo / WRAPPER, env=bare | {"PIP_EXIT": "1"}, cwd=tmp_path)
    assert failed.returncode != 0
    assert "ran:" not in failed.stdout
    (repo / ".venv/half a package").touch()
    again = run(repo / WRAPPER, env=bare, cwd=tmp_path)
    assert again.returncode == 0
    assert "was interrupted" in again.stderr
    assert not (repo / ".venv/half a package").exists()
    assert "ran:" in run(repo / WRAPPER, env=bare, cwd=tmp_path).stdout


def test_killed_installation_is_started_over(repo, bare, tmp_path):
    process = subprocess.Popen(["bash", str(repo / WRAPPER)], env=bare, cwd=tmp_path, start_new_session=True)
    while not installations(bare):
        time.sleep(0.02)
    os.killpg(process.pid, 9)
    process.wait()
    assert "was interrupted" in run(repo / WRAPPER, env=bare, cwd=tmp_path).stderr
    assert (repo / ".venv/asarm-requirements.txt").exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_wrappers_at_once_install_once(repo, bare, tmp_path):
    processes = [
        subprocess.Popen(["bash", str(repo / WRAPPER)], env=bare, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert all(output.startswith("ran:") for output in outputs)
    assert len(installations(bare)) == 2


def test_python_without_venv(repo, bare, tmp_path):
    stand_in = Path(bare["PATH"].split(":")[0]) / "python3"
    stand_in.write_text(stand_in.read_text().replace("case", '[ "$1" = -c ] && exit 1\ncase', 1))
    result = run(repo / WRAPPER, env=bare, cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "install Python 3.10" in result.stderr
    assert not (repo / ".venv").exists()


def test_spooled_copy_finds_the_repository_where_it_was_submitted(repo, bare, tmp_path):
    """Slurm runs a copy called slurm_script in its own folder."""
    spool = tmp_path / "spool" / "job1"
    spool.mkdir(parents=True)
    script = shutil.copy(repo / WRAPPER, spool / "slurm_script")
    result = run(script, "tiny", env=bare | {"SLURM_SUBMIT_DIR": str(repo), "SLURM_JOB_ID": "1"}, cwd=spool)
    assert result.stdout == f"ran: -m asarm decode tiny --output_dir {repo}/results/decode-tiny\n"


def test_spooled_copy_asks_slurm_when_submitted_from_elsewhere(repo, bare, tmp_path):
    script = shutil.copy(repo / WRAPPER, tmp_path / "slurm_script")
    scontrol = Path(bare["PATH"].split(":")[0]) / "scontrol"
    job = f"JobId=7\\n   Command={repo}/{WRAPPER} tiny\\n   WorkDir=/\\n"
    scontrol.write_text(f'#!/bin/sh\n[ "$3" = 7 ] && printf "{2 * job}"')  # the last job of an array, and another
    scontrol.chmod(0o755)
    result = run(script, "tiny", env=bare | {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}, cwd=tmp_path)
    assert result.stdout == f"ran: -m asarm decode tiny --output_dir {repo}/results/decode-tiny\n", result.stderr


ARRAY = {"SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_MIN": "1"}


@pytest.mark.parametrize(
    ("script", "variables", "ran"),
    [
        ("slurm_script", {}, "RANK= WORLD_SIZE= asarm"),
        ("slurm_script", {"SLURM_NTASKS": "1"}, "RANK= WORLD_SIZE= asarm"),
        ("slurm_script", {"NPROC_PER_NODE": "3"}, "torchrun --nproc_per_node=3 asarm"),
        ("slurm_script", ARRAY | {"SLURM_ARRAY_TASK_ID": "5"}, "RANK=2 WORLD_SIZE=4 asarm"),
        (WRAPPER, ARRAY | {"SLURM_ARRAY_TASK_ID": "5"}, "RANK= WORLD_SIZE= asarm"),  # of a script that calls it
        ("slurm_script", {"SLURM_NTASKS": "2"}, "RANK=1 WORLD_SIZE=2 asarm"),
        ("slurm_script", ARRAY | {"SLURM_ARRAY_TASK_ID": "5", "SLURM_NTASKS": "2"}, "RANK=5 WORLD_SIZE=8 asarm"),
        ("slurm_script", ARRAY | {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MAX": "9"}, ""),
        ("slurm_script", ARRAY | {"SLURM_ARRAY_TASK_ID": "5", "NPROC_PER_NODE": "2"}, ""),
    ],
)
def test_processes_of_an_evaluation(repo, bare, tmp_path, script, variables, ran):
    """srun starts one task, the second."""
    programs = Path(bare["PATH"].split(":")[0])
    python = (programs / "python3").read_text().replace("*has_packages.py*) exit 1", "*has_packages.py*) exit 0")
    python = python.replace(
        "printf 'ran: %s\\n' \"$*\"", 'echo "RANK=${RANK-} WORLD_SIZE=${WORLD_SIZE-} asarm ${*:3:2}"'
    )
    python = python.replace(
        '    "-m asarm', '    *torch.distributed.run*) echo "torchrun $4 asarm ${*:7:2}" ;;\n    "-m asarm'
    )
    (programs / "python3").write_text(python)
    (programs / "srun").write_text('#!/bin/sh\nshift 2\nSLURM_PROCID=1 SLURM_LOCALID=1 exec "$@"\n')
    (programs / "scontrol").write_text("#!/bin/sh\n")
    for name in ("srun", "scontrol"):
        (programs / name).chmod(0o755)
    environment = bare | {"SLURM_SUBMIT_DIR": str(repo), "SLURM_ARRAY_TASK_MAX": "7"} | variables
    copy = shutil.copy(repo / WRAPPER, tmp_path / script)
    result = run(copy, "ablate-k", "tiny", env=environment, cwd=tmp_path)
    assert result.stdout == (f"{ran} decode ablate-k\n" if ran else "")
    assert bool(result.stderr) == (result.returncode == 2) == (ran == "")


@pytest.mark.parametrize(("replaced", "by"), [("torch>=2.11", "torch>=99"), ("scipy>=1.11", "no-such-package>=1")])
def test_environment_with_missing_or_old_packages_is_not_used(repo, replaced, by):
    check = [sys.executable, str(repo / "src/scripts/has_packages.py")]
    assert subprocess.run(check, check=False).returncode == 0
    assert subprocess.run([*check, "test"], check=False).returncode == 0
    project = repo / "pyproject.toml"
    assert replaced in project.read_text()
    project.write_text(project.read_text().replace(replaced, by))
    assert subprocess.run(check, check=False).returncode == 1
