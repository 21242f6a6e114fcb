"""Training runs of seconds, ways to interrupt them, and comparisons of their results."""

import pytest
import torch
from safetensors.torch import load_file

from asarm.data.config import DataConfig
from asarm.objective.loss import LossConfig
from asarm.objective.masking import MaskingConfig
from asarm.training import checkpoint
from asarm.training.config import ModelConfig, RunConfig, TrainingConfig

PROSE = "".join(f"The {n} cats of house {n % 7} sat on mat {n % 5}, and no dog came by.\n" for n in range(700))


def run_config(tmp_path, **changes):
    """Settings of a run of seconds on PROSE; changes are fields of any part, by name."""
    (tmp_path / "prose.txt").write_text(PROSE, encoding="utf-8")
    values = {
        "train_files": [str(tmp_path / "prose.txt")], "output_dir": str(tmp_path / "run"), "block_size": 32,
        "max_steps": 30, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 3e-3,
        "warmup_steps": 5, "eval_steps": 15, "save_steps": 10, "logging_steps": 5, "held_out": 0.1, "eval_blocks": 8,
        "eval_decodings": 2, "cache_dir": str(tmp_path / "cache"), "vocab_size": 400, "n_embd": 32, "n_layer": 2,
        "n_head": 2, "n_positions": 64, "mask_low": 0.3, "draft_weight": 0.5,
    } | changes  # fmt: skip
    kinds = (TrainingConfig, DataConfig, ModelConfig, MaskingConfig, LossConfig)
    return RunConfig(
        *(kind(**{name: values[name] for name in values if name in kind.__dataclass_fields__}) for kind in kinds)
    )


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_same_weights(left, right):
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def steps(run):
    return [int(path.name.removeprefix("checkpoint-")) for path in checkpoint.folders(run)]


class Death(BaseException):
    """Nothing may catch it."""


def die_at(trainer, monkeypatch, step):
    """Let the run die after its checkpoint of a step."""
    save = trainer.save_checkpoint

    def save_then_die(score):
        save(score)
        if trainer.step == step:
            raise Death

    monkeypatch.setattr(trainer, "save_checkpoint", save_then_die)
    with pytest.raises(Death):
        trainer.run()
