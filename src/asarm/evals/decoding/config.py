"""Settings of the decoding evaluation."""

import math
from dataclasses import dataclass

from asarm.evals.config import EvalConfig, Variant
from asarm.sampling.registry import NAMED_SAMPLERS
from asarm.utils.config import check_at_least, check_choices, option
from asarm.utils.errors import InputError


@dataclass
class DecodingEvalConfig(EvalConfig):
    """Settings of the decoding evaluation; defaults are the paper's."""

    text: str = option(
        "",
        "text to decode: a UTF-8 file, or .jsonl, .json, .csv or .parquet with the field text (also .gz); without it, "
        "the test part of WikiText from the Hub",
    )
    length: int = option(512, "tokens a text")
    num_texts: int = option(700, "how many texts: the first of a shuffle of all that is a function of the seed")
    mask_rate: float = option(0.95, "share masked: floor((1 - mask_rate) * length) + 1 tokens stay visible")
    samplers: list[str] = option(["sequential", "assd-self", "assd-ngram"], f"variants, of {', '.join(NAMED_SAMPLERS)}")
    k_sweep: list[int] = option([2, 3, 5, 8], "the variants that draft are run with these k as well, on fewer texts")
    k_sweep_texts: int = option(64, "how many texts those runs decode; 0 leaves them out")
    batch_size: int = option(16, "texts decoded together, the same for all variants")
    judge: str = option("gpt2-large", "causal language model that gives perplexities; self: the decoding model")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, length=2, num_texts=1, batch_size=1, k_sweep_texts=0)
        if not 0 < self.mask_rate < 1:
            raise InputError(f"mask_rate must lie in (0, 1), not {self.mask_rate}")
        if self.visible >= self.length:
            raise InputError(f"mask_rate={self.mask_rate} masks no token of length={self.length}: raise one of them")
        check_choices("sampler", self.samplers, NAMED_SAMPLERS)
        self.variants()

    @property
    def visible(self) -> int:
        """Visible tokens a text."""
        return math.floor(round((1 - self.mask_rate) * self.length, 9)) + 1  # rounded: (1 - 0.9) * 100 < 10

    def variants(self) -> list[Variant]:
        """The samplers at k for all texts, then those that draft at each other k for the first few texts."""
        k, names = self.sampling.k, list(dict.fromkeys(self.samplers))
        drafting = [name for name in names if self._has_sweep(name)]
        sweep = [other for other in dict.fromkeys(self.k_sweep) if other != k and self.k_sweep_texts]
        return [Variant(name, name, self.sampler_config(name), max_items=self.num_texts) for name in names] + [
            Variant(f"{name}-k{other}", name, self.sampler_config(name, k=other), max_items=self.k_sweep_texts)
            for name in drafting
            for other in sweep
        ]

    def _has_sweep(self, name: str) -> bool:
        config = self.sampler_config(name)
        return config.sampler in ("assd", "fused") and not config.adaptive
