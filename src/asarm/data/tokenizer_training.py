"""Training of a byte-level BPE tokenizer on the training data."""

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from asarm.data.config import CorpusConfig
from asarm.data.readers import corpus_files, documents
from asarm.utils.errors import InputError

TOKENIZER_TEXT = 100_000_000  # characters that a tokenizer is trained on


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens <eos>, <pad> and <mask> (ids 0, 1, 2); any text round-trips.

    A newline is a token of its own. GPT-2's rule joins it to the indentation after it: then a text that is cut at a
    line, as around gaps in code, has other tokens at the cut than the whole text, and a model takes the cut for the end
    of the text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<eos>", "<pad>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", mask_token="<mask>"
    )


def corpus_text(config: CorpusConfig) -> Iterator[str]:
    """The text of the local files in pieces, to train a tokenizer on: at most about TOKENIZER_TEXT characters."""
    left = TOKENIZER_TEXT
    for path in corpus_files(config.train_files, config.extensions):
        try:
            for _, piece in documents(path, config.text_field):
                yield piece
                left -= len(piece)
                if left <= 0:
                    return
        except InputError:
            if config.names(path):
                raise
