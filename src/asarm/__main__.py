"""The command line: `python -m asarm COMMAND`. A user error is one line on standard error, and exit code 2."""

import importlib
import logging
import sys

from asarm.utils.errors import shortage

COMMANDS = {
    "train": "train a model on local files or a streamed dataset",
    "sources": "Python sources of this installation as a corpus to train on",
    "write": "a language model's own writing as a corpus to adapt it on",
    "draft_head": "train a draft head for a model, for faster decoding",
    "infill": "fill the gaps (___) of a text",
    "score": "exact log-likelihoods of what fills the gaps of a text",
    "decode": "decode real text speculatively and sequentially, and compare",
    "judge": "perplexities of finished decodings under another model",
    "stories": "fill gaps in stories, and compare with what was there",
    "language": "LAMBADA's last words and HellaSwag's endings",
    "code": "complete code between prompt and suffix, and run its tests",
    "merge": "results that several processes left in one folder",
    "harness": "any task of lm-evaluation-harness (its options; --model asarm)",
}


def main() -> int:
    """Run the command that `sys.argv` names, and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in COMMANDS:
        asked = arguments[:1] in (["-h"], ["--help"])
        lines = [f"  {name:10} {text}" for name, text in COMMANDS.items()]
        print("usage: asarm COMMAND [options]\n", *lines, sep="\n", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        importlib.import_module(f"asarm.cli.{arguments[0]}").main(arguments[1:])
    except Exception as error:
        reason = shortage(error)
        if reason is None and not isinstance(error, (ValueError, OSError, FloatingPointError)):
            raise
        print(f"asarm {arguments[0]}: {reason or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nasarm {arguments[0]}: interrupted; finished parts are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
