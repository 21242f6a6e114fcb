"""What a program can see and use, and what the sandbox says that it enforces."""

import os
import shutil
import subprocess

import pytest

from asarm.evals.code.sandbox.isolation import describe_isolation, isolation
from asarm.evals.code.sandbox.runner import Limits, Verdict, check
from support.sandbox import linux, needs


def test_environment_is_clean(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "swordfish")
    assert check("import os\nassert not any('swordfish' in v for v in os.environ.values()), os.environ").passed
    assert check("import os\nassert os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']").passed
    assert check("import os\nassert os.listdir() == []").passed


def test_the_machine_cannot_be_read():
    needs("secrets")
    program = (
        f"import os\nfor path in ('/proc/self', '/proc/{os.getpid()}/environ', '/etc/passwd', '/home', '/root/.ssh'):\n"
    )
    assert check(program + "    assert not os.path.exists(path), path") == Verdict(True, "passed")


def test_no_file_is_inherited(tmp_path):
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    secret = open(tmp_path / "secret", "w")  # noqa: SIM115
    os.set_inheritable(secret.fileno(), True)
    try:
        program = (
            "import os\nfor n in range(4, 64):\n    try: os.fstat(n)\n    except OSError: continue\n    assert False, n"
        )
        assert check(program) == Verdict(True, "passed")
    finally:
        os.close(reader)
        os.close(writer)
        secret.close()


def test_root_is_read_only():
    needs("files")
    program = """
import os
for folder, inner, _ in os.walk('/'):
    if folder == '/tmp' or folder.count('/') > 2:
        inner.clear()
        continue
    try: open(folder + '/new', 'w').close()
    except OSError: continue
    raise SystemExit(folder)
"""
    assert check(program, Limits(seconds=20)) == Verdict(True, "passed")


def test_no_privileges_can_be_gained():
    needs("no root")
    program = (
        "import os\nfor call in (lambda: os.setuid(0), lambda: os.chroot('.'), lambda: os.mknod('d', 0o60666, 0)):\n"
    )
    program += "    try: call()\n    except OSError: continue\n    raise SystemExit('root')"
    assert check(program) == Verdict(True, "passed")


@linux
def test_everything_is_enforced_where_the_kernel_allows_it():
    """So that the tests above are not skipped because the sandbox no longer does its work."""
    own = ["unshare", "--net", "--pid", "--mount", "--ipc", "--uts", "--fork"]
    command = own if os.geteuid() == 0 else [*own, "--user", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("this kernel, or this container, allows no namespaces")
    assert isolation() == dict.fromkeys(isolation(), True)


def test_isolation_is_described(monkeypatch):
    text = describe_isolation()
    assert "\n" not in text
    assert ("NOT ENFORCED" in text) == (not all(isolation().values()))
    monkeypatch.setattr("asarm.evals.code.sandbox.isolation.isolation", lambda: {"network": False, "files": True})
    assert describe_isolation().endswith("guards files; NOT ENFORCED by this machine: network")
