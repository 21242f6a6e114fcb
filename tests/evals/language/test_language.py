"""LAMBADA and HellaSwag: scores against step-by-step ones, planted defects, sampling, resuming, bad input."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import torch

from asarm.__main__ import main
from asarm.cli.language import PRESETS, parse_arguments
from asarm.evals.language import run as language
from asarm.evals.language.config import LanguageEvalConfig
from asarm.evals.language.data import hellaswag_questions, lambada_questions
from asarm.evals.language.likelihood import Pair, encode_pair, score_pairs
from asarm.evals.language.report import mean, share, summarise, table
from asarm.evals.language.run import evaluate, items_of
from asarm.models.load import load
from asarm.objective.loss import log_prob, log_prob_and_best
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import text_after
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from asarm.utils.jsonl import read_json_lines
from support.models import tiny_gpt2, tiny_xlnet
from support.results import interrupted_copy
from support.xlnet_tokenizer import train_xlnet_tokenizer

# The first ones end in what the bundled model finds most probable, the others do not.
PASSAGES = [
    "He stood at the door of the house and looked at the rest of the",
    "She was as happy as a child, and it was one of the",
    "She went out of the room, and in the middle of the",
    "The lamp was in the window, and the king saw the lamp",
    "There was a garden, and the children went to the garden",
]


@pytest.fixture(scope="module")
def bundled():
    return load("tiny-text")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A passage file, and a question file in which each label is right twice."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "passages.txt").write_text("\n".join(PASSAGES) + "\n", encoding="utf-8")
    wrong = ["owl", "king", "tree", "forest morning"]
    with (folder / "questions.jsonl").open("w") as file:
        for label in [0, 1, 2, 3, 3, 2, 1, 0]:
            endings = [f"the {word}" for word in wrong]
            endings[label] = "bear bear bear"
            row = {"activity_label": "Living", "ctx_a": "The castle.", "ctx_b": "there", "endings": endings}
            file.write(json.dumps(row | {"label": label}) + "\n")
    return {"lambada": str(folder / "passages.txt"), "hellaswag": str(folder / "questions.jsonl")}


@pytest.fixture(scope="module")
def settings(files):
    return {"model": "tiny-text", "device": "cpu", "batch_size": 2, **files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, settings):
    """The folder of a finished run with all samplers."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    evaluate(
        from_options(
            LanguageEvalConfig, output_dir=str(folder), samplers=["assd-self", "parallel", "greedy"], **settings
        )
    )
    return folder


def lines_of(folder, task, variant="likelihood"):
    lines = read_json_lines(Path(folder) / "samples.jsonl")
    return {line["index"]: line for line in lines if (line["task"], line["variant"]) == (task, variant)}


# --- scores


@torch.inference_mode()
def scored_step_by_step(model, pair):
    """Log-likelihood and greediness of a continuation, one function evaluation a token."""
    prompt, total, greedy = len(pair.context), 0.0, True
    for done, token in enumerate(pair.continuation):
        seen = pair.context + pair.continuation[:done]
        contexts = [max(rank + 1, prompt) for rank in range(len(seen))]
        positions = list(range(len(seen)))
        arguments = [torch.tensor([x]) for x in (seen, positions, contexts, [len(seen)], [len(seen)])]
        log_probs = torch.log_softmax(model(*arguments)[0, 0].double(), -1)
        total += float(log_probs[token])
        greedy &= int(log_probs.argmax()) == token
    return total, greedy


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_xlnet])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_score_is_the_sum_over_the_continuation_alone(make, batch_size):
    model = make(vocab_size=5)
    generator = torch.Generator().manual_seed(1)

    def some(count):
        return torch.randint(0, 4, (count,), generator=generator).tolist()

    lengths = [(1, 1), (7, 1), (3, 2), (12, 4), (1, 9), (5, 1), (7, 2), (6, 1)]
    pairs = [Pair(some(context), some(continuation)) for context, continuation in lengths]
    expected = [scored_step_by_step(model, pair) for pair in pairs]
    assert {greedy for _, greedy in expected} == {True, False}
    for score, (total, greedy) in zip(score_pairs(model, pairs, batch_size), expected, strict=True):
        assert score.log_prob == pytest.approx(total, abs=1e-5)
        assert score.is_greedy == greedy


def test_the_most_probable_tokens_come_with_the_same_densities():
    model = tiny_gpt2()
    tokens = torch.randint(0, 4, (6, 9), generator=torch.Generator().manual_seed(0))
    given = torch.rand(6, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    target = ~given & (torch.arange(9) < 8)
    scores, best = log_prob_and_best(model, tokens, given, target)
    assert scores.equal(log_prob(model, tokens, given, target))
    assert not best[~target].any()
    # Where a token is more probable than not, it is the best one; where less than one of four, it is not.
    assert best[target & (scores > math.log(0.5))].all()
    assert not best[target & (scores < math.log(0.2))].any()
    assert best.any()


def test_continuations_take_the_white_space_before_them(bundled):
    codec = bundled[1]
    for context, continuation in (("The king", " and the queen"), ("The king ", "and the queen"), ("A\n\n", "B c")):
        pair = encode_pair(codec, context, continuation, 512)
        assert codec.decode(pair.context) == context.rstrip()
        assert codec.decode(pair.context + pair.continuation) == context + continuation
        assert pair.cut == 0
    assert encode_pair(codec, "The king ", "and", 512) == encode_pair(codec, "The king", " and", 512)


def test_xlnet_words_are_compared_as_its_tokenizer_gives_them_back(sample_text):
    codec = TextCodec(train_xlnet_tokenizer(sample_text + '"a"', 150))
    for context, word in (
        ("The king lived in the", "castle"),
        ("He went to the", "caf\u00e9"),
        ("The owl  said", "''"),
    ):
        pair = encode_pair(codec, context, " " + word, 512)
        assert pair.context == codec.encode(context)
        assert pair.context + pair.continuation == codec.encode(f"{context} {word}")
        normalised = codec.decode(codec.encode(word))
        assert text_after(codec, pair.context, pair.continuation) == " " + normalised
    assert normalised == '"'


def test_contexts_are_cut_on_the_left_and_counted(bundled):
    codec = bundled[1]
    whole = encode_pair(codec, "One two three four five six seven", " eight", 512)
    room = 5 - len(whole.continuation)
    pair = encode_pair(codec, "One two three four five six seven", " eight", 5)
    assert pair == (whole.context[-room:], whole.continuation, len(whole.context) - room)
    with pytest.raises(InputError, match="leaves no room"):
        encode_pair(codec, "One", " two" * 5, 5)
    with pytest.raises(InputError, match="the context has no tokens"):
        encode_pair(codec, " ", "two", 5)
    with pytest.raises(InputError, match="the continuation has no tokens"):
        encode_pair(codec, "One", "", 5)
    with pytest.raises(InputError, match="stands for what is to be decoded"):
        encode_pair(codec, f"One {codec.mask_token}", " two", 500)


# --- HellaSwag


class UnigramModel:
    """Gives every position the same distribution, in which the tokens of one word are far more probable than others."""

    def __init__(self, codec, word):
        self.config = SimpleNamespace(n_positions=128, mask_token_id=codec.mask_token_id, gap_end_token_id=None)
        self.device, self.logits = torch.device("cpu"), torch.zeros(len(codec))
        self.logits[codec.encode(word)] = 9.0

    def __call__(self, tokens, positions, content_context, query_positions, query_context):
        return self.logits.expand(*query_positions.shape, -1).clone()

    def to(self, device):
        return self

    def state_dict(self):
        return {"logits": self.logits}


def accuracies_with_a_known_best(monkeypatch, codec, settings, folder) -> tuple[float, float]:
    """Both accuracies on questions whose right ending a made-up model finds by far the most probable."""
    monkeypatch.setattr("asarm.models.config.load_on_device", lambda *arguments: (UnigramModel(codec, " bear"), codec))
    metrics = evaluate(from_options(LanguageEvalConfig, output_dir=str(folder), tasks=["hellaswag"], **settings))
    found = metrics["hellaswag"]["likelihood"]
    return found["accuracy"]["mean"], found["accuracy_norm"]["mean"]


def check_that_the_best_ending_counts(*arguments) -> None:
    assert accuracies_with_a_known_best(*arguments) == (1.0, 1.0)


def test_the_best_ending_counts(monkeypatch, bundled, settings, tmp_path):
    check_that_the_best_ending_counts(monkeypatch, bundled[1], settings, tmp_path)


def always_the_last(scores):
    """The defect of the reference implementation: whichever option came last is taken for the best."""
    best = None
    for option, _ in enumerate(scores):
        best = option
    return best


@pytest.mark.parametrize(
    ("defect", "accuracy"), [(always_the_last, 0.25), (lambda scores: scores.index(min(scores)), 0.0)]
)
def test_planted_defects_are_caught(monkeypatch, bundled, settings, tmp_path, defect, accuracy):
    monkeypatch.setattr(language, "best_option", defect)
    with pytest.raises(AssertionError):
        check_that_the_best_ending_counts(monkeypatch, bundled[1], settings, tmp_path / "checked")
    found = accuracies_with_a_known_best(monkeypatch, bundled[1], settings, tmp_path / "measured")
    assert found == (accuracy, accuracy)


def test_a_longer_ending_is_found_by_its_normalised_likelihood(bundled, tmp_path, monkeypatch):
    """The right ending has more of the probable word: less likely as a whole, more likely a character."""
    row = {"ctx": "The castle", "endings": ["owl", "bear bear bear bear owl"], "label": 1}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    codec = bundled[1]
    model = UnigramModel(codec, " bear")
    monkeypatch.setattr("asarm.models.config.load_on_device", lambda *arguments: (model, codec))
    config = from_options(
        LanguageEvalConfig, output_dir=str(tmp_path / "run"), tasks=["hellaswag"], hellaswag=str(tmp_path / "q.jsonl")
    )
    evaluate(config)
    line = lines_of(tmp_path / "run", "hellaswag")[0]
    log_probs = torch.log_softmax(model.logits, -1)
    assert line["log_probs"] == pytest.approx(
        [float(log_probs[codec.encode(" " + ending)].sum()) for ending in row["endings"]], rel=1e-5
    )
    assert line["characters"] == [3, 23]
    assert (line["choice"], line["correct"]) == (0, False)
    assert (line["choice_norm"], line["correct_norm"]) == (1, True)


def test_questions_are_read_as_in_the_official_file(files, tmp_path):
    first = hellaswag_questions(files["hellaswag"])[0]
    assert first == (
        "Living: The castle. There",
        [" bear bear bear", " the king", " the tree", " the forest morning"],
        0,
    )
    row = {"ctx": " [header] How [title] a  b ", "endings": ["[step] x", "y [substeps] z"], "label": "1"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    assert hellaswag_questions(str(tmp_path / "q.jsonl")) == [(" How. a b", ["  x", " y z"], 1)]


# --- LAMBADA


def test_last_words_are_scored_by_their_exact_density(finished, bundled):
    model, codec = bundled
    lines = lines_of(finished, "lambada")
    assert len(lines) == len(PASSAGES)
    for index, passage in enumerate(PASSAGES):
        context, _, word = passage.rpartition(" ")
        prefix, gold = codec.encode(context), codec.encode(" " + word)
        assert prefix + gold == codec.encode(passage)
        total, greedy = scored_step_by_step(model, Pair(prefix, gold))
        assert lines[index]["log_prob"] == pytest.approx(total, abs=1e-4)
        assert lines[index]["correct"] == greedy
        assert (lines[index]["word"], lines[index]["tokens"]) == (word, len(gold))
    assert 0 < sum(line["correct"] for line in lines.values()) < len(PASSAGES)


def test_greedy_sampling_finds_the_words_that_greedy_decoding_gives(finished):
    exact, sampled = lines_of(finished, "lambada"), lines_of(finished, "lambada", "greedy")
    assert [exact[i]["correct"] for i in exact] == [sampled[i]["correct"] for i in exact]
    for line in sampled.values():
        assert line["nfe"] == line["tokens"]
        assert line["correct"] == (line["filled"] == line["word"])


def test_sampled_words_are_right_as_often_as_they_are_probable(settings, tmp_path):
    """The share of hits of one word, of one token, is its probability; and greedily it is found always or never."""
    count = 600
    (tmp_path / "one.txt").write_text(f"{PASSAGES[1]}\n" * count)
    change = {"lambada": str(tmp_path / "one.txt"), "tasks": ["lambada"], "batch_size": 100}
    change["samplers"] = ["assd-self", "greedy"]
    metrics = evaluate(from_options(LanguageEvalConfig, output_dir=str(tmp_path / "run"), **(settings | change)))[
        "lambada"
    ]
    probability, hits = metrics["likelihood"]["probability"]["mean"], metrics["assd-self"]["accuracy"]["mean"]
    assert 0.05 < probability < 0.95
    assert abs(hits - probability) < 4 * math.sqrt(probability * (1 - probability) / count)
    assert metrics["greedy"]["accuracy"]["mean"] == metrics["likelihood"]["accuracy"]["mean"]


def sampled_line(index, trial, correct, variant="fused", **values):
    return {
        "model": "m", "task": "lambada", "variant": variant, "trial": trial, "batch": 0, "index": index, "cut": 0,
        "tokens": 1 + index % 2, "nfe": 1, "seconds": 1.0, "correct": correct,
    } | values  # fmt: skip


def scored_line(index, log_prob, correct, **values):
    return {
        "model": "m", "task": "lambada", "variant": "likelihood", "trial": 0, "batch": 0, "index": index, "cut": 0,
        "tokens": 1, "log_prob": log_prob, "correct": correct,
    } | values  # fmt: skip


def test_accuracy_is_the_mean_over_trials_with_their_spread():
    """40 passages: the first trial gets 10 of them right, the second 14, the third 18."""
    lines = [sampled_line(i, trial, i < 10 + 4 * trial) for trial in range(3) for i in range(40)]
    lines += [scored_line(i, -1.0, True) for i in range(40)]
    found = summarise(lines)["lambada"]
    accuracy = found["fused"]["accuracy"]
    assert (accuracy["mean"], accuracy["n"]) == (pytest.approx(0.35), 40)
    assert accuracy["by_trial"] == pytest.approx([0.25, 0.35, 0.45])
    assert accuracy["sd"] == pytest.approx(0.1)
    low, high = accuracy["interval_95"]
    assert 0.15 < low < 0.25
    assert 0.45 < high < 0.55  # as of 40 passages, not of 120
    assert found["fused"]["nfe"]["n"] == 40
    assert found["fused"]["spread"]["tokens"] == {"mean": 1.5, "sd": 0.5, "n": 120}
    shown = table(summarise(lines))
    assert "The same words sampled, 3 times" in shown
    assert "| sampler | exact match, % | standard deviation of trials | NFE a word | seconds a passage |" in shown
    assert re.search(r"\| fused \| 35.00 \[[^]]*\] \| 10.00 \|", shown)
    one = summarise([line for line in lines if line["trial"] == 0])["lambada"]["fused"]["accuracy"]
    assert one == share([True] * 10 + [False] * 30) | {"by_trial": [0.25], "sd": None}


def test_models_are_compared_under_the_same_variant():
    """The second model is worse by two and a half nats, and has five fewer of 40 words."""
    lines = []
    for model, less in (("tuned", 0), ("stock", 1)):
        lines += [
            scored_line(i, -1.0 - 2 * less - (1 + less) * i / 39, i < 20 - 5 * less, model=model) for i in range(40)
        ]
        lines += [sampled_line(i, 0, i < 20, model=model) for i in range(40)]
        fields = {"task": "hellaswag", "correct_norm": True, "model": model}
        lines += [scored_line(i, 0, i >= 8 * less, **fields) for i in range(40)]
    for line in lines:
        if line["task"] == "hellaswag":
            del line["log_prob"], line["tokens"]
    metrics = summarise(lines)
    assert list(metrics["lambada"]) == ["likelihood, tuned", "fused, tuned", "likelihood, stock", "fused, stock"]
    scored, sampled, endings = metrics["model_comparisons"]
    assert (scored["model"], scored["against"], scored["correct"]["only"]) == ("stock", "tuned", [0, 5])
    assert scored["log_prob"]["difference"] == pytest.approx(-2.5)
    assert sampled["correct"]["difference"] == 0
    assert (endings["task"], endings["correct"]["only"], endings["correct_norm"]["difference"]) == (
        "hellaswag",
        [0, 8],
        0,
    )
    shown = table(metrics)
    for row in (
        "| model | accuracy (greedy), % | log-likelihood, nats |", "| stock | 37.50 [", "| stock | fused | 50.00 [",
        "| likelihood | stock | tuned | -12.5 [", "| -2.500 [-2.", "| model | accuracy, % |",
        "| stock | 80.00 [",
    ):  # fmt: skip
        assert row in shown
    alone = [line for line in lines if line["model"] == "tuned"]
    assert "model_comparisons" not in summarise(alone)
    assert "tuned" not in table(summarise(alone))


def test_metrics_and_table_are_made_from_the_lines(finished, monkeypatch):
    metrics = json.loads((finished / "metrics.json").read_text())
    scores = [line["log_prob"] for line in lines_of(finished, "lambada").values()]
    exact = metrics["lambada"]["likelihood"]
    assert exact["log_prob"]["mean"] == pytest.approx(sum(scores) / len(scores))
    assert exact["perplexity"]["mean"] == pytest.approx(math.exp(-sum(scores) / len(scores)))
    assert exact["probability"]["mean"] == pytest.approx(sum(map(math.exp, scores)) / len(scores))
    assert exact["accuracy"]["n"] == len(PASSAGES)
    for value in (exact["log_prob"], exact["perplexity"], exact["probability"], exact["accuracy"]):
        assert value["interval_95"][0] < value["mean"] < value["interval_95"][1]
    assert metrics["settings"]["batch_size"] == 2
    shown = (finished / "table.md").read_text()
    assert shown == table({"lambada": metrics["lambada"], "hellaswag": metrics["hellaswag"]})
    assert "passages are too few for intervals and tests." in shown
    assert f"| {100 * exact['accuracy']['mean']:.2f} |" in shown
    monkeypatch.setattr("asarm.evals.tables.FEWEST", 2)
    shown = table({"lambada": metrics["lambada"], "hellaswag": metrics["hellaswag"]})
    assert "In brackets 95 % intervals" in shown
    assert f"| {100 * exact['accuracy']['mean']:.2f} [" in shown
    for name in ("assd-self", "parallel", "greedy"):
        assert f"| {name} | {100 * metrics['lambada'][name]['accuracy']['mean']:.2f} [" in shown


def test_intervals():
    hits, n, z = 3, 10, 1.959964
    centre, spread = (hits + z**2 / 2) / (n + z**2), z * math.sqrt(hits * (n - hits) / n + z**2 / 4) / (n + z**2)
    assert share([True] * hits + [False] * (n - hits)) == {
        "mean": 0.3,
        "interval_95": pytest.approx([centre - spread, centre + spread], abs=1e-6),
        "n": 10,
    }
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mean(values.tolist())
    error = 1.96 * float(values.std()) / 20
    assert found["interval_95"] == pytest.approx([found["mean"] - error, found["mean"] + error], abs=0.02)
    assert mean([2.0]) == {"mean": 2.0, "interval_95": None, "n": 1}


# --- runs


def test_trials_have_seeds_of_their_own_and_the_first_is_that_of_a_single_run(finished, settings, tmp_path):
    """A run of three trials that is interrupted goes on; what is greedy or scored is not repeated."""
    change = settings | {"tasks": ["lambada"], "samplers": ["assd-self", "greedy"], "temperature": 3.0}
    one, three, resumed = (tmp_path / name for name in ("one", "three", "resumed"))
    evaluate(from_options(LanguageEvalConfig, output_dir=str(one), **change))
    evaluate(from_options(LanguageEvalConfig, output_dir=str(three), trials=3, **change))
    filled = {trial: [] for trial in range(3)}
    for line in sorted(read_json_lines(three / "samples.jsonl"), key=lambda line: line["index"]):
        if line["variant"] == "assd-self":
            filled[line["trial"]].append(line["filled"])
        else:
            assert line["trial"] == 0
    assert [len(some) for some in filled.values()] == [len(PASSAGES)] * 3
    assert filled[0] == [line["filled"] for _, line in sorted(lines_of(one, "lambada", "assd-self").items())]
    assert filled[0] != filled[1] != filled[2] != filled[0]
    interrupted_copy(three, resumed, 0.6)
    evaluate(from_options(LanguageEvalConfig, output_dir=str(resumed), trials=3, **change))
    assert without_times(resumed) == without_times(three)


@pytest.mark.parametrize("trials", [1, 2])
def test_a_folder_from_before_there_were_trials_is_not_mixed_in(finished, settings, tmp_path, trials):
    folder = shutil.copytree(finished, tmp_path / "run")
    known = json.loads((folder / "config.json").read_text())
    del known["settings"]["trials"]
    (folder / "config.json").write_text(json.dumps(known))
    before = (folder / "samples.jsonl").read_bytes()
    change = {"samplers": ["assd-self", "parallel", "greedy"], "trials": trials}
    with pytest.raises(InputError, match=rf"trials None, now {trials}.*choose another output_dir"):
        evaluate(from_options(LanguageEvalConfig, output_dir=str(folder), **settings, **change))
    assert (folder / "samples.jsonl").read_bytes() == before


def test_several_models_are_run_beside_each_other(settings, tmp_path, tiny_folder):
    change = settings | {"model": "", "models": ["tiny-text", tiny_folder], "samplers": ["fused"]}
    metrics = evaluate(from_options(LanguageEvalConfig, output_dir=str(tmp_path), **change))
    assert list(metrics["lambada"]) == [
        f"{one}, {model}" for model in change["models"] for one in ("likelihood", "fused")
    ]
    assert len(read_json_lines(tmp_path / "samples.jsonl")) == 2 * (2 * len(PASSAGES) + 8)
    likely = [metrics["lambada"][f"likelihood, {model}"]["log_prob"]["mean"] for model in change["models"]]
    assert likely[0] > likely[1] + 1  # random weights
    assert metrics["model_comparisons"][0]["log_prob"]["difference"] == pytest.approx(likely[1] - likely[0])


def without_times(folder):
    return [line | {"seconds": 0.0} for line in read_json_lines(Path(folder) / "samples.jsonl")]


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.75])
def test_resuming_after_an_interruption_repeats_the_run(finished, settings, tmp_path, kept):
    folder = tmp_path / "run"
    interrupted_copy(finished, folder, kept)
    evaluate(
        from_options(
            LanguageEvalConfig, output_dir=str(folder), samplers=["assd-self", "parallel", "greedy"], **settings
        )
    )
    assert without_times(folder) == without_times(finished)


def test_results_of_other_items_are_not_touched(finished, settings, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = from_options(
        LanguageEvalConfig,
        output_dir=str(folder),
        samplers=["assd-self", "parallel", "greedy"],
        **(settings | {"max_items": 3}),
    )
    with pytest.raises(InputError, match="choose another output_dir"):
        evaluate(config)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_max_items_takes_the_first_and_cuts_are_counted(bundled, files, settings, tmp_path, caplog):
    codec = bundled[1]
    with caplog.at_level("INFO"):
        items = items_of(lambada_questions(files["lambada"]), codec, 8, "lambada", 2)
    assert [item.number for item in items] == [0, 1]
    assert all(len(item.pairs[0].context + item.pairs[0].continuation) == 8 and item.pairs[0].cut for item in items)
    assert "2 of 2 contexts are cut on the left to the model's 8 tokens" in caplog.text
    (tmp_path / "long.txt").write_text("The king of the castle\n" + "The king of the castle " * 200 + "lived\n")
    change = {"tasks": ["lambada"], "lambada": str(tmp_path / "long.txt"), "samplers": ["greedy"]}
    metrics = evaluate(from_options(LanguageEvalConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    assert metrics["lambada"]["likelihood"]["cut"] == 1
    assert "1 of 2 contexts were cut on the left" in (tmp_path / "run" / "table.md").read_text()


def test_tiny_preset_needs_nothing_but_the_repository(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["asarm", "language", "tiny", "--output_dir", str(tmp_path), "--max_items", "4"])
    assert main() == 0
    assert "LAMBADA, last word of 4 passages" in capsys.readouterr().out
    labels = [question.label for question in hellaswag_questions(PRESETS["tiny"]["hellaswag"])]
    assert {labels.count(label) for label in range(4)} == {len(labels) // 4}
    assert len(lambada_questions(PRESETS["tiny"]["lambada"])) >= 12


def test_paper_preset_is_the_papers():
    config = parse_arguments([])
    assert (config.loading.model, config.loading.revision, config.output_dir) == (
        "therealgabeguo/ASARM", "nlp", "results/language-paper",
    )  # fmt: skip
    assert config.lambada == config.hellaswag == ""
    assert (config.sampling.k, config.trials) == (10, 1)
    assert parse_arguments(["--models", "a/b@c", "d"]).model_names() == ["a/b@c", "d"]
    assert parse_arguments(["--model", "other/model"]).loading.revision is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--tasks", "lambda"], "unknown task 'lambda': choose from lambada, hellaswag"),
        (["papper"], "unknown preset 'papper'"),
        (["tiny", "--samplers", "beam"], "unknown sampler 'beam'"),
        (["tiny", "--lambada", "none.txt"], "none.txt"),
        (["tiny", "--hellaswag", "none.jsonl"], "none.jsonl"),
        (["tiny", "--lambada", "{word}"], "word, line 2 must have at least two words, not 'word'"),
        (["tiny", "--lambada", "{mask}"], "lambada, item 1: the text holds <mask>"),
        (["tiny", "--hellaswag", "{blank}"], "blank, line 1 is no JSON"),
        (["tiny", "--hellaswag", "{list}"], "list, item 1 is no JSON object"),
        (["tiny", "--hellaswag", "{no_context}"], "line 1 has no context: it needs the field ctx"),
        (["tiny", "--hellaswag", "{no_endings}"], "line 1 needs the field endings"),
        (["tiny", "--hellaswag", "{no_label}"], "line 1 needs the field label, from 0 to 1, not ''"),
        (["tiny", "--hellaswag", "{label}"], "line 1 needs the field label, from 0 to 1, not '2'"),
        (["tiny", "--hellaswag", "{long}"], "hellaswag, item 1: a continuation of"),
        (["tiny", "--trials", "0"], "trials must be at least 1, not 0"),
        (["tiny", "--model", "tiny-text", "--models", "tiny-text"], "both --model and --models are given"),
        (["tiny", "--max_items", "-1"], "max_items must be at least 0, not -1"),
        (["tiny", "--device", "abacus"], "no device 'abacus' here"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    good = {"ctx": "a b", "endings": ["c", "d"], "label": 0}
    contents = {
        "blank": "one two\n\nthree four\n",
        "word": "\nword\n",
        "mask": "one <mask> two\n",
        "list": "[1]\n",
        "no_context": json.dumps(good | {"ctx": None}),
        "no_endings": json.dumps(good | {"endings": "c"}),
        "no_label": json.dumps({name: good[name] for name in ("ctx", "endings")}),
        "label": json.dumps(good | {"label": 2}),
        "long": json.dumps(good | {"endings": ["c", "word " * 600]}),
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    arguments = [argument.format(**{name: tmp_path / name for name in contents}) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["asarm", "language", *arguments, "--output_dir", str(tmp_path / "run")])
    if arguments == ["papper"]:
        monkeypatch.setattr(sys, "argv", ["asarm", "language", "papper"])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("asarm language: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_datasets_that_cannot_be_had_name_the_option_for_a_file(monkeypatch):
    import datasets

    def fail(*arguments, **keywords):
        raise ConnectionError("no route\nto the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"cimec/lambada from the Hub \(no route\): give a local file with --lambada"):
        lambada_questions("")
    with pytest.raises(InputError, match="give a local file with --hellaswag"):
        hellaswag_questions("")


def test_rows_of_the_hub_are_read(monkeypatch):
    import datasets

    rows = {
        "cimec/lambada": [{"text": "one two three", "domain": None}],
        "Rowan/hellaswag": [
            {"activity_label": "A", "ctx_a": "b.", "ctx_b": "c", "ctx": "b. c", "endings": ["d", "e"], "label": "1"}
        ],
    }
    wanted = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, **_: wanted.append((name, split)) or rows[name])
    assert lambada_questions("") == [("one two", [" three"], 0)]
    assert hellaswag_questions("") == [("A: b. C", [" d", " e"], 1)]
    assert wanted == [("cimec/lambada", "test"), ("Rowan/hellaswag", "validation")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None}, "cimec/lambada, row 2: the field text holds null, not text"),
        ({"text": b"one two"}, r"cimec/lambada, row 2: the field text holds b'one two' \(bytes\), not text"),
        ({"passage": "one two"}, r"cimec/lambada, row 2 has no field text \(it has passage\)"),
    ],
)
def test_rows_of_the_hub_are_checked(monkeypatch, row, message):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": "one two"}, row])
    with pytest.raises(InputError, match=message):
        lambada_questions("")


def test_questions_may_be_a_list_or_parquet(tmp_path, files):
    rows = [json.loads(line) for line in Path(files["hellaswag"]).read_text().splitlines()]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = hellaswag_questions(files["hellaswag"])
    assert [hellaswag_questions(str(tmp_path / name)) for name in ("a.json", "a.parquet")] == [expected] * 2


def test_harness_that_is_missing_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    monkeypatch.setattr(sys, "argv", ["asarm", "harness", "--model", "asarm"])
    assert main() == 2
    assert "lm-evaluation-harness is missing" in capsys.readouterr().err
