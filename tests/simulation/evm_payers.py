"""Callers who pay with a token or with coin on the model of an EVM chain: to an address of their
own, to one that many pay to, or by a transfer that they sign and the house sends."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any, Final

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from farebox.rails.evm.accounts import Account, LocalAccount, encode_defunct
from farebox.rails.evm.claims import sentence
from tests.signed_transfers import credential_of
from tests.simulation.callers import Act, bearer, post, read_json
from tests.simulation.depositors import Asked
from tests.simulation.evm import ModelEvm, Tx
from tests.simulation.evm_contracts import CHAIN_ID, DOMAIN, TOKEN, Move
from tests.simulation.network import Ask, Reply
from tests.simulation.payers import ChainPayer

#: A smallest unit of the token is an msat, by the settings' rates, and so much coin is one.
WEI_PER_MSAT: Final = 500_000_000
_LEAST_MSAT: Final = 2_000_000
_TOKENS: Final = 10**18
_SIGNED_MOST: Final = 12
_CLAIM_AGAIN_S: Final = 20
_CLAIMS_MAX: Final = 60


class EvmPayer(ChainPayer):
    """One of them. `sent_to` are the addresses of this one that the house was told to pay."""

    way = "evm"
    amounts_msat = (None, 5_000_000, 20_000_000, 60_000_000)
    filling_msat = 60_000_000
    small_msat = 2_000_000
    pause_s = 15
    chain: ModelEvm
    #: The house's senders, which anybody may pay.
    senders: tuple[str, ...]

    def meet(self, market: dict[str, str], fills: float) -> None:
        """Say who else is there, and how often to pay in before one is paid out."""
        super().meet(market, fills)
        self.sent_to: list[str] = []
        #: What one has paid to an address that many pay to, and all that one has signed.
        self.shared: list[Tx] = []
        self.signed: list[str] = []
        self._payments: list[Tx] = []
        self._account: LocalAccount = Account.from_key(keccak(text=self.name))
        self._wallet = self._account.address
        self.chain.endow(self._wallet, token=_TOKENS)

    def enrol(self, senders: tuple[str, ...], others: list[EvmPayer], signs: float) -> None:
        """Say whom one may pay, who else pays there, and how often to do so by signature."""
        self.senders, self._others_here, self._signs = senders, others, signs

    def _acts(self) -> tuple[Act, ...]:
        acts = super()._acts()
        often = (self._pay_shared, self._claim_shared, self._authorize, self._authorize_again)
        return acts + often * round(len(acts) * self._signs / len(often))

    def _order(self, amount_msat: int | None) -> dict[str, Any]:
        asset = self._chance.choice(("USDC", "USDC", "ETH"))
        amount = None if amount_msat is None else str(amount_msat * units_per_msat(asset))
        return {"method": self.way, "asset": asset, "amount": amount}

    def _own(self) -> str:
        self.sent_to.append(_address(f"{self.name}:{len(self.sent_to)}"))
        if self._chance.random() < 0.5:  # an account that is no empty one
            self.chain.endow(self.sent_to[-1], coin=1)
        return self.sent_to[-1]

    def _outs(self) -> list[dict[str, Any]]:
        coin, token = (
            {"method": self.way, "destination": self._own(), "asset": one}
            for one in ("ETH", "USDC")
        )
        return [{"method": "cashu"}, coin, token]

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def _pay(self, asked: Asked) -> None:
        chance = self._chance
        amount_msat = asked.amount_msat or chance.randint(5, 70) * 1_000_000
        parts = chance.choice(((1, 1), (1, 1), (2, 3), (1, 2)))
        amount = amount_msat * parts[0] // parts[1] * units_per_msat(asked.asset)
        if asked.asset == "ETH":
            self._sent(self.chain.pay(self._wallet, asked.text, amount))
        elif chance.random() < 0.3:  # twice in one transaction, and somebody else
            whom = (asked.text, amount), (self._wallet, 5), (asked.text, _LEAST_MSAT)
            self._sent(self._pays(*whom))
        else:
            self._sent(self._pays((asked.text, amount)))
        asked.paid_msat += amount_msat

    def _pays(self, *whom: tuple[str, int]) -> Tx:
        moves = (Move(self._wallet, to, amount) for to, amount in whom)
        return self.chain.pay(self._wallet, TOKEN, 0, *moves)

    def _sent(self, tx: Tx) -> None:
        self._trace(f"{self.name} sends {tx.hash[:10]}: {tx.value} wei, {tx.deed}")
        self._payments.append(tx)

    async def _take_back(self) -> None:
        """Spend the nonce of a payment that waits on nothing."""
        pool = self.chain.pool
        waiting = [tx for tx in self._payments if pool.get((tx.sender, tx.nonce)) == tx]
        if waiting:
            tx = self._chance.choice(waiting)
            self._trace(f"{self.name} takes {tx.hash[:10]} back: {self.chain.take_back(tx)}")

    def _arrived_msat(self, asked: Asked) -> int:
        found = self.chain.received(asked.text)
        return found["token"] + found["coin"] // WEI_PER_MSAT

    def _is_waiting(self, asked: Asked) -> bool:
        """Or has not been swept yet: until then it cannot be paid out."""
        is_there = self.chain.tip.state.token[asked.text] > 0
        return is_there or self.chain.waits_for(asked.text)

    # ── in, by signature ─────────────────────────────────────────────────────────────────────────

    async def _pay_shared(self) -> None:
        """Pay to an address that many pay to; now and then two do in one transaction."""
        chance, to = self._chance, self._chance.choice(self.senders)
        if len(self.shared) >= _SIGNED_MOST:
            return await self._claim_shared()
        amount = chance.randint(2, 30) * 1_000_000
        other = chance.choice(self._others_here)
        if chance.random() < 0.3:
            tx = self.chain.pay(self._wallet, to, amount * WEI_PER_MSAT)
        elif other is not self and chance.random() < 0.5:
            moves = Move(self._wallet, to, amount), Move(other._wallet, to, amount + 1)
            tx = self.chain.pay(self._wallet, TOKEN, 0, *moves)
            other.shared.append(tx)
        else:
            tx = self._pays((to, amount))
        self.shared.append(tx)
        self._sent(tx)
        return None

    def _claim_of(self, tx: Tx) -> str:
        message = encode_defunct(text=sentence(CHAIN_ID, tx.hash))
        signature = self._account.sign_message(message).signature.hex()
        return f"eip191:{CHAIN_ID}:{tx.hash}:0x{signature.removeprefix('0x')}"

    async def _claim_shared(self) -> None:
        """Claim what one has paid, on two accounts at once perhaps; or what another has."""
        chance = self._chance
        theirs = [tx for other in self._others_here for tx in other.shared]
        if theirs and self.keys and chance.random() < 0.3:
            return await self._claim_theirs(chance.choice(theirs))
        if not self.shared:
            return await self._pay_shared()
        await self._hand_in(self._claim_of(chance.choice(self.shared)))
        return None

    async def _claim_theirs(self, tx: Tx) -> None:
        if tx in self.shared:
            return
        key = self._chance.choice(self.keys)
        reply = await self._ask(post("/topup", {"cashu_token": self._claim_of(tx)}, bearer(key)))
        if reply.status < 300:
            raise AssertionError(f"{self.name} was paid by another's payment {tx.hash}")

    async def _authorize(self) -> None:
        """Sign a transfer to the house, and hand it in."""
        if len(self.signed) >= _SIGNED_MOST:
            return await self._authorize_again()
        chance = self._chance
        now_s = self.chain.tip.time_s
        message = {
            "from": self._wallet,
            "to": chance.choice(self.senders),
            "value": chance.randint(2, 30) * 1_000_000,
            "validAfter": 0,
            "validBefore": now_s + chance.choice((200, 900, 90_000)),
            "nonce": f"0x{secrets.token_hex(32)}",
        }
        text = credential_of(self._account, DOMAIN, message)
        self._trace(f"{self.name} signs a transfer of {message['value']}: {message['nonce'][:10]}")
        self.signed.append(text)
        await self._hand_in(text)
        return None

    async def _authorize_again(self) -> None:
        """Hand in once more what was handed in, written otherwise perhaps."""
        if not self.signed:
            return await self._authorize()
        text = self._chance.choice(self.signed)
        if self._chance.random() < 0.5:
            document = json.loads(base64.b64decode(text))
            text = base64.b64encode(json.dumps(document, indent=1).encode()).decode()
        await self._hand_in(text)
        return None

    async def _hand_in(self, text: str) -> None:
        """On an account, or to open one, or both at once."""
        chance = self._chance
        opens = [post("/create", {"initial_balance_token": text})]
        opens += [
            post("/topup", {"cashu_token": text}, bearer(key), self._name())
            for key in self.keys[-2:]
        ]
        if chance.random() < 0.3:
            both = [self._handed(one) for one in chance.sample(opens, min(2, len(opens)))]
            for end in await asyncio.gather(*both, return_exceptions=True):
                if isinstance(end, BaseException):
                    raise end
        else:
            await self._handed(chance.choice(opens))

    async def _handed(self, ask: Ask) -> Reply:
        if ask.target == "/topup":
            return await self._named(ask)
        reply = await self._patiently(ask)
        if reply.status < 300 and (key := read_json(reply)["api_key"]) not in self.keys:
            self.keys.append(key)
        return reply

    def _is_passing(self, reply: Reply) -> bool:
        """A key is one's own at once, with the money still on its way to it."""
        has_key = reply.is_whole and reply.status == 202 and b'"api_key"' in reply.body
        return not has_key and super()._is_passing(reply)

    async def collect(self) -> None:
        """Claim what was paid, as soon as nothing vanishes from so deep."""
        self._is_calm = True
        for text in self.signed:  # what opened an account that one was not told of
            await self._handed(post("/create", {"initial_balance_token": text}))
        for tx in self.shared:
            await self._until_claimed(tx)
        await super().collect()

    async def _until_claimed(self, tx: Tx) -> None:
        ask = post("/create", {"initial_balance_token": self._claim_of(tx)})
        for _ in range(_CLAIMS_MAX):
            if not self.chain.is_there(tx.hash):
                return
            reply = await self._handed(ask)
            code = "" if reply.status < 300 else read_json(reply)["code"]
            if code in ("", "already_credited"):
                return
            await asyncio.sleep(_CLAIM_AGAIN_S)
        raise AssertionError(f"{self.name} cannot claim {tx.hash}: {reply}")

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    async def _send(self) -> None:
        if not self.keys:
            return await self._create()
        key = self._chance.choice(self.keys)
        if self._chance.random() < self._fills:
            await self._fill(key)
        target = self._chance.choice(("/v1/refunds", "/v1/payouts"))
        body = self._chance.choice(self._outs()[1:])
        body["amount_msat"] = self._chance.randint(2_000, 20_000) * 1_000
        if self._chance.random() < 0.1 and self.market:  # the house asked to pay itself
            body["destination"] = self._chance.choice(list(self.market)).removeprefix("evm:")
        if self._chance.random() < 0.1:
            body["dry_run"] = True
        await self._named(post(target, body, bearer(key), self._name()))
        return None


def units_per_msat(asset: str) -> int:
    """How much of an asset an msat is."""
    return WEI_PER_MSAT if asset == "ETH" else 1


def _address(name: str) -> str:
    return to_checksum_address(keccak(text=name)[12:])
