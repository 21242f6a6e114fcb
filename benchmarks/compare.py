"""Compare models on the sequences that their training held out: exact NLL, and the cost of speculative decoding.

    python benchmarks/compare.py MODEL [MODEL ...] --train_files FILE_OR_FOLDER ... [--held_out 0.02]

Prints, for masking rates 0.15, 0.5 and 0.95, each model's exact joint NLL in nats a token, that of unigram and bigram
counts from the training part on the same tokens, and the paired difference to the first model (mean and standard error
over sequences); and tokens per NFE of ASSD with self drafts and of fused decoding without draft head, on sequences of
which 50 % and 95 % are masked. All models must share the first one's tokenizer.
"""

import argparse

import numpy as np
import torch

from asarm import SamplerConfig, load, sample
from asarm.data.config import CorpusConfig
from asarm.data.packed import blocks, evenly, local_corpus
from asarm.models.backbone import AnyOrderModel
from asarm.objective.masking import random_targets
from asarm.training.validation import RATES, masked_nll, ngram_nll
from asarm.utils.errors import InputError


def decoding_cost(
    model: AnyOrderModel, tokens: torch.Tensor, rate: float, config: SamplerConfig
) -> tuple[np.ndarray, list[float]]:
    """Tokens per NFE of each sequence [n], and the mean acceptance of drafts by their index."""
    target = random_targets(tokens, rate, torch.Generator().manual_seed(1))
    result = sample(model, tokens, ~target, target, config, range(len(tokens)))
    shares = result.accepted.sum(0) / result.proposed.sum(0)
    return (result.targets / result.nfe).numpy(), shares.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="bundled names, folders or Hub repositories (REPOSITORY@REVISION)")
    parser.add_argument("--train_files", nargs="+", required=True, help="as in training")
    parser.add_argument("--extensions", nargs="+", default=CorpusConfig().extensions, help="as in training")
    parser.add_argument("--held_out", type=float, default=0.02, help="as in training")
    parser.add_argument("--length", type=int, default=512, help="tokens a sequence")
    parser.add_argument("--num_texts", type=int, default=128, help="sequences for the NLL, evenly spaced")
    parser.add_argument("--num_decoded", type=int, default=48, help="sequences to decode")
    parser.add_argument("--k", type=int, default=5)
    arguments = parser.parse_args()

    models, codecs = zip(*(load(*name.split("@")) for name in arguments.models), strict=True)
    codec = codecs[0]
    source = CorpusConfig(
        train_files=arguments.train_files, extensions=arguments.extensions, held_out=arguments.held_out
    )
    train, held_out = (blocks(part, arguments.length) for part in local_corpus(source, codec))
    chosen = evenly(held_out, arguments.num_texts)
    print(f"{len(chosen)} of {len(held_out)} held-out sequences of {arguments.length} tokens\n")
    print("| masked | model | NLL, nats a token | against the first |\n| --- | --- | ---: | ---: |")
    for model, name in zip(models, arguments.models, strict=True):
        if model.config.vocab_size != models[0].config.vocab_size:
            raise InputError(f"{name} has another vocabulary than {arguments.models[0]}")
    for rate in RATES:
        for table, value in ngram_nll(train, chosen, rate, models[0].config.vocab_size, seed=0).items():
            print(f"| {rate} | {table} | {value:.3f} | |")
        scores = [masked_nll(model, chosen, rate, seed=0) for model in models]
        for name, score in zip(arguments.models, scores, strict=True):
            gap = score - scores[0]
            error = gap.std(ddof=1) / len(gap) ** 0.5
            print(f"| {rate} | {name} | {score.mean():.3f} | {gap.mean():+.4f} ± {error:.4f} |", flush=True)
    decoded = torch.from_numpy(evenly(chosen, arguments.num_decoded)).long()
    samplers = {
        "assd": SamplerConfig(draft="blind", k=arguments.k),
        "fused": SamplerConfig("fused", draft="blind", k=arguments.k),
    }
    print(f"\n| masked | model | sampler | tokens per NFE, k={arguments.k} | acceptance by index |")
    print("| --- | --- | --- | ---: | --- |")
    for rate in (0.5, 0.95):
        for model, name in zip(models, arguments.models, strict=True):
            for sampler, config in samplers.items():
                gain, shares = decoding_cost(model, decoded, rate, config)
                error = gain.std(ddof=1) / len(gain) ** 0.5
                listed = " ".join(f"{share:.2f}" for share in shares)
                print(f"| {rate} | {name} | {sampler} | {gain.mean():.3f} ± {error:.3f} | {listed} |", flush=True)


if __name__ == "__main__":
    main()
