"""Loading from a Hub, through the command line: a loopback server replaces it, and counts the requests.

The commands run in processes of their own, as `huggingface_hub` reads its environment when it is imported.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import BertConfig, BertModel, XLNetConfig, XLNetLMHeadModel

from asarm.cli.infill import main as infill
from asarm.models import load
from support.hub import Hub, commit_of
from support.paths import SOURCE
from support.xlnet_tokenizer import train_xlnet_tokenizer

OTHER_FORMS = ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx", "training_args.bin")
CODE = "def f(a):\n    return ___3\n\tb   ___2\n"
# `python -m asarm infill` with several lists of arguments in one process, as starting one takes seconds.
SEVERAL = """
import json, sys
from asarm.__main__ import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["asarm", "infill", *arguments]
    code = main()
    for file in (sys.stdout, sys.stderr):
        print(f"exit {code}", file=file, flush=True)
"""


class Printed(NamedTuple):
    code: int
    out: str
    err: str

    def tokens(self) -> list[int]:
        assert self.code == 0, self.err
        return json.loads(self.out)["samples"][0]["tokens"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """user/xlnet has the branches code (sharded), nlp (other weights, no tokenizer), and cut and torn (damaged).

    code_bin and python have the weights of code as pickles, in several files and in one, and no safetensors.
    """
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = train_xlnet_tokenizer(Path(__file__).read_text(encoding="utf-8"), 200)
    shape = {"vocab_size": len(tokenizer), "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
    with torch.random.fork_rng():
        for seed, branch in enumerate(("nlp", "code", "cut", "torn")):
            torch.manual_seed(seed)
            model = XLNetLMHeadModel(XLNetConfig(**shape, initializer_range=0.5))
            model.save_pretrained(folder / branch, max_shard_size="10KB" if branch == "code" else "1GB")
    for path in ("code", "cut", "torn", "xlnet"):
        tokenizer.save_pretrained(folder / path)
    for branch in ("code_bin", "python"):
        shutil.copytree(folder / "code", folder / branch, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = XLNetLMHeadModel.from_pretrained(folder / "code").state_dict()
    torch.save(tensors, folder / "python" / "pytorch_model.bin")
    shards = {"one.bin": dict(list(tensors.items())[:9]), "two.bin": dict(list(tensors.items())[9:])}
    for file, part in shards.items():
        torch.save(part, folder / "code_bin" / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "code_bin" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for file in ("pytorch_model.bin", *OTHER_FORMS):
        (folder / "code" / file).write_bytes(b"never asked for")
    for file in OTHER_FORMS:
        (folder / "code_bin" / file).write_bytes(b"never asked for")
    (folder / "xlnet" / "model.safetensors").write_bytes(b"never asked for, either")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    bert = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8}
    BertModel(BertConfig(**bert, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(folder / "bert")
    repositories = {
        "user/xlnet": {branch: folder / branch for branch in ("nlp", "code", "cut", "torn", "code_bin", "python")},
        "user/bert": {"main": folder / "bert"},
        "xlnet/xlnet-base-cased": {"main": folder / "xlnet"},
    }
    with Hub(repositories) as server:
        server.torn.add(folder / "torn" / "model.safetensors")
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """That of a user who is not logged in, with a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    source = str(SOURCE.parent)
    return kept | {"PYTHONPATH": source, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "*"} | more


def run(environment: dict[str, str], arguments: dict[str, str]) -> dict[str, Printed]:
    """What `asarm infill CODE --json --model user/... ...` printed for each of the arguments, in turn."""
    lists = [[CODE, "--json", "--model", *line.split()] for line in arguments.values()]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(lists)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    outs, errs = (re.findall(r"(.*?)exit (\d+)\n", text, re.DOTALL) for text in (done.stdout, done.stderr))
    assert len(outs) == len(errs) == len(lists)
    return {
        name: Printed(int(code), out, err) for name, (out, code), (err, _) in zip(arguments, outs, errs, strict=True)
    }


@pytest.fixture(scope="module")
def online(hub, home):
    return run(
        environment(hub, home),
        {
            "code": "user/xlnet --revision code",
            "nlp": "user/xlnet --revision nlp",
            "code again": "user/xlnet --revision code",
            "no branch": "user/xlnet --revision nlq",
            "no main": "user/xlnet",
            "no repository": "user/xlmet --revision nlp",
            "cut": "user/xlnet --revision cut",
            "torn": "user/xlnet --revision torn",
            "bert": "user/bert",
            "code_bin": "user/xlnet --revision code_bin",
            "python": "user/xlnet --revision python",
            "commit": f"user/xlnet --revision {commit_of('user/xlnet', 'code')}",
            "commit, told": f"user/xlnet --white_space tokens --revision {commit_of('user/xlnet', 'code')}",
        },
    )


@pytest.fixture(scope="module")
def offline(hub, home, online):
    before = len(hub.requests)
    printed = run(
        environment(hub, home, HF_HUB_OFFLINE="1"),
        {
            "code": "user/xlnet --revision code",
            "nlp": "user/xlnet --revision nlp",
            "torn": "user/xlnet --revision torn",
            "never": "user/never --revision code",
            "code_bin": "user/xlnet --revision code_bin",
        },
    )
    assert hub.requests[before:] == []
    return printed


@pytest.fixture
def from_folder(hub, capsys, monkeypatch):
    """The tokens that the same command gives with a branch's folder."""
    monkeypatch.setattr(load, "XLNET_TOKENIZER", str(hub.repositories["xlnet/xlnet-base-cased"]["main"]))

    def tokens(branch: str) -> list[int]:
        folder = hub.repositories["user/xlnet"][branch]
        infill([CODE, "--json", "--model", str(folder), "--revision", branch])
        return json.loads(capsys.readouterr().out)["samples"][0]["tokens"]

    return tokens


def test_the_revision_picks_weights_and_codec(online, from_folder):
    code, nlp = online["code"].tokens(), online["nlp"].tokens()
    assert code == from_folder("code")
    assert nlp == from_folder("nlp")
    assert code != nlp
    texts = {name: json.loads(online[name].out)["samples"][0]["text"] for name in ("code", "nlp")}
    assert texts["code"].startswith("def f(a):\n    return")
    assert "\n\tb  " in texts["code"]
    assert texts["nlp"].startswith("def f(a): return")


def test_a_second_load_downloads_nothing(hub, online):
    assert online["code again"].tokens() == online["code"].tokens()
    files = [request for request in hub.requests if re.match("GET /(cdn|.*/resolve)/", request)]
    whole = [request for request in files if commit_of("user/xlnet", "torn") not in request]
    assert len(whole) == len(set(whole)) > 8


def test_a_cache_of_an_older_version_serves_offline(hub, home, online, tmp_path):
    """Such a cache has no lists of the files of commits."""
    shutil.copytree(home, tmp_path / "home", symlinks=True)
    for lists in (tmp_path / "home").rglob("trees"):
        shutil.rmtree(lists)
    printed = run(
        environment(hub, tmp_path / "home", HF_HUB_OFFLINE="1"),
        {"code": "user/xlnet --revision code", "code_bin": "user/xlnet --revision code_bin"},
    )
    assert {branch: one.tokens() for branch, one in printed.items()} == {
        branch: online[branch].tokens() for branch in printed
    }


def test_the_cache_serves_offline(online, offline):
    for branch in ("code", "nlp", "code_bin"):
        assert offline[branch].tokens() == online[branch].tokens()


def test_pickled_weights_give_the_same(online):
    assert online["code_bin"].tokens() == online["code"].tokens()


@pytest.mark.parametrize("name", ["python", "commit"])
def test_a_guess_about_white_space_is_said(online, name):
    asked = "python" if name == "python" else commit_of("user/xlnet", "code")
    message = f"user/xlnet at {asked} is read as a model of plain text, .*--white_space tokens\n"
    assert re.fullmatch(message, online[name].err), online[name].err
    assert online[name].tokens() == online["python"].tokens() != online["code"].tokens()
    assert online["commit, told"].tokens() == online["code"].tokens()
    for known in ("commit, told", "code", "code_bin", "nlp"):
        assert online[known].err == ""


@pytest.mark.parametrize(
    ("revision", "white_space", "said"),
    [
        ("code", "tokens", False), ("code-single_line_25k", "tokens", False), ("code_210k_plus_75k", "tokens", False),
        ("nlp", "plain", False), ("nlp_210k_plus_75k", "plain", False), ("nlp-infill", "plain", False),
        (None, "plain", True), ("Code", "plain", True), ("codes", "plain", True), ("python_code", "plain", True),
        ("main", "plain", True), ("0" * 40, "plain", True),
    ],
)  # fmt: skip
def test_spellings_of_branches(revision, white_space, said, caplog):
    assert load.branch_white_space("xlnet", "user/xlnet", revision) == white_space
    assert bool(caplog.messages) == said
    assert load.branch_white_space("asarm-gpt2", "user/gpt2", revision) == "plain"
    assert load.branch_white_space("xlnet", "xlnet/xlnet-base-cased", revision) in (white_space, "plain")
    assert len(caplog.messages) == said


def test_only_what_is_needed_is_asked_for(hub, online):
    unneeded = (f"{commit_of('user/xlnet', 'code')}/pytorch_model.bin", *OTHER_FORMS)
    for path in (*unneeded, "/user/bert/resolve/.*safetensors", "/xlnet-base-cased/resolve/.*safetensors"):
        assert not [request for request in hub.requests if re.search(path, request)]
    assert [request for request in hub.requests if re.search("resolve/.*/two.bin", request)]
    assert [request for request in hub.requests if re.search("/xlnet-base-cased/resolve/.*tokenizer.json", request)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no branch", r"user/xlnet has no branch, tag or commit 'nlq' on the Hub"),
        ("no main", r"user/xlnet has no branch, tag or commit 'main' on the Hub"),
        ("no repository", r"no model folder user/xlmet, and no such repository on the Hub"),
        ("cut", r"the weights in .*user--xlnet.* are damaged, download them again: "),
        ("torn", r"the download of user/xlnet at torn failed, try again: .*received \d+ bytes, expected \d+"),
        ("bert", r"user/bert is a bert model; known are asarm-gpt2, xlnet"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(online, name, message):
    one_line(online[name], message)


@pytest.mark.parametrize("name", ["torn", "never"])
def test_what_is_not_in_the_cache_is_one_line_offline(offline, name):
    one_line(offline[name], r"user/.* is not \(wholly\) in the cache .* cannot be reached: HF_HUB_OFFLINE is set")


def test_the_exit_code_is_2(hub, tmp_path):
    """In a process of its own, with an empty cache and no server."""
    done = subprocess.run(
        [sys.executable, "-m", "asarm", "infill", CODE, "--model", "user/xlnet", "--revision", "code"],
        env=environment(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9"),  # the port of the discard service
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    one_line(Printed(done.returncode, done.stdout, done.stderr), "http://127.0.0.1:9 cannot be reached: .*refused")


def one_line(printed: Printed, message: str) -> None:
    assert printed.code == 2
    assert printed.out == ""
    assert re.fullmatch(f"asarm infill: .*{message}.*\n", printed.err), printed.err
