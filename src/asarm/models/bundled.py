"""Models that ship inside the package, usable by their names."""

from pathlib import Path

from asarm.errors import InputError

FOLDER = Path(__file__).parent.parent / "bundled"
PREFIX = "tiny-"


def bundled_names() -> list[str]:
    """Names of the models in this installation, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def bundled_model_path(name: str) -> Path:
    """The folder of a bundled model. InputError, with the names there are, when there is none of that name."""
    if name not in bundled_names():
        raise InputError(f"no bundled model {name!r}: there is {', '.join(bundled_names()) or 'none here'}")
    return FOLDER / name


def resolve_model(name: str | Path) -> str:
    """The folder of a bundled model for its name; any other name (a folder, a Hub repository) as it is.

    A bare name that begins as the bundled ones do, and is no folder, must be one of them.
    """
    name = str(name)
    bare = "/" not in name and not Path(name).exists()
    is_bundled = bare and (name.startswith(PREFIX) or name in bundled_names())
    return str(bundled_model_path(name)) if is_bundled else name
