"""The Python API: texts filled, several samples, best of n, streams."""

import pytest
import torch

import asarm
from asarm.sampling.config import SamplerConfig
from asarm.utils.errors import InputError

TEXT = "Once upon a time ___ lived in a ___5."


def test_a_filling_has_text_tokens_density_and_trace(infiller):
    (one,) = asarm.infill(TEXT, infiller, sampler="assd", k=3, seed=5, trace=True)
    assert one.text == infiller.codec.decode(one.tokens) == "".join(span.text for span in one.spans)
    assert [span.text for span in one.spans if span.label == "prompt"] == ["Once upon a time", " lived in a", "."]
    batch = infiller.parse(TEXT)._replace(tokens=torch.tensor([one.tokens]))
    assert one.log_prob == pytest.approx(float(asarm.log_prob(infiller.model, *batch).sum()), abs=1e-3)
    assert (one.targets, one.seed, sum(one.target)) == (9, 5, 9)
    assert sum(step.accepted + len(step.added) for step in one.trace) == 9


def test_texts_together_are_texts_alone(infiller):
    texts = [TEXT, "___2 was unable to sleep", "It was ___3 ___2 in the castle"]
    together = asarm.infill(texts, infiller, num_return_sequences=2, batch_size=2, temperature=0.8)
    for index, found in enumerate(together):
        alone = asarm.infill(texts[index], infiller, num_return_sequences=2, seed=2 * index, temperature=0.8)
        assert [one.text for one in found] == [one.text for one in alone]
        assert [one.log_prob for one in found] == pytest.approx([one.log_prob for one in alone], abs=1e-3)


def test_best_of_n_are_the_likeliest_of_n(infiller):
    every = asarm.infill(TEXT, infiller, num_return_sequences=6, seed=3)
    best = asarm.infill(TEXT, infiller, best_of=6, num_return_sequences=2, seed=3)
    expected = sorted(every, key=lambda one: -one.log_prob)[:2]
    assert [one.seed for one in best] == [one.seed for one in expected]
    assert len({one.text for one in every}) == 6


@pytest.mark.parametrize(
    "settings", [{"sampler": "sequential"}, {"sampler": "assd"}, {"sampler": "fused", "k": 3}], ids=str
)
@pytest.mark.parametrize("kind", ["infiller", "ending"])
def test_a_stream_ends_in_the_filling(settings, kind, request):
    infiller = request.getfixturevalue(kind)
    config = infiller.config(**settings)
    parts = list(infiller.stream(TEXT, config, seed=2))
    (expected,) = asarm.infill(TEXT, infiller, seed=2, trace=True, **settings)
    assert [part.filling is None for part in parts] == [True] * (len(parts) - 1) + [False]
    assert [part.step for part in parts] == expected.trace
    assert parts[-1].text == parts[-1].filling.text == expected.text
    open_positions = [part.text.count(" _") for part in parts]
    assert open_positions == sorted(open_positions, reverse=True)


def test_a_stream_can_be_left(infiller):
    stream = infiller.stream("a ___50", infiller.config(sampler="sequential"))
    assert next(stream).text.count(" _") == 49
    stream.close()  # returns when the decoding has ended


def test_an_error_comes_out_of_the_stream(infiller):
    config = infiller.config(bad_words_ids=[[token] for token in range(infiller.model.config.vocab_size)])
    with pytest.raises(InputError, match="no token is allowed"):
        list(infiller.stream(TEXT, config))


def filled_tokens(one: asarm.Filling) -> set[int]:
    return {token for token, is_target in zip(one.tokens, one.target, strict=True) if is_target}


def test_words_and_patterns(infiller):
    """Of tokens: one word is never written, then digits and spaces alone are."""
    plain = asarm.infill(TEXT, infiller, num_return_sequences=8, temperature=0.5)
    written = (infiller.codec.decode([token]).strip() for one in plain for token in sorted(filled_tokens(one)))
    word = next(text for text in written if text.isalpha())
    without = asarm.infill(TEXT, infiller, num_return_sequences=8, temperature=0.5, bad_words=[word])
    banned = infiller.for_text(SamplerConfig(), [word]).bad_words_ids
    singles = {word[0] for word in banned if len(word) == 1}
    assert any(singles & filled_tokens(one) for one in plain)
    assert not any(singles & filled_tokens(one) for one in without)
    for one in asarm.infill(TEXT, infiller, num_return_sequences=4, allowed=r" ?[a-e]+"):
        filled = "".join(span.text for span in one.spans if span.label == "filled")
        assert set(filled) <= set(" abcde")


def test_gaps_are_filled_with_text(infiller):
    """At a high temperature every token is about as likely: a special one would be among so many."""
    ids = infiller.codec.textless()
    assert infiller.codec.eos_token_id in ids
    plain = infiller.config().suppress_tokens
    assert plain == ids
    found = asarm.infill("a ___100 b", infiller, num_return_sequences=20, temperature=1e6)
    assert not any(filled_tokens(one) & set(ids) for one in found)
    batch = infiller.parse("a ___100 b")
    rows = [part.repeat(20, 1) for part in batch]
    freely = asarm.sample(infiller.model, *rows, SamplerConfig("fused", temperature=1e6), range(20))
    assert set(freely.tokens[rows[2]].tolist()) & set(ids)


def test_gaps_that_end_write_allowed_tokens_and_their_end(ending):
    for one in asarm.infill("a ___ b", ending, num_return_sequences=8, allowed="[ a-z]+", sampler="assd"):
        assert set(one.text) <= set(" abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 0}, "num_return_sequences must be at least 1"),
        ({"num_return_sequences": 3, "best_of": 2}, "best_of must be at least num_return_sequences"),
        ({"temperature": 0, "best_of": 4}, "temperature 0 gives one text, not 4"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**63}, "seed must be below"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"gap_tokens": 3}, "gap_tokens belongs to the Infiller"),
        ({"allowed": "("}, "is no regular expression"),
        ({"allowed": "qqqq"}, "no token matches 'qqqq'"),
        ({"bad_words": [" "]}, "a bad word is empty"),
        ({"top_p": 2}, "top_p must lie above 0"),
    ],
    ids=str,
)
def test_options_that_cannot_be(infiller, options, message):
    with pytest.raises(InputError, match=message):
        asarm.infill(TEXT, infiller, **options)
