"""The tokenizer that is trained on the training data."""

from asarm.data.tokenizer_training import train_tokenizer
from support.training import PROSE


def test_tokenizer_round_trips_any_text():
    tokenizer = train_tokenizer([PROSE], 400)
    for text in ("  Tab\t, new\n\n line; émigré 猫 🙂", PROSE[:200]):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len({tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
