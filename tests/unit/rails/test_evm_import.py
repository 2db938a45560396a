"""What importing a rail must not do to the process it is in."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASK = """
import sys
import {first}
import farebox.rails.evm.keys
from farebox.pricing.request import read_request
nested = read_request("POST", "/v1/chat/completions", b"[" * 100_000)
print(sys.getrecursionlimit(), nested.problem)
"""


@pytest.mark.parametrize(("first", "limit"), [("farebox", 1_000), ("eth_account", 10_000)])
def test_nested_json_is_refused_and_no_crash_when_evm_chains_are_there(
    first: str, limit: int
) -> None:
    ask = [sys.executable, "-c", ASK.format(first=first)]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    assert (done.returncode, int(done.stdout.split()[0])) == (0, limit), done.stderr
    assert "not a JSON object" in done.stdout
