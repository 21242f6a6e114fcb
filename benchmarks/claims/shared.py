"""What the scripts of docs/claims.md share: texts with most tokens masked, and their result files."""

from argparse import Namespace
from typing import Any

from asarm.evals.decoding.config import DecodingEvalConfig
from asarm.evals.decoding.texts import Sequences, choose_sequences, load_documents
from asarm.tokenization.codec import TextCodec
from asarm.utils.files import write_json
from asarm.utils.provenance import provenance


def masked_texts(text: str, codec: TextCodec, length: int, count: int, mask_rate: float) -> Sequences:
    """The sequences that `asarm decode` takes of a text. Raises InputError when it cannot be read."""
    config = DecodingEvalConfig(output_dir="unused", length=[length], num_texts=count, mask_rate=mask_rate)
    return choose_sequences(load_documents(text, config.packing), codec, config, length)


def write_result(arguments: Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a table, settings and provenance to the JSON file `arguments.output`, if there is one."""
    if arguments.output:
        settings = {key: str(value) for key, value in vars(arguments).items()}
        write_json(arguments.output, {"settings": settings, "rows": rows, "provenance": provenance()})
