"""Settings as dataclasses: fields that are command-line options, configs composed of others, checks of values."""

import sys
from argparse import Action, ArgumentTypeError
from collections.abc import Iterable
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass, replace
from typing import Any, TypeVar

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from asarm.utils.errors import InputError

Config = TypeVar("Config")


def option(default: Any, text: str, *aliases: str) -> Any:
    """A dataclass field with a default (a list is copied for each object) and a help text, shown as it is written.

    aliases: other names of the option, such as --split.
    """
    metadata = {"help": text.replace("%", "%%"), "aliases": list(aliases)}  # argparse formats help texts with %
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def nested(kind: type, hidden: Iterable[str] = (), **defaults: Any) -> Any:
    """A dataclass field that holds another config. Its fields are options of the whole config, but for the hidden ones.

    defaults: values of its fields that differ from those of the class.
    """
    return field(default_factory=lambda: kind(**defaults), metadata={"hidden": tuple(hidden)})


def _default(part: Field) -> Any:
    return part.default_factory()  # type: ignore[misc,operator]


def _is_nested(part: Field) -> bool:
    return is_dataclass(part.type)


def flat(config: Any) -> dict[str, Any]:
    """{name: value} of all fields; a nested config's fields, hidden ones among them, are at the same level."""
    values: dict[str, Any] = {}
    for part in fields(config):
        value = getattr(config, part.name)
        values |= flat(value) if _is_nested(part) else {part.name: value}
    return values


def from_options(kind: type[Config], **values: Any) -> Config:
    """The inverse of `flat`: a config made of values by name; those that are missing have their defaults."""
    own: dict[str, Any] = {}
    for part in fields(kind):  # type: ignore[arg-type]
        if not _is_nested(part):
            own |= {part.name: values.pop(part.name)} if part.name in values else {}
        else:
            inner = _default(part)
            changes = {sub.name: values.pop(sub.name) for sub in fields(inner) if sub.name in values}
            own[part.name] = replace(inner, **changes)
    if values:
        raise TypeError(f"{kind.__name__} has no options {', '.join(values)}")
    return kind(**own)


def options_of(kind: type) -> type:
    """One dataclass with all options of a config, those of nested ones among them, for `OptionParser`."""
    found = []
    for part in fields(kind):
        if not _is_nested(part):
            found.append((part.name, part.type, _copy(part, part.default, part.default_factory)))
            continue
        inner = _default(part)
        for sub in fields(inner):
            if sub.name not in part.metadata["hidden"]:
                value = getattr(inner, sub.name)
                default = (MISSING, lambda value=value: list(value)) if isinstance(value, list) else (value, MISSING)
                found.append((sub.name, sub.type, _copy(sub, *default)))
    return make_dataclass(kind.__name__, found)


class OptionParser(HfArgumentParser):
    """The parser of all commands. Options are written in full, and a flag takes a value only if it is a boolean word:
    `--adaptive TEXT` leaves the text to the positional argument, `--adaptive false` does not."""

    def __init__(self, *arguments: Any, **settings: Any):
        self.flags: set[str] = set()
        super().__init__(*arguments, allow_abbrev=False, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> Action:
        """As in argparse."""
        if settings.get("type") is string_to_bool:  # also where the default is neither true nor false
            settings |= {"nargs": "?", "const": True}
        if settings.get("action") == "store_false":  # what HfArgumentParser makes beside a flag that is on by default
            settings["help"] = f"the opposite of --{settings['dest']}"
        action = super().add_argument(*names, **settings)
        if action.nargs == "?" and action.const is True:
            self.flags |= set(action.option_strings)
        return action

    def parse_args_into_dataclasses(
        self, *arguments: Any, return_remaining_strings: bool = False, **settings: Any
    ) -> Any:
        """As in HfArgumentParser. Raises InputError for unknown options, unless they are to be returned."""
        *found, rest = super().parse_args_into_dataclasses(*arguments, return_remaining_strings=True, **settings)
        check(return_remaining_strings or not rest, f"unknown: {' '.join(rest)}; --help lists the options")
        return (*found, rest) if return_remaining_strings else tuple(found)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse."""
        words = sys.argv[1:] if args is None else list(args)
        end = words.index("--") if "--" in words else len(words)
        for index in range(end):
            if words[index] in self.flags and not _is_boolean(words[index + 1 : index + 2]):
                words[index] += "=true"
        return super().parse_known_args(words, namespace)


def _is_boolean(words: list[str]) -> bool:
    try:
        return bool(words) and isinstance(string_to_bool(words[0]), bool)
    except ArgumentTypeError:
        return False


def _copy(part: Field, default: Any, default_factory: Any) -> Any:
    given = {"default": default, "default_factory": default_factory}
    return field(metadata=part.metadata, **{name: value for name, value in given.items() if value is not MISSING})


def check(condition: bool, message: str) -> None:
    """Raise InputError with the message unless the condition holds."""
    if not condition:
        raise InputError(message)


def check_at_least(config: Any, **least: float) -> None:
    """Raise InputError if a field of the config is below its least value."""
    for name, value in least.items():
        found = getattr(config, name)
        check(found >= value, f"{name} must be at least {value}, not {found}")


def check_choices(name: str, given: Iterable[str], choices: Iterable[str]) -> None:
    """Raise InputError if one of the given values is none of the choices. name: that of one choice."""
    choices = list(choices)
    for one in given:
        check(one in choices, f"unknown {name} {one!r}: choose from {', '.join(filter(None, choices))}")
