"""Settings that all evaluations share, and the variants that they compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asarm.models.backbone import AnyOrderModel
from asarm.models.config import LoadingOptions
from asarm.sampling.config import SamplerConfig, named_sampler
from asarm.tokenization.codec import TextCodec
from asarm.utils.config import check_at_least, nested, option
from asarm.utils.errors import InputError

PER_VARIANT = ("sampler", "draft", "adaptive")  # settings of a sampler that each variant has of its own


@dataclass
class EvalConfig:
    """Settings of an evaluation of a model. sampling: settings of the samplers that all variants share."""

    loading: LoadingOptions = nested(LoadingOptions)
    sampling: SamplerConfig = nested(SamplerConfig, hidden=PER_VARIANT)
    seed: int = option(0, "seeds all that is drawn")
    output_dir: str = option("", "folder for the results; a run that was interrupted there goes on")

    def __post_init__(self) -> None:
        check_at_least(self, seed=0)
        if not self.output_dir:
            raise InputError("no output_dir given")

    def sampler_config(self, name: str, **changes: Any) -> SamplerConfig:
        """The settings of one of the named samplers, with changes."""
        return named_sampler(name, self.sampling, **changes)


@dataclass
class ModelsConfig(EvalConfig):
    """Settings of an evaluation of one model or several beside each other.

    loading: how all models are loaded; `loading.model` is one model instead of `models`.
    """

    loading: LoadingOptions = nested(LoadingOptions, model="")
    models: list[str] = option(
        [], "bundled models, folders or Hub repositories; name@revision for a branch, tag or commit"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loading.revision and not self.loading.model:
            raise InputError("revision belongs to --model: write name@revision in --models")
        if not self.model_names():
            raise InputError("no model given")

    def model_names(self) -> list[str]:
        """The models, each as name or name@revision."""
        model, revision = self.loading.model, self.loading.revision
        one = f"{model}@{revision}" if revision else model
        return list(dict.fromkeys([one] if one else self.models))

    def load_model(self, name: str) -> tuple[AnyOrderModel, TextCodec]:
        """One of `model_names` and its codec, on the device, not compiled."""
        model, _, revision = name.partition("@") if not Path(name).exists() else (name, "", "")
        return self.loading.load(model, revision or None)


@dataclass
class Variant:
    """One way to decode or to fill gaps.

    name: in results and tables. sampler: its name without k, steps or gap length. gap_length: how the lengths of gaps
    are found; "" where that means nothing. max_items: how many items, from the first on, are decoded; None for all.
    """

    name: str
    sampler: str
    config: SamplerConfig
    gap_length: str = ""
    max_items: int | None = None
