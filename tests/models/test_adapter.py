"""Folders of adapters: loading merges them into their base, and says in a line what is wrong with either."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from asarm import load, log_prob
from asarm.models.adapter import adapter_parameters, add_adapter, load_adapter, read_adapter_config
from asarm.models.load import AsArm
from asarm.utils.errors import InputError
from asarm.utils.weights import weights_sha256
from support.hub import Hub
from support.llama import save_llama, save_random_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DELTA = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"


@pytest.fixture
def folder(tmp_path, sample_text):
    """An adapter, in tmp_path / "adapter", of tmp_path / "base"."""
    save_llama(tmp_path / "base", sample_text)
    save_random_adapter(tmp_path / "adapter", tmp_path / "base")
    return tmp_path / "adapter"


def scores(model):
    tokens = torch.randint(0, 290, (3, 30), generator=torch.Generator().manual_seed(1))
    given = torch.rand(3, 30, generator=torch.Generator().manual_seed(2)) < 0.5
    return log_prob(model, tokens, given)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_merged_it_is_what_it_was_in_training(tmp_path, sample_text, family):
    save_llama(tmp_path / "base", sample_text, family)
    save_random_adapter(tmp_path / "adapter", tmp_path / "base")
    base, merged = load(tmp_path / "base")[0], load(tmp_path / "adapter")[0]
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert (scores(merged) - scores(base)).abs().max() > 0.1
    add_adapter(base, read_adapter_config(tmp_path / "adapter"))
    assert all(parameter.requires_grad for parameter in adapter_parameters(base).values())
    load_adapter(base, tmp_path / "adapter", "it")
    assert (scores(base.eval()) - scores(merged)).abs().max() < 1e-4
    assert AsArm.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16).dtype == torch.bfloat16


@torch.inference_mode()
def test_peft_reads_it_as_an_adapter_of_the_causal_model(tmp_path, folder):
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(causal, str(folder)).merge_and_unload().state_dict()
    ours = load(folder)[0].state_dict()
    matrices = [name for name in theirs if "_proj" in name]
    assert len(matrices) == 3 * 7
    for name in matrices:
        torch.testing.assert_close(ours[name], theirs[name])


def test_the_base_may_move_and_be_written_in_another_form(tmp_path, folder):
    expected = scores(load(folder)[0])
    digest = weights_sha256("base", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base").rename(tmp_path / "moved")
    (tmp_path / "moved" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "moved" / "pytorch_model.bin")
    assert weights_sha256("base", tmp_path / "moved") == digest
    change_config(folder, base_model_name_or_path=str(tmp_path / "moved"))
    assert torch.equal(scores(load(folder)[0]), expected)


def change_base(folder):
    file = folder.parent / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder, **values):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))


def change_tensor(folder, value):
    tensors = load_file(folder / WEIGHTS)
    if value is None:
        del tensors[DELTA]
    else:
        tensors[DELTA] = value
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_base, "base is not the model that .*adapter was trained with .SHA-256 of its weights"),
        (lambda folder: shutil.rmtree(folder.parent / "base"), "adapter_config.json names: no model folder .*base"),
        (lambda folder: change_config(folder, base_model_name_or_path="."), "adapter_config.json names: "),
        (lambda folder: change_config(folder, base_model_name_or_path=None), "adapter_config.json is damaged, or not"),
        (lambda folder: change_config(folder, base_model_name_or_path=str(folder)), "is not the model that"),
        (lambda folder: change_config(folder, base_sha256=None), "is not the model that"),
        (lambda folder: change_config(folder, peft_type="IA3"), "peft_type 'IA3'"),
        (lambda folder: change_config(folder, peft_type="WHAT"), "peft_type 'WHAT'"),
        (lambda folder: change_config(folder, r=5), "do not fit its base, or are damaged: of another shape: "),
        (lambda folder: (folder / CONFIG).write_text('{"peft_type": "LORA"}'), "is damaged, or not of an adapter"),
        (lambda folder: (folder / CONFIG).write_text("{"), "is damaged, or not of an adapter"),
        (lambda folder: (folder / CONFIG).write_bytes(b"version https://git-lfs"), "pointer of git-lfs"),
        (lambda folder: (folder / WEIGHTS).unlink(), "there is no adapter_model.safetensors in"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-50]), "are damaged, download"),
        (lambda folder: change_tensor(folder, None), "are damaged: missing: .*layers.1.mlp.up_proj.lora_B.weight"),
        (lambda folder: change_tensor(folder, torch.zeros(48, 4)), "of another shape: .*up_proj.lora_B.weight"),
        (lambda folder: change_tensor(folder, torch.full((48, 3), torch.nan)), "not finite: .*up_proj.lora_B.weight"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("of_transformers", "message"), [(False, "are for the llama backbone, and .* is asarm-gpt2"), (True, "gpt2 model")]
)
def test_a_base_of_another_backbone(tmp_path, folder, tiny_folder, of_transformers, message):
    """GPT-2 as of `transformers`, which has no rotary positions, and ours."""
    base = tmp_path / "gpt2" if of_transformers else Path(tiny_folder)
    if of_transformers:
        GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2)).save_pretrained(base)
    change_config(folder, base_model_name_or_path=str(base), base_sha256=weights_sha256("base", base))
    with pytest.raises(InputError, match=f"cannot load the base of .*{message}") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_adapter_and_base_from_the_hub(tmp_path, folder):
    """By the names of their repositories, the base at its revision; of the adapter's files all that are needed."""
    expected = scores(load(folder)[0])
    change_config(folder, base_model_name_or_path="user/base", revision="v2")
    script = "import torch, asarm; torch.save(asarm.load('user/adapter')[0].state_dict(), 'merged.pt')"
    repositories = {"user/adapter": {"main": folder}, "user/base": {"v2": tmp_path / "base"}}
    with Hub(repositories) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
    assert run.returncode == 0, run.stderr
    change_config(folder, base_model_name_or_path=str(tmp_path / "base"), revision=None)
    model, _ = load(folder)
    model.load_state_dict(torch.load(tmp_path / "merged.pt"))
    assert torch.equal(scores(model), expected)
