"""bfloat16 autocast, as training on GPUs uses it: decoding by every sampler, and short runs with their validation."""

import json
from pathlib import Path

import pytest
import torch
from transformers import XLNetConfig, XLNetLMHeadModel

from asarm.__main__ import main
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from support.llama import save_llama
from support.models import tiny_gpt2, tiny_llama, tiny_xlnet
from support.xlnet_tokenizer import train_xlnet_tokenizer

PROSE = "".join(f"The {n} cats of house {n % 7} sat on mat {n % 5}, and no dog came by.\n" for n in range(300))
SAMPLERS = {
    "sequential": SamplerConfig(sampler="sequential"),
    "assd self": SamplerConfig(k=4),
    "assd ngram": SamplerConfig(draft="ngram", k=4),
    "assd gumbel": SamplerConfig(coupling="gumbel", k=4),
    "fused, draft head": SamplerConfig(sampler="fused", k=3),
    "fused, blind, block": SamplerConfig(sampler="fused", draft="blind", coupling="block", k=3),
    "parallel": SamplerConfig(sampler="parallel", steps=3),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
def test_every_sampler_decodes_under_autocast(backbone, name):
    model = backbone(20, draft_head=8)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 19, (3, 24), generator=generator)
    given = torch.rand(3, 24, generator=generator) < torch.tensor([[0.1], [0.5], [0.8]])
    with torch.autocast("cpu", torch.bfloat16):
        assert model.new_cache(3, 24, 24).keys[0].dtype == torch.bfloat16
        result = sample(model, tokens, given, ~given, SAMPLERS[name], range(3))
    assert torch.equal(result.tokens[given], tokens[given])
    assert int(result.tokens.max()) < 19  # never the mask token
    assert (result.nfe <= result.targets).all()


@pytest.fixture
def xlnet_folder(tmp_path) -> Path:
    """A folder of a small random XLNet, as `transformers` saves it."""
    tokenizer = train_xlnet_tokenizer(PROSE, 120)
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=2, d_inner=64)
    XLNetLMHeadModel(config).save_pretrained(tmp_path / "xlnet")
    tokenizer.save_pretrained(tmp_path / "xlnet")
    return tmp_path / "xlnet"


ABLATIONS = {
    "paper": {},
    "random": {"order": "random", "loss_scale": "rate", "draft_weight": 0.5},
    "parallel": {"objective": "parallel", "unpacked": True},
}


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("backbone", ["gpt2", "xlnet", "llama"])
def test_training_in_bf16_validates(backbone, ablation, tmp_path, xlnet_folder, monkeypatch, capsys):
    rows = [json.dumps({"text": line * (1 + index % 5)}) for index, line in enumerate(PROSE.splitlines())]
    (tmp_path / "prose.jsonl").write_text("\n".join(rows), encoding="utf-8")
    options = {
        "train_files": tmp_path / "prose.jsonl", "output_dir": tmp_path / "run", "cache_dir": tmp_path / "cache",
        "block_size": 32, "max_steps": 4, "eval_steps": 2, "eval_blocks": 4, "eval_decodings": 2, "held_out": 0.1,
        "logging_steps": 1, "vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bf16": True,
    } | ABLATIONS[ablation]  # fmt: skip
    if backbone == "xlnet":
        options["init_from"] = xlnet_folder
    if backbone == "llama":
        save_llama(tmp_path / "llama", PROSE)
        options["init_from"] = tmp_path / "llama"
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["asarm", "train", *arguments])
    assert main() == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if "nll_0.95" in line]
    assert [line["step"] for line in validated] == [2, 4]
    assert all(0 < line["assd_nfe_per_token"] <= 1 for line in validated)
