"""Exit code 0 if this Python has all packages of pyproject.toml, in versions it allows; 1 otherwise.

Arguments: optional dependencies (extras) that are wanted, too. Reads metadata only, so that it takes no time. Wants
nothing but the standard library and `packaging`, which comes with the packages looked for.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def wanted(extras: list[str]) -> list[str]:
    """The requirements in pyproject.toml: the lists `dependencies = [...]` and those of the extras."""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    found = []
    for name in ["dependencies", *extras]:  # tomllib would be better, and is not in Python 3.10
        found += re.findall(r'"([^"]+)"', re.search(rf"^{name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)[1])
    return found


def main() -> int:
    try:
        from packaging.requirements import Requirement

        requirements = map(Requirement, wanted(sys.argv[1:]))
        return 0 if all(r.specifier.contains(version(r.name), prereleases=True) for r in requirements) else 1
    except (ImportError, PackageNotFoundError):
        return 1


if __name__ == "__main__":
    sys.exit(main())
