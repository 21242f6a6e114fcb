"""What an installed copy has: the data of the package, and the command `asarm`."""

import fnmatch
import re
from importlib.metadata import entry_points

from asarm.__main__ import main
from support.paths import REPO, SOURCE


def test_all_data_of_the_package_is_installed():
    project = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(r'"([^"]+)"', re.search(r"^asarm = \[(.*?)\]$", project, re.MULTILINE)[1])
    files = [path for path in SOURCE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    names = [path.relative_to(SOURCE).as_posix() for path in files]
    assert {"py.typed", "bundled/tiny-text/model.safetensors", "eval_datasets/stories.csv"} <= set(names)
    for name in names:
        matching = [pattern for pattern in patterns if pattern.count("/") == name.count("/")]
        assert any(fnmatch.fnmatch(name, pattern) for pattern in matching), name


def test_the_command_is_installed():
    found = [entry for entry in entry_points(group="console_scripts") if entry.name == "asarm"]
    for entry in found:  # none where the package is only on the path
        assert entry.load() is main
