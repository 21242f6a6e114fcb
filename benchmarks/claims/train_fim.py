"""Adapt a causal model to fill in the middle, with the budget of the adapters of train_adapters.sh.

    python benchmarks/claims/train_fim.py PASSAGES.jsonl --output_dir OUTPUT [--base smollm2] [--max_steps 100]

The usual recipe (arXiv 2207.14255): a text is rearranged as prefix, suffix, middle, with a mark before each, and the
model is trained on all tokens from left to right. Texts, kinds of gaps, rank of the adapter, sequences a step, steps
and learning rates are those of the any-subset adapters; but each text has one gap. The model is saved with its adapter
merged, as `transformers` does, with the marks of Qwen and CodeGemma in its tokenizer, which the evaluations know.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from asarm.data.rows import read_rows
from asarm.evals.infilling.fim import FAMILIES, Fim
from asarm.models.conversion.smollm2 import NAME, smollm2_folder
from asarm.objective.text_gaps import TextGaps
from asarm.tokenization.codec import TextCodec
from asarm.training.config import TrainingConfig
from asarm.training.optimizer import new_optimizer
from asarm.utils.files import write_whole
from asarm.utils.progress import progress_bar

MARKS = FAMILIES[2]
ROWS, MICRO_BATCHES = 2, 4  # sequences at once, and how often before a step
RANK, LEARNING_RATE, WARM_UP = 16, 8e-4, 10
LONGEST = 128  # tokens of a text
IGNORED = -100


def rearranged(text: str, codec: TextCodec, gaps: TextGaps, fim: Fim, rng: np.random.Generator) -> list[int]:
    """Token ids of a text as prefix, suffix and middle, with an end; as it is, where no gap fits."""
    span = gaps.span(text, rng)
    end = [codec.eos_token_id]
    if span is None:
        return codec.encode(text)[:LONGEST] + end
    start, stop = span
    parts = (gaps.encode(text, *bounds) for bounds in ((0, start), (stop, len(text)), (start, stop)))
    prefix, suffix, middle = parts
    return fim.prompt(prefix, suffix) + middle + end


def batches(texts: list[str], codec: TextCodec, gaps: TextGaps, fim: Fim, seed: int) -> Iterator[torch.Tensor]:
    """Batches of token ids [ROWS, N], IGNORED after the end of shorter ones. Each epoch has a random order."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(texts))
        for some in order[: len(order) // ROWS * ROWS].reshape(-1, ROWS):
            rows = []
            for text in (texts[index] for index in some):
                short = codec.decode(codec.encode(text)[:LONGEST])
                rows.append(torch.tensor(rearranged(short, codec, gaps, fim, rng)))
            yield torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def loss_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood, nats a token, of token ids [B, N] from left to right."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids.clamp(min=0), attention_mask=(ids != IGNORED).long()).logits
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="JSON lines with the field text")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--base", default=NAME, help="a causal model: a folder, or smollm2")
    parser.add_argument("--gap_kinds", nargs="+", default=["sentences", "words", "characters"], help="as in training")
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--held_out", type=float, default=0.05, help="share of the texts, at the end, left out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    folder = smollm2_folder() if arguments.base == NAME else Path(arguments.base)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    model.resize_token_embeddings(max(len(tokenizer), model.config.vocab_size))
    fim = Fim(*tokenizer.convert_tokens_to_ids(list(MARKS)))
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear",
            trainable_token_indices={"embed_tokens": list(fim)},
        ),
    )  # fmt: skip
    texts = [row.fields["text"] for row in read_rows(str(arguments.texts), ["text"])]
    texts = texts[: math.floor(len(texts) * (1 - arguments.held_out))]
    codec = TextCodec(tokenizer)
    found = batches(texts, codec, TextGaps(codec, tuple(arguments.gap_kinds)), fim, arguments.seed)
    config = TrainingConfig(
        output_dir=str(arguments.output_dir), max_steps=arguments.max_steps, learning_rate=LEARNING_RATE,
        warmup_steps=WARM_UP,
    )  # fmt: skip
    optimizer = new_optimizer(adapted, config)
    with progress_bar("training", "step", arguments.max_steps) as bar:
        for step in range(arguments.max_steps):
            losses = []
            for _ in range(MICRO_BATCHES):
                loss = loss_of(adapted, next(found))
                (loss / MICRO_BATCHES).backward()
                losses.append(loss.item())
            torch.nn.utils.clip_grad_norm_(adapted.parameters(), config.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
            optimizer.step()
            optimizer.zero_grad()
            bar.update(1)
            bar.set_postfix(loss=f"{np.mean(losses):.3f}")
    merged = adapted.merge_and_unload()

    def save(path: Path) -> None:
        merged.save_pretrained(path)
        tokenizer.save_pretrained(path)

    write_whole(arguments.output_dir, save)
    print(f"loss of the last step {np.mean(losses):.3f}: {arguments.output_dir}")


if __name__ == "__main__":
    main()
