"""A tokenizer of XLNet's class with a small vocabulary."""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import XLNetTokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]  # XLNet's ids 0..8


def train_xlnet_tokenizer(text: str, vocab_size: int) -> XLNetTokenizer:
    """A Unigram vocabulary of the text, with XLNet's special tokens at XLNet's ids."""
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.train_from_iterator(
        [text],
        trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    vocabulary = json.loads(unigram.to_str())["model"]["vocab"]
    return XLNetTokenizer(vocab=[(token, score) for token, score in vocabulary])
