"""Weights in every form that people have them in, and what is said of those that cannot be read."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, XLNetConfig, XLNetLMHeadModel

from asarm.evals.hub import load_causal
from asarm.models.conversion.from_gpt2 import start_from
from asarm.models.load import AsArm, load_tokenizer
from asarm.utils.errors import InputError
from asarm.utils.weights import POINTER

SHAPE = {"vocab_size": 300, "n_layer": 2, "n_head": 2}
SAFE, BIN = "model.safetensors", "pytorch_model.bin"


@pytest.fixture(scope="module", params=["xlnet", "gpt2"])
def original(request, tmp_path_factory, tiny_folder):
    """A model folder with safetensors that `transformers` wrote. Read only."""
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "xlnet":
            XLNetLMHeadModel(XLNetConfig(**SHAPE, d_model=16, d_inner=32)).save_pretrained(folder)
        else:
            GPT2LMHeadModel(GPT2Config(**SHAPE, n_embd=16, n_positions=64)).save_pretrained(folder)
    load_tokenizer(tiny_folder).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """The same folder without its weights."""
    for file in original.iterdir():
        if file.name != SAFE:
            (tmp_path / file.name).symlink_to(file)
    return tmp_path


def shards(tensors: dict, folder: Path, name: str = BIN) -> list[Path]:
    """Write tensors to three pickles with an index, as version 4 of `transformers` does."""
    names = sorted(tensors)
    files = [folder / f"{Path(name).stem}-0000{n}-of-00003{Path(name).suffix}" for n in (1, 2, 3)]
    for n, file in enumerate(files):
        torch.save({key: tensors[key] for key in names[n::3]}, file)
    where = {key: files[n % 3].name for n, key in enumerate(names)}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return files


def tied_twice(tensors: dict) -> dict:
    """With the output layer beside the embedding that it is tied to."""
    embedding = next(key for key in tensors if key.endswith(("word_embedding.weight", "wte.weight")))
    head = "lm_loss.weight" if "word_embedding" in embedding else "lm_head.weight"
    return tensors | {head: tensors[embedding]}


def views(tensors: dict) -> dict:
    """With all tensors in one piece of memory."""
    whole = torch.cat([value.flatten() for value in tensors.values()])
    parts = whole.split([value.numel() for value in tensors.values()])
    return {key: part.view(tensors[key].shape) for key, part in zip(tensors, parts, strict=True)}


FORMS = {
    "bin": lambda tensors, folder: torch.save(tensors, folder / BIN),
    "bin, before torch 1.6": lambda tensors, folder: torch.save(
        tensors, folder / BIN, _use_new_zipfile_serialization=False
    ),
    "bin, tied twice": lambda tensors, folder: torch.save(tied_twice(tensors), folder / BIN),
    "bin, parameters": lambda tensors, folder: torch.save(
        {key: nn.Parameter(value) for key, value in tensors.items()}, folder / BIN
    ),
    "bin, views": lambda tensors, folder: torch.save(views(tensors), folder / BIN),
    "bin, half precision": lambda tensors, folder: torch.save(
        {key: value.half() for key, value in tensors.items()}, folder / BIN
    ),
    "bin, sharded": shards,
    "safetensors, tied twice": lambda tensors, folder: save_file(
        {key: value.clone() for key, value in tied_twice(tensors).items()}, folder / SAFE
    ),
    "safetensors, half precision": lambda tensors, folder: save_file(
        {key: value.half() for key, value in tensors.items()}, folder / SAFE
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_model(original, folder, form):
    expected, _ = start_from(original)
    FORMS[form](load_file(original / SAFE), folder)
    model, _ = start_from(folder)
    found = model.state_dict()
    tolerance = 1e-3 if "half" in form else 0
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    ours, theirs = (len(list(m.parameters())) for m in (model, expected))
    assert ours == theirs  # what is tied stays tied
    memory = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert len(memory) == ours


def test_safetensors_come_first(original, folder):
    (folder / BIN).write_bytes(b"not read")
    (folder / f"{BIN}.index.json").write_bytes(b"not read")
    (folder / SAFE).symlink_to(original / SAFE)
    start_from(folder)


def test_a_causal_model_is_read_in_any_form(original, folder):
    expected, _ = load_causal(str(original), "judge", torch.device("cpu"))
    tensors = load_file(original / SAFE) | {"old.constant": torch.ones(2)}
    shards(tensors, folder)
    model, tokenizer = load_causal(str(folder), "judge", torch.device("cpu"))
    assert not model.training
    assert tokenizer.encode("a bear")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in expected.state_dict().items())
    tensors.pop(next(key for key in sorted(tensors) if "layer_norm" in key or "ln_1" in key))
    shards(tensors, folder)
    with pytest.raises(InputError, match=r"the weights of the judge .* do not fit its config: .*missing_keys"):
        load_causal(str(folder), "judge", torch.device("cpu"))


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ("made",)


def cut(file: Path, share: float = 0.5) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


def index_of(value: object):
    return lambda tensors, folder: (folder / f"{BIN}.index.json").write_text(json.dumps(value))


def pointer(name: str):
    text = POINTER + b".com/spec/v1\noid sha256:0\nsize 9\n"
    return lambda tensors, folder: (folder / name).write_bytes(text)


FAULTS = {
    "none": (lambda tensors, folder: None, f"cannot load .*: there is neither {SAFE} nor {BIN} in "),
    "cut": (lambda tensors, folder: (FORMS["bin"](tensors, folder), cut(folder / BIN)), "are damaged, download them"),
    "cut, old": (
        lambda tensors, folder: (FORMS["bin, before torch 1.6"](tensors, folder), cut(folder / BIN, 0.9)),
        "are damaged, download them again: unexpected EOF",
    ),
    "empty": (lambda tensors, folder: (folder / BIN).touch(), "are damaged, download them again: EOFError"),
    "a page": (lambda tensors, folder: (folder / BIN).write_text("<html>"), "are damaged, .*: no pickle of tensors"),
    "pointer": (pointer(BIN), f"{BIN} is a pointer of git-lfs"),
    "pointer, safetensors": (pointer(SAFE), f"{SAFE} is a pointer of git-lfs"),
    "pointer, index": (pointer(f"{SAFE}.index.json"), f"{SAFE}.index.json is a pointer of git-lfs"),
    "a missing shard": (
        lambda tensors, folder: shards(tensors, folder)[1].unlink(), "names pytorch_model-00002-of-00003.bin, not there"
    ),
    "a pointer for a shard": (
        lambda tensors, folder: (shards(tensors, folder), pointer("pytorch_model-00003-of-00003.bin")(tensors, folder)),
        "pytorch_model-00003-of-00003.bin is a pointer of git-lfs",
    ),
    "no shards": (index_of({"weight_map": {}}), "index.json names 'no files': it must name files beside it"),
    "a shard elsewhere": (index_of({"weight_map": {"a": "../b.bin"}}), r"index.json names '\.\./b.bin': it must"),
    "no weight map": (index_of({"metadata": {}}), "index.json is damaged, download it again: 'weight_map'"),
    "a list": (index_of([1]), "index.json is damaged"),
    "numbers": (index_of({"weight_map": {"a": 1, "b": "c"}}), "index.json is damaged"),
    "no json": (lambda tensors, folder: (folder / f"{BIN}.index.json").write_text("{"), "index.json is damaged"),
    "code": (
        lambda tensors, folder: torch.save(tensors | {"a": Dangerous()}, folder / BIN),
        r"is refused, as a pickle may hold tensors by their names only: it asks for (posix|nt)\.mkdir",
    ),
    "code, plain pickle": (
        lambda tensors, folder: (folder / BIN).write_bytes(pickle.dumps(Dangerous(), protocol=2)), "is refused|damaged"
    ),
    "a module": (lambda tensors, folder: torch.save(nn.Linear(2, 2), folder / BIN), "is refused, .*Linear"),
    "an array": (lambda tensors, folder: torch.save({"a": np.ones(2)}, folder / BIN), "is refused, .*numpy"),
    "a checkpoint": (
        lambda tensors, folder: torch.save({"model": tensors, "step": 3}, folder / BIN),
        "is refused, .*: 'model' in it is a dict",
    ),
    "a tensor": (lambda tensors, folder: torch.save(torch.ones(2), folder / BIN), "is refused, .*: it holds a Tensor"),
    "numbers for names": (lambda tensors, folder: torch.save({1: torch.ones(2)}, folder / BIN), "is refused, .*: 1 in"),
    "a tensor too few": (
        lambda tensors, folder: torch.save(dict(list(tensors.items())[1:]), folder / BIN), "do not fit its config"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_one_line(original, folder, fault, monkeypatch, tmp_path_factory, recwarn):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    make, message = FAULTS[fault]
    make(load_file(original / SAFE), folder)
    with pytest.raises(InputError, match=message) as error:
        start_from(folder)
    assert "\n" not in str(error.value)
    assert not Path("made").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_pointers_for_other_files(original, folder, name):
    (folder / SAFE).symlink_to(original / SAFE)
    (folder / name).unlink()
    pointer(name)({}, folder)
    with pytest.raises(InputError, match=f"{name} is a pointer of git-lfs, not the file: `git lfs pull`"):
        start_from(folder)


def test_an_output_layer_of_its_own_stays_untied(tmp_path):
    """Whatever the config says of it."""
    model = XLNetLMHeadModel(XLNetConfig(**SHAPE, d_model=16, d_inner=32))
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    tensors["lm_loss.weight"] += 1
    config = json.loads(model.config.to_json_string()) | {"mask_token_id": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(tensors, tmp_path / BIN)
    assert torch.equal(AsArm.from_pretrained(tmp_path).lm_loss.weight, tensors["lm_loss.weight"])
