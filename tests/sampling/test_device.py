"""Decoding on a device: no mixed devices, the tokens of a CPU, and few launches and waits of the host."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.sampling.fused import sample_fused
from support.fake_device import FakeDevice
from support.models import random_batch, tiny_gpt2, tiny_llama, tiny_xlnet
from support.paths import REPO, SOURCE

SETTINGS = {
    "sequential": {"sampler": "sequential"},
    "assd": {"k": 5},
    "assd-ngram": {"draft": "ngram", "k": 3, "coupling": "gumbel"},
    "fused": {"sampler": "fused", "k": 5},
    "fused-block": {"sampler": "fused", "k": 3, "coupling": "block"},
    "alternatives": {"sampler": "fused", "k": 3, "alternatives": 2},
    "parallel": {"sampler": "parallel", "steps": 3},
    "transformed": {
        "sampler": "fused", "k": 3, "temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.01,
        "repetition_penalty": 1.5, "bad_words_ids": [[2], [3, 4]],
    },
}  # fmt: skip
HEADS = {"blind": {}, "head": {"draft_head": 8}, "recurrent": {"draft_head": 8, "draft_recurrent": True}}


@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("open_gaps", [False, True])
def test_tokens_are_those_of_a_cpu(backbone, head, open_gaps):
    """Though rows idle for some steps there, all drafting queries are asked, and windows are never shortened."""
    model = backbone(20, **HEADS[head], gap_end_token_id=18)
    tokens, given, target = random_batch(4, 14, 18, 0)
    if open_gaps:
        tokens = tokens.masked_fill(given & target.roll(1, 1), 18)
    expected = {}
    for name, settings in SETTINGS.items():
        expected[name] = sample(model, tokens, given, target, SamplerConfig(**settings), range(4))
    with FakeDevice():
        model = model.to("cuda")
        inputs = [part.to("cuda") for part in (tokens, given, target)]
        for name, settings in SETTINGS.items():
            found = sample(model, *inputs, SamplerConfig(**settings), range(4))
            assert torch.equal(found.tokens.cpu(), expected[name].tokens), name
            for count in ("nfe", "targets", "proposed", "accepted"):
                assert torch.equal(getattr(found, count), getattr(expected[name], count)), (name, count)


class AlternatingWindow:
    """A window policy that prepares two drafts or none."""

    max_k, k = 2, 2

    def update(self, size, accepted):
        self.k = 2 - self.k


@pytest.mark.parametrize("head", HEADS)
def test_windows_without_drafts(head):
    model, inputs = tiny_gpt2(20, **HEADS[head]), random_batch(3, 40, 20, 0)
    expected = sample(model, *inputs, SamplerConfig(sampler="sequential"), range(3))
    config = SamplerConfig(sampler="fused", coupling="gumbel")
    with FakeDevice(), torch.inference_mode():
        found = sample_fused(model.to("cuda"), inputs.to("cuda"), config, range(3), False, AlternatingWindow())
        assert torch.equal(found.tokens.cpu(), expected.tokens)


# Launches outside the network for each function evaluation, at most, and evaluations for each wait, at least.
COSTS = {
    "sequential": (44, 20), "assd": (38, 20), "assd-ngram": (125, 8), "fused": (60, 8), "fused-block": (124, 8),
    "alternatives": (230, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTS)
def test_launches_and_waits(name):
    """512 tokens, 95 % masked, of a sharp model whose drafts are often rejected."""
    model = tiny_gpt2(200, n_positions=512, scale=4.0)
    tokens = torch.randint(0, 199, (1, 512), generator=torch.Generator().manual_seed(0))
    target = torch.arange(512)[None] % 20 != 3
    with FakeDevice() as gpu:
        model, inputs = model.to("cuda"), [part.to("cuda") for part in (tokens, ~target, target)]
        for method in ("hidden", "logits"):
            function = getattr(model, method)

            def counted(*arguments, function=function):
                with gpu.within("network"):
                    return function(*arguments)

            setattr(model, method, counted)
        gpu.reset()
        nfe = int(sample(model, *inputs, SamplerConfig(**SETTINGS[name]), [0]).nfe)
        launches, waits = gpu.launches["rest"] / nfe, sum(gpu.waits.values())
    most, least = COSTS[name]
    assert launches <= most
    assert nfe >= least * waits, f"{nfe} evaluations, {waits} waits"


def mutants() -> list[tuple[Path, int]]:
    """Files of the samplers, and the lines in them that name a device."""
    files = sorted(set((SOURCE / "sampling").glob("*.py")) - {SOURCE / "sampling" / "adaptive_window.py"})  # a probe
    files.append(SOURCE / "tokenization" / "transforms.py")
    return [
        (path, number)
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines())
        if re.search(r"torch\.\w+\(.*\bdevice=", line)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "number"), [pytest.param(*one, id=f"{one[0].stem}:{one[1] + 1}") for one in mutants()[::2]]
)
def test_a_dropped_device_is_caught(tmp_path, path, number):
    """A copy of the package in which one tensor is made on the CPU fails the tests above."""
    copy = tmp_path / "src" / "asarm"
    copy.parent.mkdir()
    for part in SOURCE.rglob("*.py"):
        target = copy / part.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(part.read_text(encoding="utf-8"), encoding="utf-8")
    mutant = copy / path.relative_to(SOURCE)
    lines = mutant.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[number] = re.sub(r"\bdevice=[\w.]+(\([^()]*\))?", "device=None", lines[number])
    mutant.write_text("".join(lines), encoding="utf-8")
    test = str(Path(__file__).resolve())
    (tmp_path / "pytest.ini").touch()  # instead of the settings in pyproject.toml, which name the real sources
    options = [
        "-q",
        "-x",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        "-c",
        str(tmp_path / "pytest.ini"),
        "-k",
        "tiny_gpt2 or waits",
    ]
    command = [sys.executable, "-m", "pytest", *options, test]
    environment = {"PYTHONPATH": f"{copy.parent}:{REPO / 'tests'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert result.returncode == 1, result.stdout[-2000:]
    found = ("same device", "indices should be", "evaluations, ")  # an index may be on the CPU, but the host waits
    assert any(words in result.stdout for words in found), result.stdout[-2000:]


@pytest.mark.parametrize(
    ("rows", "advice"), [(4, "a batch of 4 sequences is too much: try 2"), (1, "for one sequence")]
)
def test_want_of_memory_names_the_batch_size_to_try(monkeypatch, rows, advice):
    model = tiny_gpt2(20)

    def hidden(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")

    monkeypatch.setattr(model, "hidden", hidden)
    with pytest.raises(MemoryError, match=f"^CUDA out of memory. Tried to allocate 20.00 MiB.; {advice}$"):
        sample(model, *random_batch(rows, 14, 18, 0), SamplerConfig(), range(rows))
