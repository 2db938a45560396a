"""Payments out leave together: one transaction, one operation, as many receivers as wait.

    unsigned ──► sent ──► paid ──► old          sent ──► dead: its payments wait anew
    (an operator signs)  (deep enough)          (another transaction has its inputs for good)

| change            | postings                                                                     |
|-------------------|------------------------------------------------------------------------------|
| a payout is asked | Hold account → custody, amount and most fee (the core's)                     |
| its batch is made | none; the inputs are reserved, one row each, which only one batch can have   |
| the batch is paid | none; its fee, never above its payouts' limits together, is parted to them   |
| then each payout  | Post amount and its share of the fee, at most its own limit                  |

| boundary               | what can fail                | recovery                                 |
|------------------------|------------------------------|------------------------------------------|
| signed → stored        | we stop                      | nothing left; the payouts still wait     |
| stored → broadcast     | we stop, the answer is lost  | broadcast again: the same bytes          |
| in the pool            | dropped, or too low a fee    | broadcast again; replaced, dearer        |
| in a block             | the block leaves the chain   | broadcast again, until deep enough       |
| deep enough → closed   | we stop                      | looked at again, closed once             |
| any of its tries wins  | an earlier one does          | all are looked for; its fee is booked    |
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import structlog

from farebox.clock import NS_PER_S
from farebox.errors import InvalidCredential, RailError, RailRejected
from farebox.ids import derived_id, new_id
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Event,
    Put,
    Unit,
)
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger
from farebox.payments.model import (
    Changes,
    Operation,
    Rejected,
    Succeeded,
    Unresolved,
    Verdict,
)
from farebox.payments.operations import Operations
from farebox.rails.bitcoin.addresses import Addresses
from farebox.rails.bitcoin.chain import Block, View
from farebox.rails.bitcoin.config import BitcoinConfig
from farebox.rails.bitcoin.records import (
    BATCH,
    INPUT,
    PAYOUT,
    Batch,
    BatchState,
    BatchTry,
    Payout,
    PayoutState,
    ReservedInput,
)
from farebox.rails.bitcoin.wallet import Draft, NotEnough, Wallet

_log = structlog.get_logger("farebox.bitcoin")

KIND = "bitcoin_batch"
#: What may still be signed, and be carried out.
_LIVING = (BatchState.UNSIGNED, BatchState.SENT)
_SAFE_DEPTH = 100
_WAITING_MAX = 1_000
#: A replacement pays at least a quarter more, and the pool's own least step (BIP-125, rule 4).
_STEP_PER_KVB = 1_000
_LEAST_PER_KVB = 1_000


class Batches:
    """Makes batches of waiting payouts and carries each to its end."""

    def __init__(
        self,
        config: BitcoinConfig,
        wallet: Wallet,
        addresses: Addresses,
        ledger: Ledger,
        operations: Operations,
    ) -> None:
        self._config = config
        self._wallet = wallet
        self._addresses = addresses
        self._ledger = ledger
        self._operations = operations
        self._forming = asyncio.Lock()
        self.rate = config.fee_rate_default
        operations.register(KIND, self)

    async def learn_rate(self) -> int:
        """Satoshi per 1,000 virtual bytes as of now. Raises RailUnavailable."""
        told = await self._wallet.fee_rate(self._config.fee_blocks)
        self.rate = max(_LEAST_PER_KVB, told or self._config.fee_rate_default)
        return self.rate

    # ── making ───────────────────────────────────────────────────────────────────────────────────

    async def form(self) -> str:
        """A batch of what waits, if it is time; "" or why not. Raises RailUnavailable."""
        async with self._forming:
            waiting = await self._waiting()
            if not waiting:
                return ""
            oldest = min(row.value.asked_at for _, row in waiting)
            waited_ns = self._ledger.clock.now_ns() - oldest
            is_due = waited_ns >= self._config.batch_window_s * NS_PER_S
            if not is_due and len(waiting) < self._config.batch_most:
                return "it waits for others, to leave together"
            rate = await self.learn_rate()
            if rate > self._config.fee_rate_max:
                return "the chain's fees are above the operator's limit; it waits"
            return await self._form(waiting[: self._config.batch_most], rate)

    async def _form(self, waiting: Sequence[tuple[str, Row[Payout]]], rate: int) -> str:
        view = await self._addresses.look()
        spendable = await self._spendable(view)
        reason = ""
        while waiting:
            try:
                outputs = [(row.value.address, row.value.amount_sat) for _, row in waiting]
                draft = await self._wallet.build(outputs, rate, spendable)
            except NotEnough:
                reason = "the wallet holds too little that is confirmed; it waits"
                free = frozenset(spendable)
                total_sat = sum(one.amount_sat for one in view.coins if one.outpoint in free)
                waiting = fewer(waiting, total_sat)
                continue
            limits = [row.value.fee_max_sat for _, row in waiting]
            if draft.fee_sat > sum(limits):
                reason = "the chain's fees are above what was allowed for it; it waits"
                waiting = [
                    one
                    for one, limit in zip(waiting, limits, strict=True)
                    if limit * len(limits) >= draft.fee_sat
                ]
                continue
            operation_id = await self._store(waiting, draft, rate, view)
            if operation_id:
                await self._operations.advance(operation_id, fresh=True)
            return ""
        return reason

    async def estimate_sat(self, address: str, amount_sat: int, rate: int) -> int | None:
        """What a payment would take if it left alone, by the coins as last seen; None: too few."""
        view = self._wallet.view
        if view is None:
            return None
        try:
            spendable = await self._spendable(view)
            return (await self._wallet.build([(address, amount_sat)], rate, spendable)).fee_sat
        except NotEnough:
            return None

    async def _store(
        self, waiting: Sequence[tuple[str, Row[Payout]]], draft: Draft, rate: int, view: View
    ) -> str:
        operation_id = new_id("batch")
        attempt = BatchTry(draft.txid, draft.raw, draft.fee_sat, rate, view.tip.height)
        batch = Batch(
            wallet=self._config.name,
            payouts=tuple(key for key, _ in waiting),
            inputs=draft.inputs,
            state=BatchState.SENT if draft.raw else BatchState.UNSIGNED,
            tries=(attempt,),
            psbt=draft.psbt,
        )
        puts = [Put(BATCH, operation_id, batch, ABSENT)]
        for key, row in waiting:
            batched = msgspec.structs.replace(
                row.value, state=PayoutState.BATCHED, batch=operation_id
            )
            puts.append(Put(PAYOUT, key, batched, row.version))
        puts += await self._reserved(draft.inputs, operation_id)
        operation = Operation(
            id=operation_id, kind=KIND, account=self._config.custody, hold="", plan=b""
        )
        outcome = await self._operations.open(operation, Changes(puts=tuple(puts)))
        return operation_id if isinstance(outcome, Applied) else ""

    async def _reserved(self, inputs: Sequence[str], batch: str) -> list[Put]:
        puts = []
        for outpoint in inputs:
            row = await self._ledger.store.get(INPUT, outpoint)
            version = ABSENT if row is None or row.value.batch else row.version
            puts.append(Put(INPUT, outpoint, ReservedInput(batch), version))
        return puts

    async def _waiting(self) -> list[tuple[str, Row[Payout]]]:
        found = await self._ledger.store.find(
            PAYOUT, {"state": PayoutState.WAITING}, limit=_WAITING_MAX
        )
        return sorted(found, key=lambda one: (one[1].value.asked_at, one[0]))

    async def _spendable(self, view: View) -> list[str]:
        """Coins that are deep enough to be ours for good, and no other batch's.

        What others paid in is as deep as a payment must be: it must not vanish under one. What our
        own transactions left over comes again with them, and is spent after a block.
        """
        ours = {view.spends[one.outpoint] for one in view.coins if one.outpoint in view.spends}
        found = []
        for coin in view.coins:
            config, is_ours = self._config, coin.outpoint.partition(":")[0] in ours
            theirs = max(config.confirmations(coin.amount_sat), config.payout_confirmations)
            if coin.is_spent or view.confirmations(coin.block) < (1 if is_ours else theirs):
                continue
            row = await self._ledger.store.get(INPUT, coin.outpoint)
            if row is None or not row.value.batch:
                found.append(coin.outpoint)
        return found

    # ── carrying out ─────────────────────────────────────────────────────────────────────────────

    async def attempt(self, operation: Operation, *, asked_before: bool) -> Verdict:
        """Broadcast it, or see what became of it. The bytes are the same each time."""
        row = await self._ledger.store.get(BATCH, operation.id)
        assert row is not None, "it was stored with its operation"
        view = await self._addresses.look()
        won, block = winner(row.value, view)
        if won is not None and view.confirmations(block) >= self._config.payout_confirmations:
            return await self._paid(row, operation.id, won)
        if await self._is_dead(row.value, view):
            return await self._dead(row, operation.id)
        if won is not None and block is not None:
            return Unresolved(f"{won.txid} has {view.confirmations(block)} confirmations")
        if self._is_stuck(row.value, view):
            row = await self._bumped(row, operation.id, view)
        await self._send(row.value)
        if row.value.psbt:
            return Unresolved("it waits for your signature: `farebox psbt list`")
        return Unresolved(f"{row.value.tries[-1].txid} is on its way")

    async def _send(self, batch: Batch) -> None:
        """The last try that is signed. A refusal is no end: an earlier one may have won.

        Raises RailUnavailable.
        """
        signed = [one for one in batch.tries if one.raw][-1:]
        # A child stands beside an earlier try, which the last could not replace.
        for one in signed if batch.child is None else (*batch.tries, batch.child):
            try:
                await self._wallet.broadcast(one.raw)
            except RailRejected as error:
                _log.warning("bitcoin.not_broadcast", txid=one.txid, reason=str(error))

    async def _paid(self, row: Row[Batch], key: str, won: BatchTry) -> Succeeded:
        payouts = await self._payouts(row.value)
        fees = shares(row.value.cost_sat(won), [one.value.fee_max_sat for _, one in payouts])
        paid = msgspec.structs.replace(row.value, state=BatchState.PAID)
        puts = [Put(BATCH, key, paid, row.version)]
        for (payout_id, one), share_sat in zip(payouts, fees, strict=True):
            done = msgspec.structs.replace(
                one.value, state=PayoutState.PAID, txid=won.txid, fee_sat=share_sat
            )
            puts.append(Put(PAYOUT, payout_id, done, one.version))
        return Succeeded(0, won.txid.encode(), Changes(puts=tuple(puts)))

    async def _is_dead(self, batch: Batch, view: View) -> bool:
        ours = {one.txid for one in batch.tries}
        for outpoint in batch.inputs:
            spender = view.spends.get(outpoint)
            if spender is None or spender in ours:
                continue
            if view.confirmations(view.txs[spender]) >= self._config.payout_confirmations:
                return True
        return False

    async def _dead(self, row: Row[Batch], key: str) -> Rejected:
        puts = [
            Put(BATCH, key, msgspec.structs.replace(row.value, state=BatchState.DEAD), row.version)
        ]
        for payout_id, one in await self._payouts(row.value):
            again = msgspec.structs.replace(one.value, state=PayoutState.WAITING, batch="")
            puts.append(Put(PAYOUT, payout_id, again, one.version))
        for outpoint in (*row.value.inputs, *row.value.added):
            held = await self._ledger.store.get(INPUT, outpoint)
            if held is not None and held.value.batch == key:
                puts.append(Put(INPUT, outpoint, ReservedInput(""), held.version))
        reason = "another transaction has spent its inputs; its payments leave anew"
        return Rejected("inputs_spent", reason, Changes(puts=tuple(puts)))

    async def _payouts(self, batch: Batch) -> list[tuple[str, Row[Payout]]]:
        rows = [(key, await self._ledger.store.get(PAYOUT, key)) for key in batch.payouts]
        return [(key, row) for key, row in rows if row is not None]

    # ── bumping ──────────────────────────────────────────────────────────────────────────────────

    def _is_stuck(self, batch: Batch, view: View) -> bool:
        if batch.psbt or batch.child is not None:
            return False
        return view.tip.height >= batch.tries[-1].height + self._config.bump_after_blocks

    async def _bumped(self, row: Row[Batch], key: str, view: View) -> Row[Batch]:
        """Worth more to a miner, and stored before it is sent; the row as it was if that cannot be.

        Raises RailUnavailable.
        """
        last, (kept, _) = row.value.tries[-1], winner(row.value, view)
        # A pool that keeps an earlier try has refused the last: others have spent its outputs.
        pinned = kept if kept is not last and last.raw else None
        base = (pinned or last).rate
        rate = max(await self.learn_rate(), base * 5 // 4, base + _STEP_PER_KVB)
        if rate > self._config.fee_rate_max:
            return row
        try:
            if pinned is not None:
                fresh, taken = await self._with_child(row.value, pinned, view, rate)
            else:
                fresh, taken = await self._replaced(row.value, view, rate)
        except NotEnough:
            return row
        room_sat = sum(one.value.fee_max_sat for _, one in await self._payouts(row.value))
        if max(map(fresh.cost_sat, fresh.tries)) > room_sat:
            return row
        puts = (Put(BATCH, key, fresh, row.version), *await self._reserved(taken, key))
        await self._ledger.store.commit(Unit(derived_id("bump", key, str(row.version)), puts=puts))
        stored = await self._ledger.store.get(BATCH, key)
        assert stored is not None, "batches are never removed"
        return stored

    async def _replaced(self, batch: Batch, view: View, rate: int) -> tuple[Batch, list[str]]:
        """The same payments in a dearer form (BIP-125). Raises NotEnough."""
        now_s = self._ledger.clock.now_ns() // NS_PER_S
        draft = await self._wallet.bump(batch.tries[-1].raw, rate, now_s)
        known = {*batch.inputs, *batch.added}
        added = [one for one in draft.inputs if one not in known]
        if not set(added).issubset(await self._spendable(view)):
            raise NotEnough
        attempt = BatchTry(draft.txid, draft.raw, draft.fee_sat, rate, view.tip.height)
        tries, added_all = (*batch.tries, attempt), (*batch.added, *added)
        fresh = msgspec.structs.replace(batch, tries=tries, added=added_all, psbt=draft.psbt)
        return fresh, added

    async def _with_child(
        self, batch: Batch, kept: BatchTry, view: View, rate: int
    ) -> tuple[Batch, list[str]]:
        """A transaction that spends the change of `kept` and pays for both. Raises NotEnough."""
        change = [
            one.outpoint
            for one in view.coins
            if one.is_change and not one.is_spent and one.outpoint.startswith(f"{kept.txid}:")
        ]
        if not change or not self._wallet.keys.can_sign:
            raise NotEnough
        draft = await self._wallet.child(kept.raw, kept.fee_sat, change[0], rate)
        child = BatchTry(draft.txid, draft.raw, draft.fee_sat, rate, view.tip.height)
        added = (*batch.added, change[0])
        fresh = msgspec.structs.replace(batch, child=child, child_of=kept.txid, added=added)
        return fresh, [change[0]]

    # ── looking after ────────────────────────────────────────────────────────────────────────────

    async def tend(self, view: View) -> None:
        """One round: new batches, news of old ones, and again what a reorganisation took back."""
        for state in _LIVING:
            for key, row in await self._ledger.store.find(BATCH, {"state": state}):
                await self._tend_sent(key, row.value, view)
        for key, row in await self._ledger.store.find(BATCH, {"state": BatchState.PAID}):
            await self._tend_paid(key, row, view)
        with suppress(RailError):
            await self.form()

    async def _tend_sent(self, key: str, batch: Batch, view: View) -> None:
        won, block = winner(batch, view)
        depth = view.confirmations(block)
        is_over = depth >= self._config.payout_confirmations or await self._is_dead(batch, view)
        if is_over or (not depth and self._is_stuck(batch, view)):
            done = await self._operations.advance(key)
            if is_over and done.state.value in ("succeeded", "rejected"):
                for payout_id in batch.payouts:
                    await self._operations.advance(payout_id)
        elif won is None:
            with suppress(RailError):
                await self._send(batch)

    async def _tend_paid(self, key: str, row: Row[Batch], view: View) -> None:
        won, block = winner(row.value, view)
        if await self._is_dead(row.value, view):
            # Deeper than the operator's own word for "over": a person must look.
            _log.error("bitcoin.payments_undone", operation=key, payouts=row.value.payouts)
            await self._ends(row, key, BatchState.DEAD)
        elif won is None or block is None:
            with suppress(RailError):
                await self._send(row.value)
        elif view.confirmations(block) >= _SAFE_DEPTH:
            await self._ends(row, key, BatchState.OLD)

    async def _ends(self, row: Row[Batch], key: str, state: BatchState) -> None:
        put = Put(BATCH, key, msgspec.structs.replace(row.value, state=state), row.version)
        facts = {"operation": key, "payouts": ",".join(row.value.payouts)}
        undone = (Event("payments.undone", self._config.custody, facts),)
        events = undone if state is BatchState.DEAD else ()
        unit = Unit(derived_id("batch-ends", key), puts=(put,), events=events)
        await self._ledger.store.commit(unit)

    # ── signed elsewhere ─────────────────────────────────────────────────────────────────────────

    async def unsigned(self) -> dict[str, Batch]:
        """The batches that wait for a signature, also of a dearer form of what was sent."""
        found = dict[str, Batch]()
        for state in _LIVING:
            rows = await self._ledger.store.find(BATCH, {"state": state})
            found |= {key: row.value for key, row in rows if row.value.psbt}
        return found

    async def pays_sat(self, batch: Batch) -> int:
        """What its receivers get together."""
        return sum(row.value.amount_sat for _, row in await self._payouts(batch))

    async def sign(self, key: str, psbt: str) -> Operation:
        """Take a batch's PSBT back, signed, and send it. Raises InvalidCredential."""
        row = await self._ledger.store.get(BATCH, key)
        if row is None or not row.value.psbt or row.value.state not in _LIVING:
            raise InvalidCredential("no payment of this name waits for a signature")
        txid, raw = await self._wallet.combined(row.value.psbt, psbt)
        attempt = msgspec.structs.replace(row.value.tries[-1], txid=txid, raw=raw)
        signed = msgspec.structs.replace(
            row.value, state=BatchState.SENT, tries=(*row.value.tries[:-1], attempt), psbt=""
        )
        unit = Unit(
            derived_id("signed", key, str(row.version)),
            puts=(Put(BATCH, key, signed, row.version),),
        )
        if not isinstance(await self._ledger.store.commit(unit), Applied):
            raise InvalidCredential("it has changed meanwhile: look at it again")
        await self._operations.reopen(key)
        return await self._operations.advance(key)


def fewer(
    waiting: Sequence[tuple[str, Row[Payout]]], total_sat: int
) -> Sequence[tuple[str, Row[Payout]]]:
    """Fewer payments, where all of these were too many: one that is too large holds up no other.

    Those that the coins suffice for, the oldest first; without the largest where it was the fee
    that they did not suffice for.
    """
    fitting = []
    for one in waiting:
        if one[1].value.amount_sat <= total_sat:
            total_sat -= one[1].value.amount_sat
            fitting.append(one)
    if len(fitting) == len(waiting):
        fitting.remove(max(fitting, key=lambda one: one[1].value.amount_sat))
    return fitting


def shares(fee_sat: int, limits: Sequence[int]) -> list[int]:
    """Who bears how much of a fee: all alike, nobody more than his limit; all of it together.

    The limits suffice for the fee.
    """
    found, left = [0] * len(limits), fee_sat
    by_limit = sorted(range(len(limits)), key=lambda place: limits[place])
    for number, place in enumerate(by_limit):  # what the tight ones cannot bear the others do
        found[place] = min(-(-left // (len(limits) - number)), limits[place])
        left -= found[place]
    assert left == 0, "no try costs more than the limits together"
    return found


def winner(batch: Batch, view: View) -> tuple[BatchTry | None, Block | None]:
    """The try that the chain or the pool knows, a confirmed one before all others."""
    known = [one for one in batch.tries if one.txid in view.txs]
    for one in known:
        if view.txs[one.txid] is not None:
            return one, view.txs[one.txid]
    return (known[-1], None) if known else (None, None)
