"""Where a payer wants his change."""

from __future__ import annotations

from farebox.identity import Keys, KeyState
from farebox.paywall import dialects
from farebox.paywall.model import Answer, ChangeWish


async def change_account(keys: Keys, wish: ChangeWish) -> str | Answer:
    """The account that a wish names, "" for none; or the 400 that it names nobody's."""
    if not wish.key_id:
        return ""
    key = await keys.by_id(wish.key_id)
    if key is None or key.state is not KeyState.ACTIVE:
        return dialects.refusal(
            "change_not_understood", "X-Farebox-Change names a key that opens nothing here.", {}
        )
    return key.account
