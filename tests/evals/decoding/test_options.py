"""Texts, packings, models, lengths, sweeps and scores that the decoding evaluation has beside its usual ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from asarm.cli.decode import ABLATIONS, parse_arguments
from asarm.data.rows import Row
from asarm.evals.decoding import texts
from asarm.evals.decoding.config import DecodingEvalConfig
from asarm.evals.decoding.generative_perplexity import causal_scorer, token_entropy
from asarm.evals.decoding.report import slow_line, summary
from asarm.evals.decoding.run import evaluate
from asarm.evals.tables import SCREEN
from asarm.models.load import load
from asarm.tokenization.codec import TextCodec
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from support.results import interrupted_copy, lines_of, without_times
from support.xlnet_tokenizer import train_xlnet_tokenizer


def configured(**settings) -> DecodingEvalConfig:
    return from_options(DecodingEvalConfig, output_dir="unused", **settings)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory, sample_text):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(sample_text * 6, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def settings(tiny_folder, text_file):
    return {
        "model": tiny_folder, "text": text_file, "judge": "self", "device": "cpu", "length": [16, 32], "k": 3,
        "num_texts": 4, "batch_size": 2, "mask_rate": 0.9, "samplers": ["sequential", "assd-self"], "k_sweep": [2, 3],
        "tolerance_sweep": [0.0, 0.5], "k_sweep_texts": 3, "batch_1_texts": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, settings):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    evaluate(from_options(DecodingEvalConfig, output_dir=str(folder), **settings))
    return folder


# --- texts


def test_rows_are_packed_as_the_tokenizer_ends_them(sample_text):
    """XLNet's ends each row with <sep><cls>, and eos follows; an empty row has these three alone."""
    tokenizer = train_xlnet_tokenizer(sample_text, vocab_size=200)
    codec = TextCodec(tokenizer)
    rows = ["The old bear slept.\n", "\n", "It was morning.\n"]
    found = texts.token_stream(rows, codec, "rows", None).tolist()
    ending = [tokenizer.sep_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id]
    expected = [id for row in rows for id in [*codec.encode(row), *ending]]
    assert found == expected
    assert texts.token_stream(rows, codec, "joined", None).tolist() == [
        id for row in rows for id in [*codec.encode(row), tokenizer.eos_token_id]
    ]


def test_documents_of_a_file(text_file, sample_text):
    assert list(texts.load_documents(text_file, "joined")) == [sample_text * 6]
    assert list(texts.load_documents(text_file, "rows")) == sample_text.splitlines(keepends=True) * 6


def test_lines_end_with_newlines_alone(tmp_path):
    (tmp_path / "text.txt").write_text("one\u2028line\x0b\n\nanother", encoding="utf-8")
    assert texts.load_documents(str(tmp_path / "text.txt"), "rows") == ["one\u2028line\x0b\n", "\n", "another"]


def test_openwebtext_is_read_as_far_as_needed(monkeypatch, tiny_folder, sample_text):
    codec, read = load(tiny_folder)[1], []

    def stream(source, instead, fields):
        assert (source, fields) == (("Skylion007/openwebtext", "train"), ["text"])
        for number in range(1000):
            read.append(number)
            yield Row(f"row {number}", {"text": f"{number}. {sample_text}"})

    monkeypatch.setattr(texts, "hub_stream", stream)
    config = configured(text="openwebtext", num_texts=5, length=[32, 64], shuffle=False, mask_rate=0.9)
    documents = texts.load_documents(config.text, config.packing)
    first = texts.choose_sequences(documents, codec, config, 32)
    assert first.index == [0, 1, 2, 3, 4]
    assert len(read) < 10
    again = texts.choose_sequences(documents, codec, config, 64)  # from the first document on
    assert again.batch.tokens[0, :32].equal(first.batch.tokens[0])


def test_texts_in_order_and_prompts_on_the_left(tiny_folder, sample_text):
    codec = load(tiny_folder)[1]
    config = configured(num_texts=3, length=[32], shuffle=False, left_to_right=True, mask_rate=0.9)
    found = texts.choose_sequences([sample_text * 6], codec, config, 32)
    assert found.index == [0, 1, 2]
    assert found.batch.tokens.flatten().tolist() == codec.encode(sample_text * 6)[:96]
    assert found.batch.given.equal(torch.arange(32).expand(3, -1) < config.visible(32))


# --- several models, lengths, k, tolerances and batch sizes


def test_all_are_decoded_and_compared(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert list(metrics["k_sweep"]) == ["N=16 assd-self", "N=32 assd-self"]
    assert [point["k"] for point in metrics["k_sweep"]["N=16 assd-self"]] == [2, 3]
    tolerances = metrics["tolerance_sweep"]["N=32 assd-self"]
    assert [(point["tolerance"], point["n"]) for point in tolerances] == [(0.0, 3), (0.5, 3)]
    assert tolerances[1]["mean"] <= tolerances[0]["mean"]
    for point in tolerances:
        assert all(math.isfinite(point[key]["mean"]) for key in ("seconds", "perplexity", "entropy", "nfe"))
    table = (finished / "table.md").read_text()
    assert "| variant | texts | NFE | tokens per NFE | seconds a text, batch 2 | seconds, batch 1 |" in table
    assert "By tolerance, on 3 of the texts." in table
    for name in ("k_sweep", "tolerance_sweep"):
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_one_text_at_a_time_gives_the_same_texts_and_other_seconds(finished):
    lines = {(line["length"], line["variant"], line["index"]): line for line in lines_of(finished)}
    alone = {key: line for key, line in lines.items() if line["batch_size"] == 1}
    assert len(alone) == 2 * 2 * 2
    for (length, variant, index), line in alone.items():
        together = lines[length, variant.removesuffix("-batch-1"), index]
        assert (line["text"], line["nfe"]) == (together["text"], together["nfe"])
    one = json.loads((finished / "metrics.json").read_text())["variants"]["N=16 assd-self"]
    assert one["seconds_batch_1"]["n"] == 2
    assert one["seconds_batch_1"]["mean"] == pytest.approx(
        np.mean([line["seconds"] for key, line in alone.items() if key[:2] == (16, "assd-self-batch-1")])
    )


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_resuming_after_an_interruption_repeats_the_run(finished, settings, tmp_path, kept):
    interrupted_copy(finished, tmp_path / "run", kept)
    evaluate(from_options(DecodingEvalConfig, output_dir=str(tmp_path / "run"), **settings))
    assert without_times(lines_of(tmp_path / "run")) == without_times(lines_of(finished))


def test_at_batch_size_1_nothing_is_timed_twice(settings):
    names = [one.name for one in configured(**(settings | {"batch_size": 1})).variants()]
    assert not [name for name in names if name.endswith("batch-1")]


def test_models_beside_each_other(settings, finished, tiny_folder, tmp_path):
    other = tmp_path / "other"
    model, codec = load(tiny_folder)
    torch.nn.init.normal_(next(model.parameters()))
    model.save_pretrained(other)
    codec.save_pretrained(other)
    change = {"model": "", "models": [tiny_folder, str(other)]}
    metrics = evaluate(from_options(DecodingEvalConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    first, second = Path(tiny_folder).name, other.name
    assert f"{first} N=16 assd-self" in metrics["against_sequential"]
    assert f"{second} N=32 assd-self" in metrics["against_sequential"]
    lines = lines_of(tmp_path / "run")
    # The first model's results are those of a run of its own.
    assert without_times([one for one in lines if one["model"] == tiny_folder]) == without_times(lines_of(finished))
    assert len({line["true_text"] for line in lines if line["length"] == 16}) == 4


def test_what_is_printed_fits_a_terminal(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    lines = summary(metrics).splitlines()
    assert max(map(len, lines)) <= 100
    assert "The rest" not in lines[-2]
    many = metrics | {"k_sweep": {f"{name} {n}": one for name, one in metrics["k_sweep"].items() for n in range(20)}}
    lines = summary(many).splitlines()
    assert len(lines) <= SCREEN
    assert lines[-2] == "The rest of what was swept over is in table.md."


def test_sweeps_over_many_values_have_a_row_for_each(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    sweep = {
        name: [point | {"k": k} for k in range(2, 9) for point in one[:1]] for name, one in metrics["k_sweep"].items()
    }
    printed = summary(metrics | {"k_sweep": sweep})
    assert "| NFE by k, 3 texts | N=16 assd-self | N=32 assd-self |" in printed
    assert printed.count("\n| 8 ") == 2


def test_drafts_that_take_longer_than_they_save_are_named():
    def comparisons(**speedups: float) -> dict:
        return {name.replace("_", "-"): {"seconds": {"speedup": speedup}} for name, speedup in speedups.items()}

    assert slow_line(comparisons(fused=1.3, fused_adaptive=0.99)) == []
    (line,) = slow_line(comparisons(fused=0.81, assd_self=1.1, assd_ngram=0.97))
    assert line.startswith("slower here than sequential: fused, assd-ngram. --samplers fused-adaptive ")


# --- scores


@pytest.fixture(scope="module")
def small_gpt2(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.bos_token = tokenizer.eos_token
    torch.manual_seed(0)
    shape = {"n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_start_token_and_entropy_of_the_whole_text(small_gpt2, sample_text):
    folder, model, tokenizer = small_gpt2
    ids = tokenizer(sample_text)["input_ids"]
    read = torch.tensor([[tokenizer.bos_token_id, *ids[:23]]])  # 24 positions in all
    with torch.no_grad():
        expected = model(read, labels=read).loss.item()  # of all but the bos token
    scorer = causal_scorer(str(folder), torch.device("cpu"), add_start_token=True, entropy_of_whole=True)
    found, one_token = scorer([sample_text, tokenizer.decode(ids[:1])], None)
    assert found.nll == pytest.approx(expected, abs=1e-5)
    assert found.entropy == pytest.approx(token_entropy(ids))
    assert math.isfinite(one_token.nll)  # which has a context


def test_a_tokenizer_without_bos_token(tiny_folder, small_gpt2, tmp_path):
    small_gpt2[1].save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no bos token to start with: use --add_start_token False"):
        causal_scorer(str(tmp_path), torch.device("cpu"), add_start_token=True)


# --- the command line


def test_unknown_ablation():
    with pytest.raises(InputError, match="unknown ablation 'ablate-t': choose from ablate-k, ablate-tolerance"):
        parse_arguments(["ablate-t", "tiny"])


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_ablations_change_a_preset(ablation, preset):
    config = parse_arguments([ablation, preset, "--k", "4"])
    assert config.output_dir == f"results/decode-{ablation}-{preset}"
    assert config.sampling.k == 4
    assert config.k_sweep_texts == config.num_texts or preset == "tiny"
    swept = {"ablate-k": config.k_sweep, "ablate-tolerance": config.tolerance_sweep}[ablation]
    assert len(swept) > 4
    if preset == "tiny":
        assert max(config.length) <= load("tiny-text")[0].config.n_positions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": "loose"}, "unknown packing 'loose'"),
        ({"entropy_of": "half"}, "unknown entropy_of 'half'"),
        ({"length": [32, 1]}, "length must be at least 2, not 1"),
        ({"length": []}, "no length given"),
        ({"samplers": []}, "no samplers given"),
        ({"revision": "nlp"}, "revision belongs to --model"),
        ({"models": []}, "no model given"),
        ({"tolerance_sweep": [2.0]}, r"tolerance must lie in \[0, 1\], not 2.0"),
        ({"batch_1_texts": -1}, "batch_1_texts must be at least 0"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        configured(**change)
