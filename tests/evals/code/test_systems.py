"""Infilling systems on code: white space that is kept, and causal models with and without a suffix."""

import math

import pytest
import torch

from asarm.evals.code.config import CodeConfig
from asarm.evals.code.examples import CodeGapLengthPolicy, make_example
from asarm.evals.infilling.causal import CausalModel
from asarm.evals.infilling.fim import FAMILIES, find_fim
from asarm.evals.infilling.infill import fill
from asarm.evals.infilling.systems import CausalSystem
from asarm.models.load import load
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.transforms import Transforms
from asarm.utils.config import from_options
from support.code_problems import ROWS, infill_example, problems_of
from support.models import tiny_gpt2


def test_leading_white_space_of_a_completion_is_kept(tiny_folder):
    codec = load(tiny_folder)[1]
    model = tiny_gpt2(len(codec), n_positions=128)
    model.config.mask_token_id = codec.mask_token_id
    examples = [make_example(problem, "single-line", codec) for problem in problems_of(ROWS[:3])]
    for _ in range(3):
        filled = fill(model, codec, [(example, 9) for example in examples], SamplerConfig(k=3), range(3))
        for example, one in zip(examples, filled, strict=True):
            whole = codec.decode(example.prefix_tokens + one.tokens + example.suffix_tokens)
            assert whole == example.problem.source(one.text)


@pytest.mark.parametrize("marks", FAMILIES, ids=lambda marks: marks[0])
def test_marks_of_models_that_fill_in_the_middle_are_found(marks, tiny_folder):
    tokenizer = load(tiny_folder)[1].tokenizer
    assert find_fim(tokenizer) is None
    tokenizer.add_tokens(list(marks))
    ids = tokenizer.convert_tokens_to_ids(list(marks))
    assert find_fim(tokenizer).prompt([1, 2], [3]) == [ids[0], 1, 2, ids[1], 3, ids[2]]


def test_a_causal_model_with_marks_sees_prefix_and_suffix(causal_folder, tmp_path):
    config = from_options(CodeConfig, model="unused", output_dir=str(tmp_path), causal=causal_folder, temperature=1e-4)

    def make_examples(codec, longest):
        assert longest == 96 - 3
        examples = [make_example(problem, "single-line", codec) for problem in problems_of(ROWS)]
        return {"single-line": examples}, {"single-line": CodeGapLengthPolicy(examples, 1, longest, 48)}

    (variant,) = (one for one in config.variants() if one.sampler == "causal")
    system = CausalSystem(causal_folder, config, make_examples, torch.device("cpu"))
    filled = system.fill(system.examples["single-line"], "single-line", variant, 0)
    assert [one.cut > 0 for one in filled] == [False, False, False, True]
    marks = system.model.fim
    for example, one in zip(system.examples["single-line"][:3], filled, strict=False):
        ids = marks.prompt(example.prefix_tokens, example.suffix_tokens)
        for token in one.tokens:
            with torch.no_grad():
                logits = system.model.model(torch.tensor([ids])).logits[0, -1]
            logits[[*system.model.codec.tokenizer.all_special_ids, *marks]] = -math.inf
            assert token == int(logits.argmax())
            ids.append(token)
        assert len(one.tokens) == len(example.reference_tokens) == one.nfe


def test_a_causal_model_begins_as_its_tokenizer_does(causal_folder):
    model = CausalModel(causal_folder, torch.device("cpu"))
    assert model.begin == []
    (filled,) = model.fill([(infill_example(prefix=0), 3)], Transforms(), [0])  # the prompt is the end of a text alone
    assert len(filled.tokens) == 3
