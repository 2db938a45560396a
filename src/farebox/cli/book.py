"""How a command reaches the book: through the running server, or by opening it itself."""

from __future__ import annotations

import asyncio
import os

from farebox.bootstrap import Farebox
from farebox.cli.desk import Facts, Request, carry_out
from farebox.cli.door import ask_server
from farebox.errors import InvalidInput
from farebox.settings import Settings, read_root_key


def ask(settings: Settings, request: Request) -> Facts:
    """What came of a request. Raises FareboxError with a sentence for the operator."""
    return asyncio.run(_ask(settings, request))


async def _ask(settings: Settings, request: Request) -> Facts:
    answer = await ask_server(settings.data_dir, request)
    if answer is not None:
        return answer
    if not settings.database_path.exists():
        raise InvalidInput(
            f"there is no book at {settings.database_path}: name its directory with --data, or "
            "start one with `farebox serve`"
        )
    async with Farebox(settings, read_root_key(settings.data_dir, os.environ)) as house:
        return await carry_out(house, request)
