"""Texts by a causal language model, in batches that are a function of the seed and of their number."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from asarm.data.writing.prompts import KINDS, Kind, Request
from asarm.utils.config import check, check_at_least, check_choices, option
from asarm.utils.errors import InputError


@dataclass
class WritingConfig:
    """What is written, and by which model."""

    model: str = option("smollm2", "a causal language model: `smollm2`, a folder or a Hub repository")
    kinds: list[str] = option(list(KINDS), "in turns: stories, texts, functions")
    tokens: int = option(500_000, "stop when this many tokens are kept")
    batch_size: int = option(64, "texts written at once")
    top_p: float = option(0.95, "each token is one of the likeliest with this probability together")
    seed: int = option(0, "the texts are a function of the seed and the options above")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = option("auto", "auto (bfloat16 where the device multiplies it), float32, bfloat16")

    def __post_init__(self) -> None:
        check(bool(self.kinds), "no kinds given")
        check_choices("kind", self.kinds, KINDS)
        check_at_least(self, tokens=1, batch_size=1, seed=0)
        check(0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")


class Writer:
    """A causal language model that writes what is worth training on."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: WritingConfig):
        """Raises InputError for a tokenizer without an eos token, or one that cannot chat when texts need that."""
        self.model, self.tokenizer, self.config = model, tokenizer, config
        if tokenizer.eos_token_id is None:
            raise InputError(f"the tokenizer of {config.model} has no eos token, so that its texts have no end")
        if tokenizer.chat_template is None and {"stories", "texts"} & set(config.kinds):
            raise InputError(f"{config.model} has no chat template to be asked in: use --kinds functions")
        tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token

    def batch(self, number: int) -> list[dict[str, Any]]:
        """The rows of a batch: its number, kind and text. There may be none, when no text is worth training on."""
        name = self.config.kinds[number % len(self.config.kinds)]
        kind, draws = KINDS[name], random.Random(f"{self.config.seed} {number}")
        requests = [kind.draw(draws) for _ in range(self.config.batch_size)]
        torch.manual_seed(draws.getrandbits(62))
        answers = self.answers(kind, requests)
        texts = dict.fromkeys(text for answer in answers for text in kind.texts(answer))
        return [{"batch": number, "kind": name, "text": text} for text in texts]

    @torch.inference_mode()
    def answers(self, kind: Kind, requests: Sequence[Request]) -> list[str]:
        """What the model writes, with the beginnings that it was given."""
        prompts = [self.prompt(request) for request in requests]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        sampling = GenerationConfig(
            do_sample=True, temperature=kind.temperature, top_p=self.config.top_p, top_k=0,
            max_new_tokens=kind.new_tokens, pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
        )  # fmt: skip
        model = cast(Any, self.model)
        written = model.generate(**inputs.to(model.device), generation_config=sampling)[
            :, inputs["input_ids"].shape[1] :
        ]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [request.start + cast(str, text) for request, text in zip(requests, texts, strict=True)]

    def prompt(self, request: Request) -> str:
        """A request as the model reads it, with the beginning of its answer."""
        if request.examples:
            return request.examples + request.start
        chat = [{"role": "user", "content": request.question}]
        return (
            cast(str, self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
            + request.start
        )
