"""Nutshell's wallet `cashu` as processes that start at once; run by Nutshell's own Python.

It takes a second to import what it needs from others. So that is imported once, and for each order
on standard input a process is forked that imports the wallet itself and runs it to its end. An
answer is a line with its exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

_WALLET = "cashu.wallet.cli.cli"


def _forget_cashu() -> None:
    """It reads the environment when it is imported, and each process has its own."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "cashu"]:
        del sys.modules[name]


def _become(order: dict[str, Any]) -> None:
    """Run the wallet as its script does."""
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for number, name in enumerate((os.devnull, order["out"], order["error"])):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
        os.dup2(os.open(name, flags, 0o600), number)
    sys.argv = ["cashu", *order["arguments"]]
    sys.exit(importlib.import_module(_WALLET).cli())


def _main() -> None:
    importlib.import_module(_WALLET)
    _forget_cashu()
    while line := sys.stdin.buffer.readline():
        pid = os.fork()
        if not pid:
            _become(json.loads(line))
        status = os.waitpid(pid, 0)[1]
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    _main()
