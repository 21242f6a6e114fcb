"""The decoding evaluation: end to end on a random model, resuming, statistics, scoring models, bad input."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from scipy import stats as scipy_stats
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from asarm.__main__ import main
from asarm.cli.decode import PRESETS, parse_arguments
from asarm.evals import stats
from asarm.evals.decoding import generative_perplexity
from asarm.evals.decoding import metrics as decoding_metrics
from asarm.evals.decoding import run as decoding
from asarm.evals.decoding.config import DecodingEvalConfig
from asarm.evals.decoding.run import Decoder, evaluate
from asarm.evals.decoding.texts import Sequences, choose_sequences, load_documents, prompt_text
from asarm.models.load import AsArm, load
from asarm.sampling.config import NAMED_SAMPLERS
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from support.results import interrupted_copy, lines_of, without_times

# Adaptive windows are as long as pays at the moment, so that no two runs need to cost the same.
REPEATABLE = [name for name in NAMED_SAMPLERS if not name.endswith("-adaptive")]
NUM_TEXTS, LENGTH, BATCH = 5, 32, 2


@pytest.fixture(scope="module")
def text_file(tmp_path_factory, sample_text):
    path = tmp_path_factory.mktemp("text") / "some text.txt"
    path.write_text(sample_text * 3, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def settings(tiny_folder, text_file):
    return {
        "model": tiny_folder, "text": text_file, "judge": "self", "device": "cpu", "length": [LENGTH], "k": 4,
        "num_texts": NUM_TEXTS, "batch_size": BATCH, "mask_rate": 0.9, "samplers": REPEATABLE,
        "k_sweep": [2, 4], "k_sweep_texts": 3, "steps": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, settings):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    evaluate(from_options(DecodingEvalConfig, output_dir=str(folder), **settings))
    return folder


def test_every_text_is_decoded_once_by_every_variant(finished):
    lines = lines_of(finished)
    counts = {name: len(group) for name, group in decoding_metrics.by_variant(lines).items()}
    full = dict.fromkeys(REPEATABLE, NUM_TEXTS)
    assert counts == full | {"assd-self-k2": 3, "assd-ngram-k2": 3, "fused-k2": 3, "fused-blind-k2": 3}
    assert len(lines) == sum(counts.values())
    masked = LENGTH - (math.floor(0.1 * LENGTH) + 1)
    for line in lines:
        assert line["targets"] == masked
        assert line["nfe"] <= masked
        assert line["gen_ppl"] == pytest.approx(math.exp(line["gen_nll"]))
        for drafted, kept in zip(line["proposed"], line["accepted"], strict=True):
            assert drafted >= kept
    by_name = decoding_metrics.by_variant(lines)
    assert {line["nfe"] for line in by_name["sequential"].values()} == {masked}
    assert {line["nfe"] for line in by_name["parallel"].values()} == {3}
    assert all(line["nfe"] < masked for line in by_name["assd-self"].values())


@pytest.mark.parametrize("name", ["fused-adaptive", "assd-adaptive"])
def test_adaptive_windows_change_the_cost_only(tmp_path, settings, name):
    """Texts and scores are those of sequential, whatever the clock says."""
    changes = {"samplers": ["sequential", name], "k_sweep_texts": 0, "output_dir": str(tmp_path)}
    evaluate(from_options(DecodingEvalConfig, **(settings | changes)))
    by_name = decoding_metrics.by_variant(lines_of(tmp_path))
    for index, line in by_name["sequential"].items():
        for field in ("text", "gen_nll", "entropy"):
            assert by_name[name][index][field] == line[field]


def test_visible_tokens_stay(finished, settings, tiny_folder):
    config = from_options(DecodingEvalConfig, output_dir="unused", **settings)
    codec = load(tiny_folder)[1]
    texts = choose_sequences(load_documents(config.text, config.packing), codec, config, LENGTH)
    for line in lines_of(finished):
        row = texts.index.index(line["index"])
        tokens, given = texts.batch.tokens[row].tolist(), texts.batch.given[row].tolist()
        assert line["prompt"] == prompt_text(codec, tokens, given)
        assert line["true_text"] == codec.decode(tokens)
        for token, seen in zip(tokens, given, strict=True):
            piece = codec.decode([token])
            assert not seen or "\ufffd" in piece or piece in line["text"]


def test_report_is_made_from_the_samples(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    lines = decoding_metrics.by_variant(lines_of(finished))
    for name, group in lines.items():
        values = [line["nfe"] for line in group.values()]
        assert metrics["variants"][name]["nfe"] == {
            "mean": pytest.approx(np.mean(values)),
            "se": pytest.approx(scipy_stats.sem(values)),
            "n": len(values),
        }
        assert metrics["variants"][name]["seconds"]["n"] == math.ceil(len(values) / BATCH)
    assert [point["k"] for point in metrics["k_sweep"]["assd-self"]] == [2, 4]
    assert metrics["k_sweep"]["assd-self"][0]["n"] == 3
    assert metrics["provenance"]["torch"] == torch.__version__
    assert metrics["settings"]["k"] == 4
    table = (finished / "table.md").read_text()
    assert "| sequential | 5 | 28.0 ± 0.0 | 1.000 ± 0.000 |" in table
    for name in ("nfe", "gen_ppl", "entropy", "k_sweep"):
        assert (finished / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kept", [0.0, 0.37, 0.81])
def test_resuming_after_an_interruption_repeats_the_run(finished, settings, tmp_path, kept):
    folder = tmp_path / "run"
    interrupted_copy(finished, folder, kept)
    evaluate(from_options(DecodingEvalConfig, output_dir=str(folder), **settings))
    assert without_times(lines_of(folder)) == without_times(lines_of(finished))


def test_a_finished_run_is_not_decoded_again(finished, settings, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    monkeypatch.setattr(decoding, "sample", lambda *args: pytest.fail("decoded again"))
    evaluate(from_options(DecodingEvalConfig, output_dir=str(folder), **settings))
    assert (folder / "samples.jsonl").read_bytes() == (finished / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("change", [{"k": 3}, {"mask_rate": 0.5}, {"text": "other"}])
def test_results_of_other_settings_are_not_touched(finished, settings, tmp_path, sample_text, change):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    if "text" in change:  # another text in a file of the same name
        change = {"text": str(tmp_path / "other.txt")}
        (tmp_path / "other.txt").write_text(sample_text[::-1] * 3, encoding="utf-8")
        saved = json.loads((folder / "config.json").read_text())
        saved["settings"] |= change
        (folder / "config.json").write_text(json.dumps(saved))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="choose another output_dir"):
        evaluate(from_options(DecodingEvalConfig, output_dir=str(folder), **(settings | change)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_foreign_folder_is_not_touched(settings, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="choose another output_dir"):
        evaluate(from_options(DecodingEvalConfig, output_dir=str(tmp_path), **settings))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_gumbel_coupling_gives_the_sequential_text(settings, tmp_path):
    change = {"coupling": "gumbel", "samplers": ["sequential", "assd-self", "assd-ngram"], "k_sweep_texts": 0}
    metrics = evaluate(from_options(DecodingEvalConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    texts = [
        {i: line["text"] for i, line in group.items()}
        for group in decoding_metrics.by_variant(lines_of(tmp_path / "run")).values()
    ]
    assert texts[0] == texts[1] == texts[2]
    test = metrics["against_sequential"]["assd-self"]["gen_nll"]
    assert (test["difference"], test["t_test_p"], test["verdict"]) == (pytest.approx(0.0, abs=1e-6), 1.0, "same")


def test_texts_and_masks_depend_on_seed_and_block_alone(settings, tiny_folder, sample_text):
    codec = load(tiny_folder)[1]

    def chosen(**change):
        config = from_options(DecodingEvalConfig, output_dir="x", **(settings | change))
        return choose_sequences([sample_text * 3], codec, config, LENGTH)

    few, many, other = chosen(num_texts=2), chosen(num_texts=5), chosen(num_texts=5, seed=1)
    assert many.index[:2] == few.index
    assert many.batch.given[:2].equal(few.batch.given)
    assert other.index != many.index or not other.batch.given.equal(many.batch.given)
    assert len(set(many.index)) == 5
    assert not (many.batch.given == many.batch.given[0]).all()


@pytest.mark.parametrize(
    ("rate", "length", "visible"), [(0.95, 512, 26), (0.95, 128, 7), (0.9, 100, 11), (0.5, 64, 33)]
)
def test_visible_count_is_the_papers(rate, length, visible):
    assert from_options(DecodingEvalConfig, output_dir="x", mask_rate=rate, length=[length]).visible(length) == visible


def test_variants_take_turns():
    config = from_options(
        DecodingEvalConfig, output_dir="x", samplers=["sequential", "assd-self"], k_sweep_texts=0, batch_size=2
    )
    sequences = Sequences([0, 1, 2, 3, 4], None)
    units = decoding.plan(config, Decoder("model", "", None, None, None, {512: sequences}), 512)
    assert [(u.key["batch"], u.variant.name, list(u.items)) for u in units] == [
        (0, "sequential", [0, 1]), (0, "assd-self", [0, 1]),
        (1, "assd-self", [2, 3]), (1, "sequential", [2, 3]),
        (2, "sequential", [4]), (2, "assd-self", [4]),
    ]  # fmt: skip


def test_a_file_of_wikitext_is_the_text_of_the_hub(monkeypatch, tmp_path):
    import datasets

    rows = [{"text": text} for text in ("", " = Title = \n", "", " Some text . \n")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert load_documents("", "joined") == [" = Title = \n Some text . \n"]
    assert load_documents("", "rows") == [row["text"] for row in rows]
    for name in ("test.parquet", "test.jsonl"):
        for packing in ("joined", "rows"):
            assert load_documents(str(tmp_path / name), packing) == load_documents("", packing)
    rows[1]["text"] = None
    with pytest.raises(InputError, match=r"Salesforce/wikitext, row 2: the field text holds null"):
        load_documents("", "joined")


# --- generative perplexity


def test_self_scores_are_the_left_to_right_likelihood(tiny_folder):
    model = AsArm.from_pretrained(tiny_folder)
    tokens = torch.randint(3, model.config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(6).expand(2, -1)
    total = torch.zeros(2)
    for i in range(6):  # each token from those to its left, of which each has seen those to its own left
        query = torch.full((2, 1), i)
        with torch.no_grad():
            logits = model(tokens[:, :i], positions[:, :i], positions[:, :i] + 1, query, query)
        total += torch.log_softmax(logits[:, 0], dim=-1).gather(1, tokens[:, i : i + 1])[:, 0]
    found = generative_perplexity.self_scorer(model)(["", ""], tokens)
    assert [score.nll for score in found] == pytest.approx((-total / 6).tolist(), abs=1e-5)


def test_entropy_is_that_of_the_histogram():
    assert generative_perplexity.token_entropy([7] * 10) == 0.0
    assert generative_perplexity.token_entropy(list(range(16))) == pytest.approx(4.0)
    assert generative_perplexity.token_entropy([1, 1, 2, 3]) == pytest.approx(1.5)


def test_causal_scorer_reads_the_first_tokens_it_can_read(tiny_folder, tmp_path, sample_text):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    torch.manual_seed(0)
    shape = {"n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(sample_text)["input_ids"][:24]
    with torch.no_grad():
        expected = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    found = generative_perplexity.causal_scorer(str(tmp_path), torch.device("cpu"))([sample_text], None)[0]
    assert found.nll == pytest.approx(expected, abs=1e-5)
    assert found.entropy == pytest.approx(generative_perplexity.token_entropy(ids))


# --- statistics


def test_paired_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.4, size=40)
    found = stats.paired(a, b)
    reference = scipy_stats.ttest_rel(a, b)
    assert found["t_test_p"] == pytest.approx(reference.pvalue)
    assert found["interval_95"] == pytest.approx(list(reference.confidence_interval(0.95)))
    assert found["wilcoxon_p"] == pytest.approx(scipy_stats.wilcoxon(a, b).pvalue)
    assert found["difference"] == pytest.approx((a - b).mean())


@pytest.mark.parametrize(
    ("shift", "n", "verdict"), [(0.0, 400, "same"), (0.3, 400, "different"), (0.0, 6, "undecided")]
)
def test_equality_tells_same_from_different_from_undecided(shift, n, verdict):
    rng = np.random.default_rng(1)
    baseline = rng.normal(5.0, 0.3, n)
    found = stats.equality(baseline + rng.normal(shift, 0.1, n), baseline, margin=0.05)
    assert found["verdict"] == verdict
    assert (found["ks_p"] < 1e-3) == (verdict == "different")


def test_equality_says_same_no_more_often_than_it_may():
    """With a true difference at the margin, "same" must come out in about 5 % of cases, and not more."""
    rng = np.random.default_rng(2)
    zero = np.zeros(30)
    same = sum(stats.equality(rng.normal(0.05, 0.03, 30), zero, margin=0.05)["verdict"] == "same" for _ in range(400))
    assert 8 <= same <= 34  # 20 expected; 3.2 standard deviations


def test_constant_differences_and_single_pairs():
    same = stats.equality([1.0, 2.0], [1.0, 2.0], margin=0.1)
    assert (same["t_test_p"], same["wilcoxon_p"], same["verdict"]) == (1.0, 1.0, "same")
    shifted = stats.equality([3.0, 4.0], [1.0, 2.0], margin=0.1)
    assert (shifted["t_test_p"], shifted["verdict"]) == (0.0, "different")
    assert stats.equality([1.0], [1.0], margin=0.1)["verdict"] == "undecided"
    assert stats.mean_se([2.0]) == {"mean": 2.0, "se": None, "n": 1}


def made_line(index, batch, variant="assd-self", **values):
    return {
        "model": "m", "length": 11, "index": index, "batch": batch, "batch_size": 2, "variant": variant,
        "sampler": variant.split("-k")[0], "k": 2, "tolerance": 0.0, "nfe": 5, "targets": 10, "seconds": 1.0,
        "proposed": [5, 5], "accepted": [5, 2], "windows": [0, 0, 5], "gen_nll": 2.0, "gen_ppl": 7.4, "entropy": 5.0,
    } | values  # fmt: skip


def test_acceptance_is_pooled_and_seconds_count_batches():
    lines = [made_line(0, 0, seconds=1.0), made_line(1, 0, seconds=1.0), made_line(2, 1, seconds=4.0)]
    lines[2] |= {"proposed": [4, 3], "accepted": [4, 1], "windows": [0, 1, 3], "nfe": 4}
    found = decoding_metrics.summarise(lines)["variants"]["assd-self"]
    assert found["acceptance"] == [1.0, pytest.approx(5 / 13)]
    assert found["mean_window"] == pytest.approx(27 / 14)
    assert found["seconds"] == {"mean": 2.5, "se": pytest.approx(1.5), "n": 2}
    assert found["tokens_per_nfe"]["mean"] == pytest.approx((2 + 2 + 2.5) / 3)
    assert found["most_nfe_per_target"] == 0.5


def test_k_sweep_compares_on_common_texts():
    lines = [made_line(i, 0, nfe=10 * (i + 1)) for i in range(3)]
    lines += [made_line(i, 0, "assd-self-k4", k=4, nfe=4 * (i + 1)) for i in range(2)]
    curve = decoding_metrics.sweep(lines, "k")["assd-self"]
    assert [(point["k"], point["mean"], point["n"]) for point in curve] == [(2, 15.0, 2), (4, 6.0, 2)]
    assert [point["perplexity"]["n"] for point in curve] == [2, 2]
    assert [point["seconds"] for point in curve] == [None, None]  # no batch of the same texts


# --- the command line


def run_cli(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["asarm", "decode", *arguments])
    return main(), capsys.readouterr().err.strip().splitlines()


def test_options_override_the_preset():
    config = parse_arguments(["tiny", "--k", "7", "--num_texts", "3"])
    assert (config.sampling.k, config.num_texts, config.judge, config.length) == (
        7,
        3,
        "self",
        PRESETS["tiny"]["length"],
    )
    paper = parse_arguments([])
    assert paper.model_names() == ["therealgabeguo/ASARM@nlp", "xlnet/xlnet-base-cased"]
    assert (paper.num_texts, paper.length, paper.sampling.k, paper.judge) == (700, [512], 5, "gpt2-large")
    assert parse_arguments(["paper", "--model", "somewhere/else"]).model_names() == ["somewhere/else"]
    assert parse_arguments(["tiny", "--models", "a", "b@c"]).model_names() == ["a", "b@c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--length", "129"], "length=129 is over the 128 positions"),
        (["--k", "0"], "k must be at least 1, not 0"),
        (["--k_sweep", "3", "0"], "k must be at least 1, not 0"),
        (["--mask_rate", "0"], "mask_rate must lie in (0, 1), not 0.0"),
        (["--mask_rate", "1"], "mask_rate must lie in (0, 1), not 1.0"),
        (["--mask_rate", "0.001"], "masks no token"),
        (["--temperature", "-1"], "temperature must lie in"),
        (["--samplers", "magic"], "unknown sampler 'magic'"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--device", "abacus"], "no device 'abacus' here"),
        (["--num_texts", "0"], "num_texts must be at least 1"),
        (["--text", "{tmp}/none.txt"], "none.txt: No such file"),
        (["--text", "{tmp}"], "Is a directory"),
        (["--text", "{tmp}/latin.txt"], "is not UTF-8 text: byte 0xe9"),
        (["--text", "{tmp}/empty.txt"], "empty.txt is empty"),
        (["--text", "{tmp}/short.txt"], "less than one block of 64"),
        (["--text", "{tmp}/mask.txt"], "the text holds <mask>"),
        (["--model", "{tmp}/none"], "no model folder"),
        (["--model", "{tmp}/no weights"], "no weights"),
        (["--model", "{tmp}/corrupt"], "corrupt/model.safetensors are damaged"),
        (["--model", "tiny-none"], "no bundled model 'tiny-none'"),
        (["--judge", "{tmp}/none"], "cannot load the judge"),
        (["--nonsense", "1"], "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, tiny_folder, text_file, options, message):
    (tmp_path / "latin.txt").write_bytes("café, déjà vu. ".encode("latin-1") * 50)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("Too short.")
    (tmp_path / "mask.txt").write_text("A <mask> in the text. " * 50)
    for name in ("no weights", "corrupt"):
        shutil.copytree(tiny_folder, tmp_path / name)
    (tmp_path / "no weights/model.safetensors").unlink()
    (tmp_path / "corrupt/model.safetensors").write_bytes(b"\0" * 100)
    output = tmp_path / "output"
    usual = ["tiny", "--model", tiny_folder, "--text", text_file, "--length", "64", "--output_dir", str(output)]
    code, error = run_cli(monkeypatch, capsys, usual + [option.format(tmp=tmp_path) for option in options])
    assert code == 2
    assert len(error) == 1
    assert error[0].startswith("asarm decode: ")
    assert message in error[0]
    assert not output.exists()


def test_unknown_preset(monkeypatch, capsys):
    code, error = run_cli(monkeypatch, capsys, ["papper"])
    assert code == 2
    assert error == ["asarm decode: unknown preset 'papper': choose from paper, small, tiny"]


def test_no_hub_is_one_line(tmp_path, tiny_folder):
    """In a process of its own, as the libraries read their settings when imported."""
    command = [
        sys.executable,
        "-m",
        "asarm",
        "decode",
        "paper",
        "--model",
        tiny_folder,
        "--output_dir",
        tmp_path / "out",
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 2
    assert "cannot load Salesforce/wikitext from the Hub" in result.stderr
    assert "give a local file with --text" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
