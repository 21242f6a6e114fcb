"""The `gpt2` backbone: saving and loading. What it computes: `test_contract.py`."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel

from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.load import AsArm, load
from asarm.utils.errors import InputError
from support.models import tiny_gpt2


def test_save_and_load(tmp_path):
    model = tiny_gpt2(20)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AsArm.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=0, rtol=0)
    assert isinstance(AutoModel.from_pretrained(tmp_path), AnyOrderGPT2)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), AnyOrderGPT2Config)
    assert not loaded.training


def test_loading_says_what_is_wrong(tmp_path):
    model = tiny_gpt2(20)
    with pytest.raises(InputError, match="no model folder"):
        AsArm.from_pretrained(tmp_path / "nowhere")
    model.config.save_pretrained(tmp_path / "no_weights")
    with pytest.raises(InputError, match="cannot load"):
        AsArm.from_pretrained(tmp_path / "no_weights")
    model.save_pretrained(tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"damaged|cannot load"):
        AsArm.from_pretrained(tmp_path / "torn")
    bigger = tiny_gpt2(20, n_layer=3)
    model.save_pretrained(tmp_path / "other")
    bigger.config.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"blocks\.2"):
        AsArm.from_pretrained(tmp_path / "other")


def test_a_model_and_its_tokenizer(tiny_folder, tmp_path):
    model, codec = load(tiny_folder)
    assert model.config.mask_token_id == codec.mask_token_id
    with pytest.raises(InputError, match="no model folder"):
        load(tmp_path / "nowhere")
    codec.save_pretrained(tmp_path)
    tiny_gpt2(20).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not belong"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_embd": 30, "n_head": 4}, "n_embd=30 must give n_head=4 heads of even width"),
        ({"n_embd": 9, "n_head": 3}, "even width"),
        ({"n_head": 0}, "n_head must be at least 1, not 0"),
        ({"n_layer": -1}, "n_layer must be at least 1, not -1"),
        ({"n_layer": 2.5}, "'n_layer' expected int, got float"),
        ({"n_positions": None}, "'n_positions' expected int, got NoneType"),
        ({"layer_norm_epsilon": -1}, "layer_norm_epsilon must be at least 0"),
        ({"rotary_base": 0}, "rotary_base must be at least 1, not 0"),
        ({"mask_token_id": 20}, "mask_token_id=20 must lie in 0..vocab_size - 1"),
        ({"draft_head": "big"}, "'draft_head' expected int, got str"),
    ],
)
def test_shapes_that_cannot_be(tmp_path, settings, message):
    config = json.loads(tiny_gpt2(20).config.to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(InputError, match=message) as error:
        AsArm.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
