"""A tokenizer of XLNet's class with a small vocabulary."""

import json
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import XLNetTokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]  # XLNet's ids 0..8


def write_spiece_model(folder: Path, text: str, vocab_size: int) -> None:
    """Write spiece.model, the vocabulary as XLNet's repositories have it, with XLNet's special tokens at its ids."""
    lines, (unk, bos, eos, *others) = iter(text.splitlines()), SPECIAL
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=file, vocab_size=vocab_size, control_symbols=others, minloglevel=2,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, unk_piece=unk, bos_piece=bos, eos_piece=eos,
        )  # fmt: skip


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
