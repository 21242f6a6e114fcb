"""Dataclass fields that become command-line options, and checks of their values."""

from dataclasses import field


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def option(default, text: str):
    """A dataclass field with a default (a list is copied for each object) and a help text, shown as it is written."""
    metadata = {"help": text.replace("%", "%%")}  # argparse formats help texts with %
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
