"""What the `paper` presets follow of the paper's protocol."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from shutil import get_terminal_size
from textwrap import fill
from typing import Any

from asarm.tokenization.transforms import Transforms

# How the paper's scripts decode, and how they fill gaps in stories and code.
PAPER_SAMPLING: dict[str, Any] = {
    "samplers": ["assd-self"],
    "coupling": "residual",
    "k": 10,
    "temperature": 1.0,
    "draft_temperature": None,
    "tolerance": 0.0,
}
UNTRANSFORMED = asdict(Transforms())  # as in all of the paper's scripts: named where they differ
PAPER_INFILLING: dict[str, Any] = {
    **PAPER_SAMPLING,
    "gap_length": ["oracle"],
    "special_tokens": True,
    "causal": "",
    "dtype": "float32",
    "batch_size": 1,
}


@dataclass(frozen=True)
class Protocol:
    """What the paper's scripts do.

    settings: options with the paper's values. others: further ones, which are named where they differ only. notes: what
    differs and is no option. derived: what is compared beside the options, from the settings in force.
    """

    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda in_force: {}

    def describe(self, in_force: Mapping[str, Any]) -> str:
        """Which of the settings in force are the paper's, and which are not: for people, in a few lines."""
        found = {**in_force, **self.derived(in_force)}
        same = [name for name, value in self.settings.items() if found[name] == value]
        untransformed = {
            name: value for name, value in UNTRANSFORMED.items() if name in found and name not in self.settings
        }
        parts = [
            ("as the paper", [_shown(name, found[name]) for name in same]),
            ("not as the paper", [
                f"{_shown(name, found[name])} (the paper: {_value(name, value)})"
                for name, value in {**self.settings, **self.others, **untransformed}.items()
                if found[name] != value
            ]),
            ("in any case", list(self.notes)),
        ]  # fmt: skip
        lines = [_wrapped(f"- {title}: {'; '.join(points)}") for title, points in parts if points]
        return "\n".join(["Protocol of arXiv 2504.20456 (docs/protocol.md):", *lines]) + "\n"


def _wrapped(line: str) -> str:
    """As wide as the terminal, or 100 characters where there is none."""
    width = get_terminal_size((100, 24)).columns
    return fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _shown(name: str, value: Any) -> str:
    return f"{name} {_value(name, value)}"


def _value(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value("", one) for one in value) or "none"
    if value in ("", None):
        return "none"
    if name == "max_items" and value == 0:
        return "all"
    return f"{value:g}" if isinstance(value, float) else str(value)


def white_space_as(name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """White space for `Protocol.derived`: `auto` is taken for the paper's way of reading it, which is `name`."""
    return lambda in_force: {"white_space": in_force["white_space"].replace("auto", name)}


def follows_paper(arguments: list[str]) -> bool:
    """Whether the preset that the arguments name, or the default one, is the paper's."""
    return not arguments or arguments[0].startswith(("-", "paper"))
