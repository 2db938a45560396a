"""A chain that is watched for deposits, and the frame that credits them; no server around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from eth_account.hdaccount.mnemonic import Mnemonic

from farebox.money import Asset
from farebox.payments import Refusal
from farebox.payments.deposits import DepositRequest, Deposits
from farebox.payments.exchange import Exchange
from farebox.payments.rail import Limits
from farebox.payments.registry import PaymentMethods
from farebox.payments.requests import DepositRequests
from farebox.rails.evm.addresses import Addresses, DepositTree
from farebox.rails.evm.arrivals import Arrivals, Depth, WatchTerms
from farebox.rails.evm.config import EvmAsset, EvmConfig
from farebox.rails.evm.gas import Gas, L1Fee
from farebox.rails.evm.gathering import Gathering
from farebox.rails.evm.keys import deposit_key
from farebox.rails.evm.method import EvmMethod
from farebox.rails.evm.outbox import custody_of
from farebox.rails.evm.payouts import Payouts, PayoutTerms
from farebox.rails.evm.records import Address
from farebox.rails.evm.scan import RpcScan
from farebox.rails.evm.sweeping import Sweeping, SweepTerms
from farebox.rails.evm.upkeep import Upkeep
from tests.integration.evm_desk import CONFIRMATIONS, ETHER, Desk, desk_of
from tests.peers.anvil import CHAIN_ID, CONTRACTS, Anvil, Contract

ACCOUNT = "customer:one"
DEPTHS = (Depth(0, CONFIRMATIONS), Depth(1_000_000, 6))
SETTLED_BLOCKS = 12


class OneForOne:
    """A unit of every asset is worth a wei."""

    def msat_per_unit(self, asset: str) -> Fraction | None:
        return Fraction(1)


@dataclass
class Counter:
    """Asks for deposits and credits them."""

    desk: Desk
    tokens: Mapping[str, Contract]
    method: EvmMethod
    arrivals: Arrivals
    requests: DepositRequests
    upkeep: Upkeep
    mnemonic: str

    @property
    def token(self) -> Contract:
        return self.tokens["TOK"]

    async def asked(self, asset: str = "TOK", amount: int | None = None) -> DepositRequest:
        made = await self.requests.ask("anvil", asset, amount, ACCOUNT, opens_account=False)
        assert not isinstance(made, Refusal), made
        return made.request

    async def pay(self, request: DepositRequest, amount: int, asset: str = "") -> str:
        """Pay an address and wait for the block; the transaction."""
        anvil, token = self.desk.anvil, self.tokens.get(asset or request.asset)
        if token is None:
            sent = await asyncio.to_thread(anvil.send, request.reference, amount)
        else:
            await asyncio.to_thread(token.send, "mint", anvil.accounts[0], 2 * amount)
            sent = await asyncio.to_thread(token.send, "transfer", request.reference, amount)
        await asyncio.to_thread(anvil.mined, sent)
        return sent

    async def look(self) -> None:
        """One look by the watch: until it has seen every block, and told all."""
        while not await self.arrivals.advance():
            pass
        for sighting in await self.arrivals.to_be_told():
            await self.requests.seen("anvil", sighting)

    async def credited(self, asset: str = "TOK") -> int:
        account = await self.desk.ledger.store.account(f"{ACCOUNT}/{asset}")
        return account.available if account else 0

    async def owed(self, asset: str = "TOK") -> int:
        account = await self.desk.ledger.store.account(f"receivable:{ACCOUNT}/{asset}")
        return account.held if account else 0

    async def states(self, request: DepositRequest) -> list[str]:
        """How everything stands that has arrived for a request."""
        rows = await self.requests.by_id(request.id)
        assert rows is not None
        standing = await self.requests.standing(rows)
        return sorted(one.state.value for one in standing.deposits)

    async def assert_right(self) -> None:
        """Books and chain agree: our addresses have custody and the operator's float."""
        for _ in range(10):
            await self.desk.sending.tick()
            if not await self.desk.sending.open_slots():
                break
            await self.desk.mine()
        ours = [self.desk.sender, *(one.address for one in self.addresses.values())]
        for asset, token in self.tokens.items():
            held = sum(int(token.call("balanceOf", one)) for one in ours)
            assert held == await self._held(asset), asset
        wei = sum(self.desk.anvil.balance(one) for one in ours)
        assert wei == await self._held("ETH") + 100 * ETHER - await self.desk.gas_booked()

    @property
    def addresses(self) -> Mapping[str, Address]:
        """All that were watched so far."""
        return self.arrivals.addresses.known

    async def _held(self, asset: str) -> int:
        account = await self.desk.ledger.store.account(custody_of("anvil", asset))
        return account.held if account else 0

    def again(self) -> Counter:
        """After a restart: nothing in memory."""
        self.desk.keys._learned.clear()
        return _counter(self.desk, self.tokens, self.mnemonic)


def _counter(desk: Desk, tokens: Mapping[str, Contract], mnemonic: str) -> Counter:
    limits, ledger = Limits(1, 10**20), desk.ledger
    contracts = {"ETH": ""} | {code: token.address for code, token in tokens.items()}
    assets = [
        EvmAsset(
            asset=Asset(code, 6 if contract else 18),
            token=contract,
            deposits=limits,
            payouts=limits,
            depths=DEPTHS,
            keeps_part=code == "FEE",
        )
        for code, contract in contracts.items()
    ]
    config = EvmConfig(name="anvil", chain_id=CHAIN_ID, assets=tuple(assets), stale_after_s=60)
    addresses = Addresses("anvil", DepositTree(deposit_key(mnemonic)), ledger)
    terms = WatchTerms(
        chain="anvil",
        assets=tuple(one.taken for one in assets),
        settled_blocks=SETTLED_BLOCKS,
        traces=True,
    )
    scan = RpcScan(desk.rpc)
    arrivals = Arrivals(terms, scan, addresses, desk.keys.addresses, ledger)
    exchange = Exchange(OneForOne(), held=frozenset(one.asset.code for one in assets))
    payouts = Payouts(
        PayoutTerms(assets=tuple(paid for one in assets for paid in one.paid)),
        desk.sending,
        ledger,
        exchange,
    )
    sweep_terms = SweepTerms(assets=contracts, treasuries=(desk.sender,), gas_percent=100)
    gas = Gas(desk.sending, L1Fee.NONE)
    sweeping = Sweeping(sweep_terms, desk.sending, gas, arrivals, ledger, exchange)
    method = EvmMethod(config, desk.rpc, scan, arrivals, addresses, payouts, sweeping, {}, ledger)
    methods = PaymentMethods()
    methods.register(method)
    requests = DepositRequests(ledger, Deposits(ledger), methods, exchange)
    gathering = Gathering(desk.sending, gas, ledger)
    upkeep = Upkeep(desk.sending, sweeping, gathering, None)
    return Counter(desk, tokens, method, arrivals, requests, upkeep, mnemonic)


@asynccontextmanager
async def counter_of(
    anvil: Anvil, folder: Path, *, sweeps: bool = True, **tokens: str
) -> AsyncIterator[Counter]:
    """A counter for ether and tokens: their codes and contracts; a plain TOK always."""
    wanted = {"TOK": "PlainToken", **tokens}
    mnemonic = Mnemonic().generate(12)
    async with desk_of(anvil, folder, deposits=mnemonic if sweeps else "") as desk:
        made = {
            code: await asyncio.to_thread(anvil.deploy, CONTRACTS / f"{name}.sol")
            for code, name in wanted.items()
        }
        counter = _counter(desk, made, mnemonic)
        await counter.method.start()
        yield counter
        await desk.audited()
