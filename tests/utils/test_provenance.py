"""What results say of the machine they were made on, and a GPU that cannot be used."""

import pytest
import torch

from asarm.models.load import pick_device, pick_dtype
from asarm.utils import provenance as module
from asarm.utils.provenance import device_name, provenance, why_no_gpu


def test_the_device_that_was_used_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index or 0}")
    assert device_name("cpu").startswith("cpu, ")  # though there is a GPU
    assert device_name("cuda:1") == "card 1"
    assert provenance(torch.device("cuda", 1))["device"] == "card 1"
    assert device_name("auto") == device_name() == "card 0"


def test_a_gpu_that_cannot_be_used_is_said(monkeypatch, tmp_path, caplog):
    def too_old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    monkeypatch.setattr(module, "NVIDIA_DRIVER", tmp_path / "version")
    assert why_no_gpu() is None  # there is no driver
    (tmp_path / "version").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert why_no_gpu() == f"torch {torch.__version__} is a build without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert pick_device("auto") == torch.device("cpu")
    message = (
        "there is a GPU, but it cannot be used (The NVIDIA driver on your system is too old (found version 11040).)"
    )
    assert caplog.messages == [f"{message}: taking the CPU"]


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_emulated_bfloat16_is_not_chosen(monkeypatch, fast, dtype):
    """Cards before Ampere emulate it, slowly."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or fast)
    assert pick_dtype("auto", torch.device("cuda")) == dtype
