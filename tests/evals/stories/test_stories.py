"""The evaluation on stories: cutting, filling, lengths, statistics, resuming, what people read, bad input."""

import csv
import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from rouge_score import rouge_scorer
from transformers import GPT2Config, GPT2LMHeadModel

from asarm.__main__ import main
from asarm.cli.stories import OFFICIAL_SETS, PRESETS, parse_arguments
from asarm.evals import stats
from asarm.evals.infilling import systems as systems
from asarm.evals.infilling.causal import CausalModel
from asarm.evals.infilling.gap_length import LengthDistribution, choose
from asarm.evals.infilling.infill import fill, infill_batch, scores
from asarm.evals.infilling.systems import without_suffixes
from asarm.evals.stories import metrics as story_stats
from asarm.evals.stories.config import StoriesConfig
from asarm.evals.stories.data import COLUMNS, TASKS, Story, bag_text, make_example, read_stories
from asarm.evals.stories.metrics import rouge
from asarm.evals.stories.report import story_summary, story_table
from asarm.evals.stories.run import StoriesEvaluation, evaluate
from asarm.models.load import load
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.transforms import Transforms
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from asarm.utils.jsonl import write_json_lines
from support.models import tiny_gpt2, tiny_xlnet
from support.paths import REPO, SHARED
from support.results import interrupted_copy, lines_of, read_page, without_times
from support.wrappers import active, run
from support.xlnet_tokenizer import train_xlnet_tokenizer

OFFICIAL = SHARED / "rocstories" / "cloze_test_val__spring2016.csv"
TRIALS, BATCH = 2, 2
STORIES = [
    ["The bear lived in a tree.", "It was old.", "He asked the owl.", "The owl said no.", "So he walked home."],
    ["A king was alone.", "His castle was closed.", "The bear came in the morning.", "They talked.", "All was well."],
    ["Once there was a café.", "It was by the castle.", "Who would have thought?", "It closed.", "The owl was sad."],
    ["<b>He</b> & she met.", "It was night.", "Is it <i>morning</i>?", "It was not.", "They slept."],
    ["The owl sat in a tree.", "She was unable to sleep.", "She asked the king.", "He was asleep.", "So it was night."],
]


def write_stories(path, stories, answer="2", **changed):
    """A file in the format of the Story Cloze Test; changed: columns of the last story that are not as they should."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, sentences in enumerate(stories):
            row = [f"story-{number}", *sentences[:4], "A wrong ending.", sentences[4], answer]
            if number == len(stories) - 1:
                row = [changed.get(column, value) for column, value in zip(COLUMNS, row, strict=True)]
            writer.writerow(row)
    return str(path)


@pytest.fixture(scope="module")
def stories_file(tmp_path_factory):
    return write_stories(tmp_path_factory.mktemp("text") / "some stories.csv", STORIES)


@pytest.fixture(scope="module")
def settings(tiny_folder, stories_file):
    return {
        "stories": stories_file, "models": [tiny_folder], "device": "cpu", "trials": TRIALS, "batch_size": BATCH,
        "k": 3, "parallel_steps": [1, 4], "gap_length": ["oracle", "search", "median", "fixed:7"], "proposals": 4,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, settings):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    evaluate(from_options(StoriesConfig, output_dir=str(folder), **settings))
    return folder


def codecs(tiny_folder, sample_text):
    text = sample_text + " ".join(sentence for story in STORIES for sentence in story)
    return [load(tiny_folder)[1], TextCodec(train_xlnet_tokenizer(text, 200))]


# --- stories and their tokens


def test_stories_are_read_with_their_right_endings(tmp_path):
    path = tmp_path / "stories.csv"
    write_stories(path, STORIES, InputSentence2=" It  was \t night. ", AnswerRightEnding="1")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    stories = read_stories(path)
    assert [story.name for story in stories] == [f"story-{number}" for number in range(5)]
    assert [story.sentences for story in stories[:4]] == STORIES[:4]
    assert stories[4].sentences == ["The owl sat in a tree.", "It was night.", *STORIES[4][2:4], "A wrong ending."]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv.gz"])
def test_stories_may_be_rows_of_any_kind(tmp_path, kind):
    expected = read_stories(write_stories(tmp_path / "stories.csv", STORIES))
    rows = list(csv.DictReader((tmp_path / "stories.csv").open(encoding="utf-8", newline="")))
    path = tmp_path / f"stories.{kind}"
    if kind == "parquet":
        numbered = [row | {"AnswerRightEnding": int(row["AnswerRightEnding"])} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(numbered), path)
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress((tmp_path / "stories.csv").read_bytes()))
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    assert read_stories(path) == expected
    path.write_text(json.dumps(rows[0] | {"InputSentence2": None}))
    with pytest.raises(InputError, match=r"stories.*(InputSentence2 holds null|no parquet file|Not a gzipped file)"):
        read_stories(path)


@pytest.mark.skipif(not OFFICIAL.exists(), reason=f"no official stories at {OFFICIAL}")
def test_the_official_stories():
    stories = read_stories(OFFICIAL)
    assert len(stories) >= 1000
    assert all(len(story.sentences) == 5 for story in stories)


def test_our_own_stories():
    stories = read_stories(PRESETS["tiny"]["stories"])
    assert 8 <= len(stories) <= 12
    assert OFFICIAL_SETS.name == "eval_datasets"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", [0, 1])
def test_the_parts_joined_are_the_story(task, kind, tiny_folder, sample_text):
    codec = codecs(tiny_folder, sample_text)[kind]
    for index, sentences in enumerate(STORIES):
        part = make_example(Story(index, "", sentences), task, codec)
        whole = codec.encode(" ".join(sentences))
        joined = part.prefix_tokens + part.reference_tokens + part.suffix_tokens
        assert codec.decode(joined) == codec.decode(whole)
        assert codec.decode(part.reference_tokens).strip() == codec.decode(codec.encode(part.reference))
        first, after = TASKS[task]
        assert (part.prefix, part.reference, part.suffix) == tuple(
            " ".join(some) for some in (sentences[:first], sentences[first:after], sentences[after:])
        )
        assert sum(part.visible) in range(
            part.context_length - 1, part.context_length + 2
        )  # the first has no space before it


def test_bag_takes_another_story():
    stories = [Story(index, "", sentences) for index, sentences in enumerate(STORIES)]
    found = {bag_text(stories, stories[1], "1/5", seed) for seed in range(40)}
    assert found == {sentences[2] for index, sentences in enumerate(STORIES) if index != 1}
    assert bag_text(stories, stories[0], "3/5", 0) == " ".join(STORIES[1][1:4])


def test_layout(tiny_folder):
    codec = load(tiny_folder)[1]
    some = [make_example(Story(index, "", STORIES[index]), "1/5", codec) for index in (0, 3)]
    batch = infill_batch(some, [[5, 6], [7]], torch.device("cpu"))
    for row, (story, gap) in enumerate(zip(some, ([5, 6], [7]), strict=True)):
        given, target = batch.given[row], batch.target[row]
        assert batch.tokens[row][given].tolist() == story.prefix_tokens + story.suffix_tokens
        assert batch.tokens[row][target].tolist() == gap
        before, after = len(story.prefix_tokens), len(story.suffix_tokens)
        padding = len(given) - before - len(gap) - after
        assert given.tolist() == [True] * before + [False] * len(gap) + [True] * after + [False] * padding
        assert target.tolist() == [False] * before + [True] * len(gap) + [False] * (after + padding)


# --- filling


@pytest.fixture(scope="module", params=["gpt2", "xlnet"])
def model_and_gaps(request, tiny_folder, sample_text):
    kind = ["gpt2", "xlnet"].index(request.param)
    codec = codecs(tiny_folder, sample_text)[kind]
    model = [tiny_gpt2, tiny_xlnet][kind](len(codec), scale=0.8, **({"n_positions": 128} if kind == 0 else {}))
    model.config.mask_token_id = codec.mask_token_id
    gaps = [make_example(Story(index, "", sentences), "3/5", codec) for index, sentences in enumerate(STORIES)]
    return model, codec, gaps


def test_a_filling_depends_on_its_seed_not_on_its_batch(model_and_gaps):
    model, codec, gaps = model_and_gaps
    rows = [(story, length) for story, length in zip(gaps, (3, 9, 1, 6, 4), strict=True)]
    together = fill(model, codec, rows, SamplerConfig(k=3), seeds=range(5))
    alone = [fill(model, codec, [row], SamplerConfig(k=3), [seed])[0] for seed, row in enumerate(rows)]
    assert together == alone
    assert [len(one.tokens) for one in together] == [3, 9, 1, 6, 4]
    assert fill(model, codec, rows, SamplerConfig(k=3), seeds=range(5, 10)) != together


def test_prefix_only_does_not_see_the_suffix(model_and_gaps):
    model, codec, gaps = model_and_gaps
    story, other = gaps[0], make_example(Story(0, "", [*STORIES[0][:4], "The king was a café."]), "3/5", codec)
    config = SamplerConfig(sampler="sequential")
    texts = [
        [fill(model, codec, [(one, 12)], config, [seed])[0].text for seed in range(4)]
        for one in (*without_suffixes([story, other]), story, other)
    ]
    assert texts[0] == texts[1]
    assert texts[2] != texts[3]


def one_after_prefix(model, tokens, begin, position):
    """log p(token at `position` | all before it), where the first `begin` tokens see each other."""
    positions = torch.arange(position)[None]
    query = torch.tensor([[position]])
    with torch.no_grad():
        logits = model(tokens[:, :position], positions, (positions + 1).clamp(min=begin), query, query)
    return float(torch.log_softmax(logits[0, 0], dim=-1)[tokens[0, position]])


def test_score_is_the_joint_density_after_the_prefix(model_and_gaps):
    model, _, gaps = model_and_gaps
    some = [story.reference_tokens[:length] for story, length in zip(gaps, (2, 9, 1, 6, 4), strict=True)]
    for story, gap, found in zip(gaps, some, scores(model, gaps, some), strict=True):
        tokens, begin = torch.tensor([story.prefix_tokens + gap + story.suffix_tokens]), len(story.prefix_tokens)
        positions = range(begin, tokens.shape[1])
        total = sum(one_after_prefix(model, tokens, begin, position) for position in positions)
        assert found == pytest.approx(total / len(positions), abs=1e-4)


def test_causal_model_goes_on_from_the_prefix(tmp_path, tiny_folder):
    codec = load(tiny_folder)[1]
    torch.manual_seed(0)
    shape = {"n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.5}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(codec) + 40, **shape)).save_pretrained(tmp_path)
    codec.save_pretrained(tmp_path)
    causal = CausalModel(str(tmp_path), torch.device("cpu"))
    gaps = [make_example(Story(index, "", sentences), "3/5", causal.codec) for index, sentences in enumerate(STORIES)]
    rows = list(zip(gaps, (3, 9, 1, 6, 4), strict=True))
    together = causal.fill(rows, Transforms(), range(5))
    assert together == [causal.fill([row], Transforms(), [seed])[0] for seed, row in enumerate(rows)]
    assert [len(one.tokens) for one in together] == [3, 9, 1, 6, 4]
    # At a temperature near 0 it takes the most likely token, never the end of the text or another special token, nor
    # an id that the tokenizer does not have.
    (cold,) = causal.fill(rows[1:2], Transforms(temperature=0), [0])
    ids = list(gaps[1].prefix_tokens)
    for token in cold.tokens:
        logits = causal.model(torch.tensor([ids])).logits[0, -1]
        logits[codec.tokenizer.all_special_ids] = -float("inf")
        logits[len(codec) :] = -float("inf")
        assert token == int(logits.argmax())
        ids.append(token)


# --- the length of a gap


def test_distribution_of_lengths_is_estimated_from_what_is_visible():
    rng = np.random.default_rng(0)
    means = rng.normal(12, 2, size=(4000, 1))
    lengths = LengthDistribution.fit((means + rng.normal(0, 3, size=(4000, 4))).tolist())
    assert (lengths.mean, lengths.between, lengths.within) == pytest.approx((12, 4, 9), rel=0.1)
    assert LengthDistribution.fit([]) == LengthDistribution(0, 0, 0)
    lengths = LengthDistribution(12, 4, 9)
    mean, deviation = lengths.gap([16, 16, 16, 16], pieces=3)
    weight = 4 / (4 + 9 / 4)
    assert mean == pytest.approx(3 * (12 + weight * 4))
    assert deviation**2 == pytest.approx(9 * 4 * (1 - weight) + 3 * 9)
    uneven = [row.tolist() for row in means + rng.normal(0, 3, size=(4000, 9))]
    lengths = LengthDistribution.fit([row[: index % 10] for index, row in enumerate(uneven)])  # some have none
    assert (lengths.mean, lengths.between, lengths.within) == pytest.approx((12, 4, 9), rel=0.1)
    assert lengths.gap([], 1) == pytest.approx((lengths.mean, (lengths.between + lengths.within) ** 0.5))
    alike = LengthDistribution.fit([[10, 14], [14, 10], [12, 12]])  # stories that differ by chance alone
    assert alike.gap([20, 20], 1)[0] == pytest.approx(12)


def test_proposals_are_quantiles_of_the_distribution():
    lengths = LengthDistribution(12, 4, 9)
    mean, deviation = lengths.gap([12, 12], 3)
    drawn = np.random.default_rng(0).normal(mean, deviation, 100_000)
    found = lengths.proposals([12, 12], 3, 5)
    assert found == pytest.approx(np.quantile(drawn, [0.1, 0.3, 0.5, 0.7, 0.9]), abs=0.6)
    assert LengthDistribution(1, 0, 0.5).proposals([1, 1], 1, 8) == [1, 2]
    assert LengthDistribution(5, 0, 0).proposals([5, 5], 2, 3) == [10]


def test_the_best_score_is_chosen():
    assert choose({9: -3.0, 7: -2.0, 8: -2.5}) == 7
    assert choose({9: -2.0, 7: -2.0}) == 7


# --- a whole run


def test_every_gap_is_filled_once_by_every_variant(finished, tiny_folder):
    lines = lines_of(finished)
    oracle = ["sequential", "assd-self", "assd-ngram", "parallel-1", "parallel-4", "prefix-only"]
    other = [f"assd-self {choice}" for choice in ("search", "median", "fixed:7")]
    wanted = {
        (model, task, variant, trial, story)
        for model, variants in ((tiny_folder, oracle + other), (systems.NO_MODEL, ["bag"]))
        for task in TASKS
        for variant in variants
        for trial in range(TRIALS)
        for story in range(len(STORIES))
    }
    found = [(line["model"], line["task"], line["variant"], line["trial"], line["index"]) for line in lines]
    assert len(found) == len(wanted)
    assert set(found) == wanted
    for line in lines:
        first, after = TASKS[line["task"]]
        assert line["gold"] == " ".join(STORIES[line["index"]][first:after])
        if line["variant"] == "bag":
            assert line["text"] in [" ".join(story[first:after]) for story in STORIES]
            assert line["text"] != line["gold"]
            continue
        steps = {"parallel-1": 1, "parallel-4": 4}.get(line["variant"])
        if line["gap_length"] == "search":
            scored = {int(length): score for length, score in line["scores"].items()}
            assert scored[line["length"]] == max(scored.values())
            assert line["drawn"] == sum(scored)
            assert len(scored) < line["nfe"] <= sum(scored) + len(scored)
        elif steps:
            assert line["nfe"] == min(steps, line["length"])
        else:
            assert line["drawn"] == line["length"] >= line["nfe"]
        if line["sampler"] in ("sequential", "prefix-only"):
            assert line["nfe"] == line["length"]
        if line["gap_length"] == "oracle":
            assert line["length"] == line["gold_length"]
        if line["gap_length"] == "fixed:7":
            assert line["length"] == 7


def test_rouge_is_that_of_rouge_score(finished):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    lines = lines_of(finished)
    assert sum(line["rougeL"] > 0 for line in lines) > 20
    for line in lines:
        for key, score in scorer.score(target=line["gold"], prediction=line["text"]).items():
            assert line[key] == pytest.approx(100 * score.fmeasure)
        assert line["rougeAvg"] == pytest.approx((line["rouge1"] + line["rouge2"] + line["rougeL"]) / 3)


def test_rouge_is_f1_without_stemming():
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum", "rougeAvg"]
    for gold, text, wanted in (
        ("He walked home.", "he WALKS home", [200 / 3, 0, 200 / 3, 200 / 3, 400 / 9]),
        ("a b c", "a c", [80, 0, 80, 80, 160 / 3]),
        ("a b\nc d", "c d\na b", [100, 200 / 3, 50, 100, 650 / 9]),  # only rougeLsum takes lines one by one
        ("a b", "", [0, 0, 0, 0, 0]),
    ):
        assert rouge(gold, text) == pytest.approx(dict(zip(names, wanted, strict=True)))


def test_trials_differ_in_their_seeds(finished):
    texts = {}
    for line in lines_of(finished):
        texts.setdefault((line["task"], line["variant"], line["index"]), []).append(line["text"])
    same = {key for key, (first, second) in texts.items() if first == second and key[1] != "bag"}
    assert len(same) < len(texts) / 20


def test_report_is_made_from_the_samples(finished, monkeypatch):
    metrics = json.loads((finished / "metrics.json").read_text())
    lines = lines_of(finished)
    for one in metrics["variants"]:
        same = [line for line in lines if all(line[key] == one[key] for key in ("task", "model", "variant"))]
        assert len(same) == TRIALS * len(STORIES)
        for key in story_stats.MEASURES:
            values = [line[key] for line in same]
            assert one[key]["mean"] == pytest.approx(np.mean(values))
            assert one[key]["by_trial"][1] == pytest.approx(np.mean([x[key] for x in same if x["trial"] == 1]))
        assert one["nfe"]["mean"] == pytest.approx(np.mean([line["nfe"] for line in same]))
        lengths = {
            "words": [len(x["text"].split()) for x in same],
            "gold_words": [len(x["gold"].split()) for x in same],
        }
        if one["variant"] != "bag":
            fields = {"tokens": "length", "gold_tokens": "gold_length", "nfe": "nfe"}
            lengths |= {name: [line[field] for line in same] for name, field in fields.items()}
        assert one["spread"] == {
            name: {"mean": pytest.approx(np.mean(values)), "sd": pytest.approx(np.std(values)), "n": len(values)}
            for name, values in lengths.items()
        }
    compared = {(one["task"], one["variant"], one["against"]) for one in metrics["comparisons"]}
    assert ("1/5", "assd-self", "sequential") in compared
    for other in ("assd-self", "assd-self median", "assd-self fixed:7", "sequential"):
        assert ("3/5", "assd-self search", other) in compared
    assert metrics["settings"]["k"] == 3
    assert metrics["provenance"]["torch"] == torch.__version__
    table = (finished / "table.md").read_text()
    header = "| model | variant | ROUGE-1 | ROUGE-2 | ROUGE-L | ROUGE-Lsum | average |"
    lengths = "| model | variant | tokens | of the right text | words | of the right text | NFE |"
    assert table.count(header) == table.count(lengths) == len(TASKS)
    assert "5 stories are too few for intervals and tests." in table
    monkeypatch.setattr("asarm.evals.tables.FEWEST", 5)
    assert "| assd-self search | assd-self median |" in story_table(metrics)
    assert (finished / "rouge.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_stories_is_whole_and_escaped(finished):
    text_of_page, tags = read_page(finished / "stories.html")
    assert not tags & {"b", "i", "script"}
    for line in lines_of(finished):
        assert line["gold"] in text_of_page
        assert line["prefix"] in text_of_page
        if line["trial"] == 0:
            text = " ".join(line["text"].split())
            assert "".join(letter if letter.isprintable() else "\ufffd" for letter in text) in text_of_page


@pytest.mark.parametrize("kept", [0.0, 0.37, 0.81])
def test_resuming_after_an_interruption_repeats_the_run(finished, settings, tmp_path, kept):
    folder = tmp_path / "run"
    whole = interrupted_copy(finished, folder, kept)
    evaluate(from_options(StoriesConfig, output_dir=str(folder), **settings))
    assert without_times(lines_of(folder)) == without_times(lines_of(finished))
    assert not kept or (folder / "samples.jsonl").read_bytes()[:200] == whole[:200]  # times and all: not run again


def test_scores_that_an_older_run_did_not_write_are_made_from_its_texts(finished, settings, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    older = [
        {key: value for key, value in line.items() if key not in ("rougeLsum", "rougeAvg")} for line in lines_of(folder)
    ]
    write_json_lines(folder / "samples.jsonl", older)
    found = evaluate(from_options(StoriesConfig, output_dir=str(folder), **settings))
    assert found["variants"] == json.loads((finished / "metrics.json").read_text())["variants"]


def test_a_finished_run_is_not_filled_again(finished, settings, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    monkeypatch.setattr(systems, "fill", lambda *args: pytest.fail("filled again"))
    evaluate(from_options(StoriesConfig, output_dir=str(folder), **settings))
    assert (folder / "samples.jsonl").read_bytes() == (finished / "samples.jsonl").read_bytes()


def test_results_do_not_depend_on_batches_trials_or_the_number_of_stories(finished, settings, tmp_path):
    change = {"batch_size": 3, "max_items": 3, "trials": 1, "samplers": ["assd-self", "prefix-only", "bag"]}
    evaluate(from_options(StoriesConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    some = lines_of(tmp_path / "run")
    same = {(line["task"], line["variant"], line["trial"], line["index"]) for line in some}
    whole = [x for x in lines_of(finished) if (x["task"], x["variant"], x["trial"], x["index"]) in same]
    assert len(some) == 3 * len(TASKS) * 6
    # Scores differ in their last digits when batches are filled up to other lengths.
    assert without_times(some, "batch", "scores") == without_times(whole, "batch", "scores")


def test_other_settings_are_not_mixed_in(finished, settings, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with pytest.raises(InputError, match=r"trials 2, now 3.*choose another output_dir"):
        evaluate(from_options(StoriesConfig, output_dir=str(folder), **(settings | {"trials": 3})))


def test_several_models_and_a_causal_one(settings, tmp_path, tiny_folder):
    codec = load(tiny_folder)[1]
    causal = tmp_path / "causal"
    shape = {"n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(codec), **shape)).save_pretrained(causal)
    codec.save_pretrained(causal)
    other = shutil.copytree(tiny_folder, tmp_path / "other@model")
    change = {
        "models": [tiny_folder, str(other)], "causal": str(causal), "samplers": ["assd-self", "bag"], "trials": 1,
        "gap_length": ["oracle"], "tasks": ["1/5"],
    }  # fmt: skip
    metrics = evaluate(from_options(StoriesConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    assert [(one["model"], one["variant"]) for one in metrics["variants"]] == [
        (tiny_folder, "assd-self"), (str(other), "assd-self"), (str(causal), "causal"), (systems.NO_MODEL, "bag"),
    ]  # fmt: skip
    texts = {line["model"]: line["text"] for line in lines_of(tmp_path / "run") if line["index"] == 2}
    assert texts[tiny_folder] == texts[str(other)] != texts[str(causal)]
    (compared,) = metrics["model_comparisons"]  # causal and bag have one model each
    assert (compared["model"], compared["against"], compared["variant"]) == (str(other), tiny_folder, "assd-self")
    assert (compared["rougeL"]["difference"], compared["rougeL"]["n"]) == (0, len(STORIES))


def test_variants_take_turns(settings, stories_file):
    change = {"samplers": ["sequential", "prefix-only"], "gap_length": ["oracle"], "tasks": ["1/5"]}
    config = from_options(StoriesConfig, output_dir="unused", **(settings | change))
    evaluation = StoriesEvaluation(config)
    units = evaluation.units()
    assert [unit.variant.name for unit in units if unit.key["trial"] == 0] == [
        "sequential", "prefix-only", "prefix-only", "sequential", "sequential", "prefix-only",
    ]  # fmt: skip
    assert [len(unit.items) for unit in units if unit.key["trial"] == 1] == [2, 2, 2, 2, 1, 1]
    lengths = [story.context_length + len(story.reference_tokens) for unit in units[::4] for story in unit.items]
    assert lengths == sorted(lengths)
    assert len({tuple(unit.key.values()) for unit in units}) == len(units)


# --- statistics


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).exponential(10, 400)
    low, high = stats.bootstrap_interval(values.tolist())
    error = values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=error / 4)
    assert stats.bootstrap_interval([1.0]) is None


def made_line(index, trial, rouge, variant="assd-self", **values):
    return {
        "task": "1/5", "model": "m", "variant": variant, "sampler": variant, "gap_length": "oracle", "trial": trial,
        "index": index, "length": 5, "gold_length": 5, "drawn": 6, "nfe": 3, "seconds": 1.0, "rouge1": rouge,
        "rouge2": rouge, "rougeL": rouge, "rougeLsum": rouge, "rougeAvg": rouge, "words": 4, "gold_words": 6,
    } | values  # fmt: skip


def test_trials_of_a_story_are_one_observation():
    rng = np.random.default_rng(0)
    of_story = rng.normal(20, 5, 30)
    lines = [made_line(i, t, of_story[i]) for i in range(30) for t in range(50)]
    (found,) = story_stats.summarise(lines)["variants"]
    low, high = found["rougeL"]["interval_95"]
    assert high - low == pytest.approx(2 * 1.96 * of_story.std() / 30**0.5, rel=0.15)  # not / 1500
    assert (found["stories"], found["trials"], found["tokens_per_nfe"]["mean"]) == (30, 50, 2.0)
    assert found["most_nfe_per_token"] == 0.5


def test_comparisons_are_paired_by_story():
    rng = np.random.default_rng(0)
    base = rng.normal(20, 10, 60)
    lines = [made_line(i, 0, base[i], "sequential", nfe=6, seconds=3.0) for i in range(60)]
    lines += [made_line(i, 0, base[i] + rng.normal(0, 0.5)) for i in range(60)]
    (found,) = story_stats.summarise(lines)["comparisons"]
    assert (found["variant"], found["against"]) == ("assd-self", "sequential")
    assert found["rougeL"]["verdict"] == "same"
    assert (found["nfe"]["difference"], found["times_as_fast"]) == (-3.0, 3.0)
    lines = [line | {"rougeL": line["rougeL"] - 3} if line["variant"] == "assd-self" else line for line in lines]
    assert story_stats.summarise(lines)["comparisons"][0]["rougeL"]["verdict"] == "different"


def test_models_are_compared_under_the_same_variant():
    """Stock beside finetuned: rows and comparisons say which model they are of."""
    rng, lines = np.random.default_rng(0), []
    for index, base in enumerate(rng.normal(20, 3, 40)):
        for model, better in (("tuned", 5), ("stock", 0)):
            for variant, nfe in (("sequential", 6), ("fused", 3)):
                lines.append(made_line(index, 0, base + better + rng.normal(), variant, model=model, nfe=nfe))
    metrics = story_stats.summarise(lines)
    assert [(one["model"], one["against"], one["variant"]) for one in metrics["model_comparisons"]] == [
        ("stock", "tuned", "sequential"), ("stock", "tuned", "fused"),
    ]  # fmt: skip
    for one in metrics["model_comparisons"]:
        assert one["rougeL"]["difference"] == pytest.approx(-5, abs=0.6)
        assert (one["rougeL"]["verdict"], one["nfe"]["difference"]) == ("different", 0)
    table, printed = story_table(metrics), story_summary(metrics)
    assert "Differences between models under the same variant, paired by story." in table
    assert re.search(r"\| fused \| stock \| tuned \| -\d\.\d+ \[", table)
    assert re.search(r"^fused against sequential, tuned: -3.0 NFE", printed, re.MULTILINE)
    assert re.search(r"^fused against sequential, stock: -3.0 NFE", printed, re.MULTILINE)
    assert re.search(r"^stock against tuned, sequential: ROUGE-L -[45]\.\d+", printed, re.MULTILINE)
    alone = story_stats.summarise([line for line in lines if line["model"] == "tuned"])
    assert alone["model_comparisons"] == []
    assert "between models" not in story_table(alone)
    assert re.search(r"^fused against sequential: -3.0 NFE", story_summary(alone), re.MULTILINE)


def test_length_error():
    lines = [made_line(0, 0, 1.0, length=length) for length in (3, 5, 9)]
    found = stats.length_error(lines)
    assert (found["absolute"]["mean"], found["bias"]["mean"]) == (2.0, pytest.approx(2 / 3))
    assert stats.length_error([made_line(0, 0, 1.0, length=None)]) is None


# --- the command line


def test_options_override_the_preset():
    paper = parse_arguments([])
    assert paper.model_names() == ["therealgabeguo/ASARM@nlp", "xlnet/xlnet-base-cased"]
    assert (paper.trials, paper.tasks, paper.max_items) == (5, ["1/5", "3/5"], 0)
    assert paper.sampling.k == 10  # the default of the released sampler, which the script's own option does not reach
    names = [variant.name for variant in paper.variants()]
    assert names[:6] == ["sequential", "assd-self", "assd-ngram", "parallel-1", "parallel-4", "parallel-16"]
    assert names[6:] == ["assd-self search", "assd-self median", "prefix-only", "causal", "bag"]
    assert parse_arguments(["paper", "--model", "a/b", "--revision", "c"]).model_names() == ["a/b@c"]
    assert parse_arguments(["tiny", "--model", "a/b"]).model_names() == ["a/b"]
    tiny = parse_arguments(["tiny", "--gap_length", "fixed:9", "--samplers", "parallel", "--parallel-steps", "2"])
    assert [variant.name for variant in tiny.variants()] == ["sequential fixed:9"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stories", "{tmp}/none.csv"], "on request by the authors of the Story Cloze Test"),
        (["--stories", "{tmp}/columns.csv"], "has no field InputSentence4, AnswerRightEnding"),
        (["--stories", "{tmp}/nothing.csv"], "nothing.csv is empty"),
        (["--stories", "{tmp}/bytes.csv"], "bytes.csv is not UTF-8 text: byte 0xe9 in line 1"),
        (["--stories", "{tmp}"], "Is a directory"),
        (["--stories", "{tmp}/empty.csv"], "empty.csv, line 6 (story-4): InputSentence3 is empty"),
        (["--stories", "{tmp}/short.csv"], "short.csv, line 2 (a): InputSentence3 is empty"),
        (["--stories", "{tmp}/answer.csv"], "AnswerRightEnding must be 1 or 2, not '3'"),
        (["--stories", "{tmp}/long.csv"], "story story-4 has "),
        (["--stories", "{tmp}/mask.csv"], "story story-4 holds <mask>"),
        (["--stories", "{tmp}/one.csv"], "leave out bag"),
        (["--gap_length", "fixed:120"], "120 of them in its gap, but the model takes at most 128"),
        (["--gap_length", "fixed:0"], "unknown gap_length 'fixed:0'"),
        (["--gap_length", "some"], "unknown gap_length 'some'"),
        (["--tasks", "2/5"], "unknown task '2/5': choose from 1/5, 3/5"),
        (["--samplers", "magic"], "unknown sampler 'magic'"),
        (["--length_sampler", "magic"], "unknown length_sampler 'magic'"),
        (["--parallel_steps", "0"], "steps must be at least 1, not 0"),
        (["--trials", "0"], "trials must be at least 1, not 0"),
        (["--max_items", "-1"], "max_items must be at least 0, not -1"),
        (["--temperature", "-1"], "temperature must lie in"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["--device", "abacus"], "no device 'abacus' here"),
        (["--compile", "maybe"], "unknown compile 'maybe'"),
        (["--model", "{tmp}/none"], "no model folder"),
        (["--model", "tiny-none"], "no bundled model 'tiny-none'"),
        (["--models", "tiny-none", "--revision", "nlp"], "write name@revision"),
        (["--causal", "{tmp}/none"], "cannot load the causal model"),
        (["--nonsense", "1"], "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    monkeypatch, capsys, tmp_path, tiny_folder, stories_file, options, message
):
    (tmp_path / "columns.csv").write_text("InputStoryid,InputSentence1,InputSentence2,InputSentence3,"
                                          "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2\n")  # fmt: skip
    (tmp_path / "nothing.csv").write_text(",".join(COLUMNS) + "\n")
    (tmp_path / "short.csv").write_text(",".join(COLUMNS) + "\na,One.,Two.,,Four.,Five.,Six.,1\n")
    (tmp_path / "bytes.csv").write_bytes("caf\u00e9".encode("latin-1"))
    write_stories(tmp_path / "empty.csv", STORIES, InputSentence3="  ")
    write_stories(tmp_path / "answer.csv", STORIES, AnswerRightEnding="3")
    write_stories(tmp_path / "long.csv", STORIES, InputSentence1="The bear was old. " * 40)
    write_stories(tmp_path / "mask.csv", STORIES, InputSentence1="The <mask> bear.")
    write_stories(tmp_path / "one.csv", STORIES[:1])
    output = tmp_path / "output"
    usual = ["tiny", "--model", tiny_folder, "--stories", stories_file, "--output_dir", str(output)]
    if "--models" in options:
        usual = usual[:1] + usual[3:]
    given = [option.format(tmp=tmp_path) for option in options]
    monkeypatch.setattr(sys, "argv", ["asarm", "stories", *usual, *given])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert error[0].startswith("asarm stories: ")
    assert message in error[0]
    assert not (output / "samples.jsonl").exists()


# --- the wrapper


@pytest.fixture
def wrapper(repo):
    name = "_run_nlp_infill_eval.sh"
    return Path(shutil.copy(REPO / name, repo / name))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "stories paper --output_dir {results}/stories-paper"),
        (["tiny", "--trials", "3"], "stories tiny --output_dir {results}/stories-tiny --trials 3"),
        (["--trials", "3"], "stories paper --output_dir {results}/stories-paper --trials 3"),
        (["language"], "language paper --output_dir {results}/language-paper"),
        (["language", "tiny", "--seed", "1"], "language tiny --output_dir {results}/language-tiny --seed 1"),
    ],
)
def test_wrapper_names_command_preset_and_folder(wrapper, bare, tmp_path, words, command):
    result = run(wrapper, *words, env=bare, cwd=tmp_path)
    assert result.stdout == f"ran: -m asarm {command.format(results=wrapper.parent / 'results')}\n", result.stderr


def test_wrapper_runs_from_any_folder(wrapper, tmp_path, stories_file, tiny_folder):
    options = ["--model", tiny_folder, "--stories", stories_file, "--trials", 1, "--max_items", 2]
    result = run(wrapper, "tiny", *options, env=active(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"\| sequential search +\|", result.stdout)
    assert "2 stories are too few for intervals and tests." in result.stdout
    assert (wrapper.parent / "results/stories-tiny/stories.html").exists()


def test_missing_stories_are_one_line(wrapper, tmp_path):
    result = run(wrapper, "paper", env=active(), cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "eval_datasets/cloze_test_val__spring2016.csv" in result.stderr
    assert "on request by the authors of the Story Cloze Test" in result.stderr
