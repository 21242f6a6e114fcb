"""Adapter for lm-evaluation-harness (the package lm-eval): our models under the name `asarm`, for any of its tasks.

`python -m asarm harness OPTIONS` is its command line with our models in it. In Python, import this module; then
`lm_eval.simple_evaluate(model="asarm", model_args="pretrained=tiny-text", tasks=[...])` knows them. The processes of
torchrun or accelerate launch share the documents of each task, and the first one has the results.
"""

import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import lm_eval.models  # noqa: F401  the harness' own models stay known
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from asarm.evals.language.likelihood import COLD, Pair, Score, cut_left, iterate_scores, pair_batch
from asarm.evals.resumable import batches, sampling_seed
from asarm.models.compiled import DecodingModel
from asarm.models.load import load_on_device, pick_device
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import text_after
from asarm.utils.cluster.processes import connect, this_shard, use_own_gpu
from asarm.utils.errors import InputError

logger = logging.getLogger(__name__)
FIRST_GAP = 32
BATCH_SIZE = 16  # for --batch_size auto, too
WAIT = timedelta(days=7)  # of a process for slower ones
LOGGED = "lm_eval"  # the harness' logger shows what it says


@register_model("asarm")
class AsArmLM(TemplateLM):
    """An any-subset model of any backbone, read left to right: contexts are prompts, continuations are gaps after them.

    pretrained, revision, dtype, white_space: as in `load_on_device`. max_length: tokens of context and continuation
    together, the model's positions by default; longer contexts are cut on the left. max_gen_toks: for
    tasks that do not say. sampler, draft, k, seed: how text is generated.
    """

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        dtype: str = "auto",
        white_space: str = "auto",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        sampler: str = "assd",
        draft: str = "self",
        k: int = 5,
        seed: int = 0,
        batch_size: int | str = BATCH_SIZE,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        if sampler == "parallel":
            raise InputError("the sampler parallel does not write from left to right: choose another")
        self.sampler: dict[str, Any] = {"sampler": sampler, "draft": draft, "k": int(k)}
        SamplerConfig(**self.sampler)
        use_own_gpu()
        shard = this_shard()
        self._rank, self._world_size = shard.index, shard.count
        if shard.count > 1:
            connect(WAIT)
        self._device = pick_device(device or "auto")
        self.model, self.codec = load_on_device(pretrained, revision, white_space, self._device, dtype)
        longest = self.model.config.n_positions
        self.max_length = int(max_length or longest)
        if not 2 <= self.max_length <= longest:
            raise InputError(f"max_length must lie in [2, {longest}], the model's positions, not {max_length}")
        self.max_gen_toks, self.seed = int(max_gen_toks), int(seed)
        batch_size = BATCH_SIZE if str(batch_size).startswith("auto") else batch_size
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"batch_size must be a number from 1, or auto, not {batch_size!r}")
        self.batch_size = int(batch_size)
        self.name = f"{pretrained}@{revision or 'main'}"

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, one after the other."""
        parts: list[Any] = [tensor] * self.world_size
        if self.world_size > 1:
            torch.distributed.all_gather_object(parts, tensor.cpu())
        return torch.cat([part.reshape(-1) for part in parts])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes in process `dst`, None in others."""
        if self.world_size == 1:
            return [obj]
        found = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, found, dst)
        return found

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            torch.distributed.barrier()

    @property
    def tokenizer_name(self) -> str:
        """Tells requests in the harness' cache from those of other models."""
        return self.name.replace("/", "__")

    @property
    def eot_token_id(self) -> int | None:
        return self.codec.eos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **keywords) -> list[int]:
        """Token ids, never with special tokens around them."""
        return self.codec.encode(string)

    def _scores(self, pairs: list[Pair], disable_tqdm: bool):
        """The index of each pair and its score, as they come."""
        cut = sum(pair.cut > 0 for pair in pairs)
        if cut:
            logging.getLogger(LOGGED).warning(
                "%d of %d contexts are cut on the left to %d tokens", cut, len(pairs), self.max_length
            )
        scores = iterate_scores(self.model, pairs, self.batch_size)
        return tqdm(scores, total=len(pairs), desc="Running loglikelihood requests", disable=disable_tqdm)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **keywords) -> list[Score]:
        """Scores of (texts, context ids, continuation ids): the harness makes them from its requests.

        It moves white space at the end of a context to the continuation. What is left of a context of white space is
        an empty one: an end of text.
        """
        pairs = [
            cut_left(context or [self.prefix_token_id], continuation, self.max_length)
            for _, context, continuation in requests
        ]
        results: list[Score | None] = [None] * len(pairs)
        for index, score in self._scores(pairs, disable_tqdm):
            results[index] = score
            self.cache_hook.add_partial("loglikelihood", requests[index][0], tuple(score))
        return cast("list[Score]", results)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each after an end-of-text token, in windows that score each token once."""
        pairs, owner = [], []
        for number, request in enumerate(requests):
            # The harness' windows are of input tokens, and the last token of a text is no input: one more to fit in.
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length - 1, context_len=1
            )
            for window in windows:
                pairs.append(Pair(*make_disjoint_window(window)))
                owner.append(number)
        totals = [0.0] * len(requests)
        for index, score in self._scores(pairs, disable_tqdm):
            totals[owner[index]] += score.log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text after each context, up to a stop string, end of text or max_gen_toks; greedy unless do_sample."""
        results = [""] * len(requests)
        groups: dict[str, list[int]] = {}  # requests with the same settings
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        seeds = request_seeds(requests, self.seed)
        with tqdm(total=len(requests), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            for group in groups.values():
                for index, text in self._generate_group(requests, group, seeds):
                    results[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
                    bar.update()
        return results

    def _generate_group(
        self, requests: list[Instance], group: list[int], seeds: list[int]
    ) -> Iterator[tuple[int, str]]:
        """The indices and texts of requests that have the same settings, in batches of contexts of like length."""
        settings = normalize_gen_kwargs(requests[group[0]].args[1], self.max_gen_toks)
        config, room = self._sampler_config(settings), self._room(settings["max_gen_toks"])
        contexts = {}
        for index in group:
            context = self.tok_encode(requests[index].args[0]) or [self.prefix_token_id]
            contexts[index] = context[room - self.max_length :]
        for rows in batches(sorted(group, key=lambda index: -len(contexts[index])), self.batch_size):
            some, own = [contexts[row] for row in rows], [seeds[row] for row in rows]
            texts = generate(self.model, self.codec, some, own, config, settings["until"], room)
            yield from zip(rows, texts, strict=True)

    def _sampler_config(self, settings: dict) -> SamplerConfig:
        if not settings["do_sample"]:
            return SamplerConfig(**self.sampler, temperature=COLD)
        names = ("top_p", "top_k", "min_p", "repetition_penalty")
        asked = {name: settings[name] for name in names if settings.get(name) is not None}
        return SamplerConfig(**self.sampler, **asked, temperature=settings.get("temperature") or COLD)

    def _room(self, max_gen_toks: int) -> int:
        """How many tokens are generated at most: half of what the model takes is left to the context."""
        if max_gen_toks < 0:
            raise InputError(f"max_gen_toks must be at least 0, not {max_gen_toks}")
        room = min(max_gen_toks, self.max_length // 2)
        if room < max_gen_toks:
            logging.getLogger(LOGGED).warning(
                "max_gen_toks %d is lowered to %d, half of what the model takes", max_gen_toks, room
            )
        return room


def request_seeds(requests: list[Instance], seed: int) -> list[int]:
    """A seed for each request. It depends on the document, and on which of its repeats it is, not on the process."""
    seeds, repeats = [], Counter[int]()
    for request in requests:
        about = [getattr(request, name, None) for name in ("task_name", "doc_id", "idx")]
        number = zlib.crc32(repr((about, request.args[0])).encode())
        seeds.append(sampling_seed(seed, number, repeats[number]))
        repeats[number] += 1
    return seeds


def generate(
    model: DecodingModel,
    codec: TextCodec,
    contexts: list[list[int]],
    seeds: list[int],
    config: SamplerConfig,
    stops: list[str],
    max_tokens: int,
) -> list[str]:
    """Text after each context, up to the first stop string (without it), end of text or max_tokens.

    The text is a function of its seed: the beginning of what fills a gap of max_tokens after the context. To stop
    early, a short gap is filled first, and again with twice the length while there is no stop in it. With the Gumbel
    coupling, which is used whatever config says, the longer text begins with the shorter one: this does not change
    the distribution.

    contexts: token ids, none empty. config: of an exact sampler. max_tokens: 0 gives empty texts.
    """
    if not max_tokens:
        return [""] * len(contexts)
    config = replace(config, coupling="gumbel")
    texts: dict[int, str] = {}
    size, left = min(FIRST_GAP, max_tokens), list(range(len(contexts)))
    while left:
        gaps = [Pair(contexts[row], [codec.mask_token_id] * size) for row in left]
        batch = pair_batch(gaps, model.device)
        result = sample(model, *batch, config, [seeds[row] for row in left])
        for row, filled, is_gap in zip(left, result.tokens, batch.target, strict=True):
            text, stopped = until_stop(codec, contexts[row], filled[is_gap].tolist(), stops)
            if stopped or size == max_tokens:
                texts[row] = text
        left = [row for row in left if row not in texts]
        size = min(2 * size, max_tokens)
    return [texts[row] for row in range(len(contexts))]


def until_stop(codec: TextCodec, context: list[int], ids: list[int], stops: list[str]) -> tuple[str, bool]:
    """The text of ids after a context, up to end of text or the first stop string, and whether there was one."""
    end = next((index for index, token in enumerate(ids) if token == codec.eos_token_id), len(ids))
    text, ended = text_after(codec, context, ids[:end]), end < len(ids)
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(ends, default=len(text))], ended or bool(ends)
