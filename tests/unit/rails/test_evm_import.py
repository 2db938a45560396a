"""What importing a rail must not do to the process it is in."""

from __future__ import annotations

import subprocess
import sys

ASK = """
import sys
before = sys.getrecursionlimit()
import farebox.rails.evm.keys
from farebox.pricing.request import read_request
print(sys.getrecursionlimit() == before, read_request("POST", "/v1/chat/completions", b"[" * 100_000).problem)
"""  # noqa: E501


def test_nested_json_is_refused_and_no_crash_when_evm_chains_are_there() -> None:
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "True"), done.stderr
