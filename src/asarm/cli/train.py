"""Train an AS-ARM on local text files: `python -m asarm train --train_files FILE ... --output_dir FOLDER`."""

from transformers import HfArgumentParser

from asarm.config import DraftLossConfig, MaskingConfig, ModelConfig, TrainingConfig


def main(arguments: list[str]) -> None:
    parser = HfArgumentParser(
        (TrainingConfig, ModelConfig, MaskingConfig, DraftLossConfig), prog="asarm train", description=__doc__
    )
    config, shape, masking, draft = parser.parse_args_into_dataclasses(arguments)
    from asarm.trainer import Trainer

    metrics = Trainer(config, shape, masking, draft).run()
    for name, value in metrics.items():
        print(f"{name:20} {value:.4g}" if isinstance(value, float) else f"{name:20} {value}")
