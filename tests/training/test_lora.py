"""Training of low-rank adapters: what changes, what is written, resuming, bfloat16, and what is refused."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from asarm import load, log_prob
from asarm.models.adapter import active_adapter_config, adapter_parameters, read_adapter_config
from asarm.training.draft_head import DraftHeadConfig, train_draft_head
from asarm.training.trainer import Trainer
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from support.llama import save_llama, save_random_adapter
from support.training import PROSE, die_at, run_config

LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture
def base(tmp_path):
    save_llama(tmp_path / "base", PROSE, tie_word_embeddings=True)
    return tmp_path / "base"


def lora_config(tmp_path, **changes):
    options = {"init_from": str(tmp_path / "base"), "lora_rank": 4, "max_steps": 10, "save_steps": 5, "warmup_steps": 2,
               "learning_rate": 0.02}  # fmt: skip
    return run_config(tmp_path, **options | changes)


def scores(folder):
    model, _ = load(folder)
    tokens = torch.randint(0, 290, (3, 30), generator=torch.Generator().manual_seed(1))
    given = torch.rand(3, 30, generator=torch.Generator().manual_seed(2)) < 0.5
    return log_prob(model, tokens, given)


def adapter(run):
    return load_file(run / "model" / "adapter_model.safetensors")


def test_a_run_changes_the_adapters_and_the_vectors_of_queries_alone(tmp_path, base):
    trainer = Trainer(lora_config(tmp_path, mask_spans=0.5))
    model = trainer.loss.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.run()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if "lora_" in name} == {name for name in changed if "lora_" in name}
    assert {name for name in changed if "lora_" not in name} == {"model.query_vector", "model.no_left"}
    assert {name.split(".")[-4] for name in changed if "lora_" in name} == LAYERS
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    joint = [line["joint"] for line in lines if "joint" in line]
    assert joint[-1] < joint[0] - 0.1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["trained_parameters"] == sum(value.numel() for value in adapter(tmp_path / "run").values())
    assert metrics["parameters"] > 3 * metrics["trained_parameters"]


def test_what_is_written_is_an_adapter_that_loads_merged(tmp_path, base):
    trainer = Trainer(lora_config(tmp_path))
    model = trainer.loss.model
    trainer.run()
    run = tmp_path / "run"
    names = {path.name for path in (run / "model").iterdir()}
    assert {"config.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not names & {"model.safetensors", "README.md"}
    assert {value.dtype for value in adapter(run).values()} == {torch.float16}
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    assert (config["base_model_name_or_path"], len(config["base_sha256"])) == (str(base), 64)

    merged, codec = load(run / "checkpoint-000010" / "model")  # in float32
    assert merged.state_dict().keys() == load(base)[0].state_dict().keys()
    assert all(parameter.requires_grad for parameter in merged.parameters())
    tokens = torch.randint(0, 290, (3, 30), generator=torch.Generator().manual_seed(1))
    given = torch.rand(3, 30, generator=torch.Generator().manual_seed(2)) < 0.5
    expected = log_prob(model.eval(), tokens, given)
    assert (log_prob(merged, tokens, given) - expected).abs().max() < 1e-4
    assert (scores(run / "model") - expected).abs().max() < 2e-2  # in float16
    assert (scores(base) - expected).abs().max() > 0.1
    merged.save_pretrained(tmp_path / "whole")
    codec.save_pretrained(tmp_path / "whole")
    assert torch.equal(scores(tmp_path / "whole"), scores(run / "checkpoint-000010" / "model"))


@pytest.mark.parametrize("changes", [{}, {"bf16": True, "unpacked": True, "order": "random"}])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, base, monkeypatch, changes):
    Trainer(lora_config(tmp_path, output_dir=str(tmp_path / "whole"), **changes)).run()
    die_at(Trainer(lora_config(tmp_path, **changes)), monkeypatch, 5)
    checkpoint = tmp_path / "run" / "checkpoint-000005"
    tensors = load_file(checkpoint / "model" / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    count = sum(value.numel() for value in tensors.values())
    assert (checkpoint / "optimizer.pt").stat().st_size < 8 * count + 200_000
    again = Trainer(lora_config(tmp_path, **changes))
    assert again.step == 5
    again.run()
    left, right = adapter(tmp_path / "whole"), adapter(tmp_path / "run")
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_frozen_matrices_are_bfloat16_under_autocast(tmp_path, base):
    trainer = Trainer(lora_config(tmp_path, bf16=True, learning_rate=1e-3))
    trained = adapter_parameters(trainer.loss.model).values()
    frozen = [p for p in trainer.loss.model.parameters() if not p.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert {parameter.dtype for parameter in frozen if parameter.ndim == 2} == {torch.bfloat16}
    metrics = trainer.run()
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    plain = Trainer(lora_config(tmp_path, learning_rate=1e-3, output_dir=str(tmp_path / "plain"))).run()
    assert metrics["nll_0.5"] == pytest.approx(plain["nll_0.5"], abs=0.05)


def test_an_adapter_can_be_adapted_and_trained_as_a_whole(tmp_path, base):
    first = Trainer(lora_config(tmp_path)).run()
    start = {"init_from": str(tmp_path / "run" / "model"), "max_steps": 1, "warmup_steps": 0, "learning_rate": 1e-6}
    for name, rank in (("second", 2), ("whole", 0)):
        again = Trainer(lora_config(tmp_path, **start, lora_rank=rank, output_dir=str(tmp_path / name))).run()
        assert again["nll_0.5"] == pytest.approx(first["nll_0.5"], abs=0.02)
        assert load(tmp_path / name / "model")
    assert (tmp_path / "whole" / "model" / "model.safetensors").exists()


def test_a_dry_run_says_how_many_parameters_are_trained(tmp_path, base):
    about = Trainer(lora_config(tmp_path, dry_run=True)).dry_run()
    tensors = adapter_parameters(Trainer(lora_config(tmp_path)).loss.model)
    assert f"({sum(value.numel() for value in tensors.values()):,} of them trained)" in about


def test_a_draft_head_is_part_of_the_adapter(tmp_path, base):
    """Trained on top of an adapter; it loads with it, and comes along when the model is adapted further."""
    save_random_adapter(tmp_path / "adapter", base)
    config = run_config(tmp_path)  # writes the text
    head = from_options(
        DraftHeadConfig, model=str(tmp_path / "adapter"), train_files=config.data.train_files, hidden=8, max_steps=3,
        output_dir=str(tmp_path / "headed"), block_size=32, cache_dir=str(tmp_path / "cache"), held_out=0.1,
    )  # fmt: skip
    train_draft_head(head)
    assert not (tmp_path / "headed" / "model.safetensors").exists()
    assert torch.equal(scores(tmp_path / "headed"), scores(tmp_path / "adapter"))
    Trainer(lora_config(tmp_path, init_from=str(tmp_path / "headed"), max_steps=1)).run()
    heads = [load(folder)[0].draft_head for folder in (tmp_path / "headed", tmp_path / "run" / "model")]
    assert heads[0].proj.weight.any()
    for left, right in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.equal(left, right)
        assert not left.requires_grad


def test_where_it_does_not_work(tmp_path, base, tiny_folder):
    with pytest.raises(InputError, match=r"lora_rank. are for the llama backbone, and .* is asarm-gpt2") as error:
        Trainer(lora_config(tmp_path, init_from=tiny_folder))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="name it with init_from"):
        lora_config(tmp_path, init_from="")
    with pytest.raises(InputError, match="muon is for the gpt2 backbone"):
        Trainer(lora_config(tmp_path, optimizer="muon"))


def test_a_checkpoint_goes_on_with_its_own_base_alone(tmp_path, base, monkeypatch):
    die_at(Trainer(lora_config(tmp_path)), monkeypatch, 5)
    save_llama(tmp_path / "base", PROSE, tie_word_embeddings=True, seed=1)
    with pytest.raises(InputError, match=r"base is not the model that .*checkpoint-000005 was trained with"):
        Trainer(lora_config(tmp_path))


def test_gaps_of_unknown_length_train_the_rows_of_their_token(tmp_path, base, monkeypatch):
    """Resumed or not, the adapter holds its row; the merged model has it in embedding and output layer."""
    options = {"mask_gaps": 1.0, "gap_spare": 4}
    metrics = Trainer(lora_config(tmp_path, **options)).run()
    rows = [name for name in adapter(tmp_path / "run") if name.endswith(".row")]
    assert rows == ["base_model.model.model.embed_tokens.row"]
    model, codec = load(tmp_path / "run" / "model")
    before, _ = load(tmp_path / "base")
    end = codec.gap_end_token_id
    assert end == model.config.gap_end_token_id == before.config.vocab_size == len(codec) - 1
    embedding, old = model.get_input_embeddings().weight, before.get_input_embeddings().weight
    assert model.output_layer()[0] is embedding
    assert torch.equal(embedding[:end], old)
    assert (embedding[end] - old[before.config.eos_token_id]).abs().max() > 0.01
    assert metrics["nll_gaps"] < 6
    run = tmp_path / "run"
    saved = adapter(run)
    run.rename(tmp_path / "whole")
    die_at(Trainer(lora_config(tmp_path, **options)), monkeypatch, 5)
    Trainer(lora_config(tmp_path, **options)).run()
    assert all(torch.equal(value, saved[name]) for name, value in adapter(run).items())
    goes_on = Trainer(lora_config(tmp_path, init_from=str(run / "model"), output_dir=str(tmp_path / "on"), **options))
    assert goes_on.codec.gap_end_token_id == end


def test_training_goes_on_with_an_adapter(tmp_path, base):
    """The new adapter is of the same base; before its first step it is the old one, rounded to float16."""
    Trainer(lora_config(tmp_path)).run()
    old = tmp_path / "run" / "model"
    options = {"init_from": str(old), "output_dir": str(tmp_path / "on"), "max_steps": 1, "warmup_steps": 0}
    Trainer(lora_config(tmp_path, **options, learning_rate=1e-9)).run()
    new = tmp_path / "on" / "model"
    assert (scores(new) - scores(old)).abs().max() < 1e-3
    assert read_adapter_config(new).to_dict() == read_adapter_config(old).to_dict()
    other = Trainer(lora_config(tmp_path, **options | {"output_dir": str(tmp_path / "other")}, lora_rank=2))
    assert active_adapter_config(other.loss.model).base_model_name_or_path == str(old)
