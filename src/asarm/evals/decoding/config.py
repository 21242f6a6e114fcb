"""Settings of the decoding evaluation."""

import math
from dataclasses import dataclass

from asarm.evals.config import ModelsConfig, Variant
from asarm.sampling.config import NAMED_SAMPLERS
from asarm.utils.config import check, check_at_least, check_choices, option
from asarm.utils.errors import InputError

WIKITEXT, OPENWEBTEXT = "wikitext", "openwebtext"
JOINED, ROWS = "joined", "rows"
SCORED, WHOLE = "scored", "whole"
START_TOKEN_HELP = "the causal model reads its bos token first, and so scores the first token, too, as `evaluate` does"
ENTROPY_HELP = f"entropy of the tokens that the causal model scores ({SCORED}), or of the whole text's ({WHOLE})"
BATCH_1 = "-batch-1"  # at the end of the names of variants that decode one text at a time


@dataclass
class DecodingEvalConfig(ModelsConfig):
    """Settings of the decoding evaluation."""

    models: list[str] = option(
        ["therealgabeguo/ASARM@nlp"],
        "bundled models, folders or Hub repositories; name@revision for a branch, tag or commit",
    )
    text: str = option(
        WIKITEXT,
        "text to decode: a UTF-8 file, or .jsonl, .json, .csv or .parquet with the field text (also .gz), or from the "
        f"Hub {WIKITEXT} (its test part) or {OPENWEBTEXT} (its first documents)",
    )
    packing: str = option(
        JOINED,
        f"{JOINED}: a file, or all of WikiText, is one document; {ROWS}: each of its lines is one, with the special "
        "tokens of the tokenizer, as in the paper. Documents end with eos and are packed",
    )
    shuffle: bool = option(True, "take the packed texts in an order that is a function of the seed; else the first")
    left_to_right: bool = option(False, "the visible tokens are the first ones; else they are chosen at random")
    length: list[int] = option([512], "tokens a text; with several numbers, texts of each")
    num_texts: int = option(700, "how many texts, if there are as many")
    mask_rate: float = option(0.95, "share masked: floor((1 - mask_rate) * length) + 1 tokens stay visible")
    samplers: list[str] = option(["sequential", "assd-self", "assd-ngram"], f"variants, of {', '.join(NAMED_SAMPLERS)}")
    k_sweep: list[int] = option([2, 3, 5, 8], "the variants that draft are run with these k as well, on fewer texts")
    tolerance_sweep: list[float] = option([], "the variants that draft are run with these tolerances as well, likewise")
    k_sweep_texts: int = option(64, "how many texts the runs of both sweeps decode; 0 leaves them out")
    batch_size: int = option(16, "texts decoded together, the same for all variants")
    batch_1_texts: int = option(
        0, "this many texts are decoded once more, each alone, as the paper does, for seconds a text at batch size 1"
    )
    judge: str = option("gpt2-large", "causal language model that gives perplexities; self: the decoding model")
    add_start_token: bool = option(False, START_TOKEN_HELP)
    entropy_of: str = option(SCORED, ENTROPY_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, num_texts=1, batch_size=1, k_sweep_texts=0, batch_1_texts=0)
        check_choices("packing", [self.packing], (JOINED, ROWS))
        check_choices("entropy_of", [self.entropy_of], (SCORED, WHOLE))
        check_choices("sampler", self.samplers, NAMED_SAMPLERS)
        check(bool(self.samplers), "no samplers given")
        check(bool(self.length), "no length given")
        self.length = list(dict.fromkeys(self.length))
        if not 0 < self.mask_rate < 1:
            raise InputError(f"mask_rate must lie in (0, 1), not {self.mask_rate}")
        for length in self.length:
            check(length >= 2, f"length must be at least 2, not {length}")
            if self.visible(length) >= length:
                raise InputError(f"mask_rate={self.mask_rate} masks no token of length={length}: raise one of them")
        self.variants()

    def visible(self, length: int) -> int:
        """Visible tokens of a text of `length` tokens."""
        return math.floor(round((1 - self.mask_rate) * length, 9)) + 1  # rounded: (1 - 0.9) * 100 < 10

    def variants(self) -> list[Variant]:
        """The samplers for all texts; those that draft with each other k and tolerance for the first few texts; and
        the samplers for the first few texts, one at a time."""
        names = list(dict.fromkeys(self.samplers))
        found = [Variant(name, name, self.sampler_config(name), max_items=self.num_texts) for name in names]
        for name in names:
            for field, value in self._sweep() if self._has_sweep(name) else []:
                config = self.sampler_config(name, **{field: value})
                label = f"k{value}" if field == "k" else f"{field}{value:g}"
                found.append(Variant(f"{name}-{label}", name, config, max_items=self.k_sweep_texts))
        if self.batch_1_texts and self.batch_size > 1:
            for name in names:
                config = self.sampler_config(name)
                found.append(Variant(name + BATCH_1, name, config, max_items=self.batch_1_texts))
        return found

    def batch_size_of(self, variant: Variant) -> int:
        """Texts that a variant decodes together."""
        return 1 if variant.name.endswith(BATCH_1) else self.batch_size

    def _sweep(self) -> list[tuple[str, float]]:
        """The other values of k and of tolerance."""
        ks = [("k", k) for k in dict.fromkeys(self.k_sweep) if k != self.sampling.k]
        tolerances = dict.fromkeys(self.tolerance_sweep)
        others = [("tolerance", value) for value in tolerances if value != self.sampling.tolerance]
        return [*ks, *others] if self.k_sweep_texts else []

    def _has_sweep(self, name: str) -> bool:
        config = self.sampler_config(name)
        return config.sampler in ("assd", "fused") and not config.adaptive
