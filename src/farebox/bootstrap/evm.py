"""EVM chains from the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import aiohttp

from farebox.bootstrap.rails import Ground
from farebox.clock import Clock, SystemClock
from farebox.errors import InvalidCredential, InvalidSettings, RailRejected, SignerError
from farebox.money import Asset, parse_decimal
from farebox.payments.rail import Limits
from farebox.rails.evm.addresses import Addresses, DepositTree
from farebox.rails.evm.arrivals import FINALIZED, Arrivals, Depth, WatchTerms
from farebox.rails.evm.authorizations import Authorizations, AuthorizedAsset
from farebox.rails.evm.claims import ClaimedAsset, Claims
from farebox.rails.evm.config import PRESETS, Domain, EvmAsset, EvmConfig, Preset
from farebox.rails.evm.contracts import DEPLOYER, answered, artifact, calldata
from farebox.rails.evm.disperse import Disperse
from farebox.rails.evm.fees import GWEI
from farebox.rails.evm.gas import Gas, L1Fee
from farebox.rails.evm.gathering import Gathering
from farebox.rails.evm.keys import Keys, deposit_key, keys_from
from farebox.rails.evm.links import read_address
from farebox.rails.evm.method import EvmMethod, Taking, fault_of
from farebox.rails.evm.outbox import Call
from farebox.rails.evm.payouts import Payouts, PayoutTerms
from farebox.rails.evm.reads import RpcChain
from farebox.rails.evm.rpc import Rpc, open_rpc_session
from farebox.rails.evm.scan import RpcScan, Scan
from farebox.rails.evm.sending import Sending, SendTerms
from farebox.rails.evm.sweeping import Sweeping, SweepTerms
from farebox.rails.evm.upkeep import Upkeep
from farebox.rails.web import Breaker
from farebox.settings import EvmAssetSettings, EvmChain, EvmSettings
from farebox.worker import Duty, Job

#: Bounds of how often a chain is looked at.
_POLL_LEAST_S, _POLL_MOST_S = 0.2, 6
#: What limits are where the operator says nothing: least, most, ceiling.
_USUAL = ("1", "10000", "100000")
_USUAL_OF = {"ETH": ("0.001", "5", "50"), "WETH": ("0.001", "5", "50")}


@dataclass(frozen=True, slots=True)
class EvmRail:
    """A chain at work: the method, and what else of it runs."""

    method: EvmMethod
    jobs: tuple[Job, ...]


async def open_chains(
    found: Sequence[EvmSettings], ground: Ground, closing: AsyncExitStack
) -> tuple[EvmRail, ...]:
    """Every chain of the settings; `closing` ends what they need. Raises InvalidSettings."""
    if not found:
        return ()
    session = await closing.enter_async_context(open_rpc_session())
    rails = []
    for one in found:
        rail, disperse = rail_of(one, session, ground)
        ground.operations.register(disperse.kind, disperse)
        rails.append(rail)
    return tuple(rails)


def rail_of(
    found: EvmSettings, session: aiohttp.ClientSession, ground: Ground
) -> tuple[EvmRail, Disperse]:
    """One chain, put together. Raises InvalidSettings."""
    ledger, exchange = ground.ledger, ground.exchange
    config, preset, keys = config_of(found), preset_of(found), keys_of(found)
    rpc = rpc_of(found, session, ledger.clock)
    send_terms = SendTerms(
        chain=found.name,
        chain_id=config.chain_id,
        native=preset.coin.code,
        fee_cap=found.fee_cap_gwei * GWEI,
        confirmations=found.send_confirmations,
    )
    sending = Sending(send_terms, RpcChain(rpc), keys, ledger)
    payouts = Payouts(_pay_terms(found, config, preset), sending, ledger, exchange)
    addresses = Addresses(found.name, tree_of(found), ledger, watch_days=found.watch_days)
    watch_terms = WatchTerms(
        chain=found.name,
        assets=tuple(one.taken for one in config.assets),
        settled_blocks=preset.settled_blocks,
        traces=found.traces,
    )
    scan = RpcScan(rpc)
    arrivals = Arrivals(watch_terms, scan, addresses, keys.addresses, ledger)
    disperse = Disperse(sending, ledger)
    sweep_terms = SweepTerms(
        assets={one.asset.code: one.token for one in config.assets},
        treasuries=_treasuries(found, keys, config.chain_id),
        gas_percent=found.sweep_gas_percent,
    )
    gas = Gas(sending, preset.l1)
    sweeping = Sweeping(sweep_terms, sending, gas, arrivals, ledger, exchange)
    gathering = Gathering(sending, gas, ledger)
    upkeep = Upkeep(sending, sweeping, gathering, disperse if found.batch_wait_s else None)
    duty = Duty(f"evm:{found.name}", upkeep.run, ledger, ground.processes)
    authorizing = partial(
        Authorizations,
        sending=sending,
        ledger=ledger,
        exchange=exchange,
        gas_percent=found.sweep_gas_percent,
    )
    method = EvmMethod(
        config,
        rpc,
        scan,
        arrivals,
        addresses,
        payouts,
        sweeping,
        takings_of(config, preset, scan, sending, authorizing),
        ledger,
    )
    return EvmRail(method, (Job(f"evm {found.name}", config.poll_s, duty.run),)), disperse


def _pay_terms(found: EvmSettings, config: EvmConfig, preset: Preset) -> PayoutTerms:
    return PayoutTerms(
        assets=tuple(paid for one in config.assets for paid in one.paid),
        allowed=frozenset(found.allowed),
        pays_contracts=found.pays_contracts,
        fee_margin_percent=found.fee_margin_percent,
        l1=preset.l1,
        batch_wait_s=found.batch_wait_s,
    )


def _treasuries(found: EvmSettings, keys: Keys, chain_id: int) -> tuple[str, ...]:
    if found.treasury is None:
        return keys.addresses
    try:
        return (read_address(found.treasury, chain_id),)
    except InvalidCredential as error:
        raise InvalidSettings(f"evm.{found.name}.treasury", found.treasury, str(error)) from None


def takings_of(
    config: EvmConfig,
    preset: Preset,
    scan: Scan,
    sending: Sending,
    authorizing: Callable[[Sequence[AuthorizedAsset]], Authorizations],
) -> dict[str, Taking]:
    """The credentials that pay by themselves, by their kind: never another name for one."""
    claimed = [
        ClaimedAsset(one.asset.code, one.token, one.deposits)
        for one in config.assets
        if not one.keeps_part
    ]
    authorized = [
        AuthorizedAsset(
            one.asset.code,
            one.token,
            one.domain.name,
            one.domain.version,
            one.deposits.least,
            one.deposits.most,
        )
        for one in config.assets
        if one.domain is not None and one.token and not one.keeps_part
    ]
    senders, depth = sending.keys.addresses, preset.settled_blocks
    return {
        "claim": Claims(config.name, config.chain_id, claimed, senders, scan, depth),
        "authorization": authorizing(authorized),
    }


def rpc_of(found: EvmSettings, session: aiohttp.ClientSession, clock: Clock) -> Rpc:
    """The way to the chain's node. Raises InvalidSettings."""
    url = found.url.reveal().strip()
    if not url.startswith(("http://", "https://")) or not url.isascii() or not url.isprintable():
        allowed = "an http:// or https:// URL"
        raise InvalidSettings(f"evm.{found.name}.url", "a text (hidden)", allowed)
    return Rpc(url, session, Breaker(clock, who=f"the node of {found.name}"))


def keys_of(found: EvmSettings) -> Keys:
    """What signs for the chain's senders and deposit addresses. Raises InvalidSettings."""
    try:
        return keys_from(found.key.reveal(), found.senders, _deposits(found))
    except SignerError as error:
        raise InvalidSettings(f"evm.{found.name}.key", "a text (hidden)", str(error)) from None


def tree_of(found: EvmSettings) -> DepositTree:
    """The deposit addresses' tree. Raises InvalidSettings."""
    return DepositTree(deposit_key(_deposits(found)))


def _deposits(found: EvmSettings) -> str:
    text = (found.deposit_key or found.key).reveal()
    try:
        deposit_key(text)
    except SignerError as error:
        name, allowed = f"evm.{found.name}.deposit_key", str(error)
        if found.deposit_key is None:
            allowed = "an extended key or a mnemonic, since `key` is no mnemonic"
        raise InvalidSettings(name, "a text (hidden)", allowed) from None
    return text


def preset_of(found: EvmSettings) -> Preset:
    """What is known of the chain. Raises InvalidSettings."""
    if found.chain is not EvmChain.CUSTOM:
        preset = PRESETS[found.chain.value]
        if found.chain_id not in (None, preset.chain_id):
            name = f"evm.{found.name}.chain_id"
            raise InvalidSettings(name, found.chain_id, f"{preset.chain_id}, or leave it out")
        return preset
    if found.chain_id is None:
        raise InvalidSettings(f"evm.{found.name}.chain_id", "nothing", "a custom chain's id")
    coin = Asset(found.coin, 18)
    return Preset(
        found.chain_id,
        coin,
        (),
        L1Fee.NONE,
        confirmations=12,
        block_s=found.block_s,
        settled_blocks=64,
    )


def config_of(found: EvmSettings) -> EvmConfig:
    """The operator's terms as the rail takes them. Raises InvalidSettings."""
    preset = preset_of(found)
    wanted = found.assets
    if not wanted:
        codes = [preset.coin.code, *(one.asset.code for one in preset.tokens)]
        wanted = tuple(EvmAssetSettings(asset=code) for code in codes)
    return EvmConfig(
        name=found.name,
        chain_id=preset.chain_id,
        assets=tuple(_asset(found.name, one, preset) for one in wanted),
        expiry_s=found.deposit_expiry_s,
        poll_s=min(max(preset.block_s, _POLL_LEAST_S), _POLL_MOST_S),
        expected_s=round(preset.block_s * (preset.confirmations + 1)),
    )


def _asset(chain: str, told: EvmAssetSettings, preset: Preset) -> EvmAsset:
    where = f"evm.{chain}.asset.{told.asset}"
    known = preset.token(told.asset)
    domain = Domain(told.domain, told.domain_version) if told.domain else None
    if told.asset == preset.coin.code:
        asset, contract = preset.coin, ""
    elif known is not None:
        asset, contract = known.asset, told.contract or known.contract
        domain = domain or known.domain
    elif told.contract is None:
        raise InvalidSettings(f"{where}.contract", "nothing", "its contract, for it is not known")
    else:
        asset, contract = Asset(told.asset, told.scale), told.contract
    if contract:
        try:
            contract = read_address(contract, preset.chain_id)
        except InvalidCredential as error:
            raise InvalidSettings(f"{where}.contract", contract, str(error)) from None
    least, most, ceiling = _USUAL_OF.get(told.asset, _USUAL)

    def units(text: str | None, usual: str) -> int:
        return parse_decimal(text or usual, asset.scale)

    deposits = Limits(units(told.deposit_min, least), units(told.deposit_max, most))
    payouts = Limits(units(told.payout_min, least), units(told.payout_max, most))
    for what, limits in (("deposit", deposits), ("payout", payouts)):
        if limits.least > limits.most:
            raise InvalidSettings(f"{where}.{what}_min", limits.least, f"at most {what}_max")
    return EvmAsset(
        asset=asset,
        token=contract,
        deposits=deposits,
        payouts=None if told.keeps_part else payouts,
        depths=_depths(where, told.confirmations, asset, preset.confirmations),
        ceiling=units(told.ceiling, ceiling),
        keeps_part=told.keeps_part,
        domain=domain,
    )


def _depths(where: str, told: Sequence[str], asset: Asset, usual: int) -> tuple[Depth, ...]:
    if not told:
        return (Depth(0, usual),)
    found = []
    for text in told:
        blocks, _, amount = text.partition(" from ")
        needs = FINALIZED if blocks == "finalized" else int(blocks)
        found.append(Depth(parse_decimal(amount, asset.scale), needs))
    if min(one.least for one in found) > 0:
        raise InvalidSettings(f"{where}.confirmations", told[0], 'one that says "… from 0"')
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Examined:
    """A chain as `farebox doctor` found it: a fault or none, what it told, and doubts about it:
    what, what was found, what to do."""

    fault: str
    told: str
    doubts: tuple[tuple[str, str, str], ...]


async def examine_chain(found: EvmSettings) -> Examined:
    """Ask the chain's node. Raises InvalidSettings, RailError."""
    config, keys, clock = config_of(found), keys_of(found), SystemClock()
    tree_of(found)
    async with open_rpc_session() as session:
        rpc = rpc_of(found, session, clock)
        scan, chain = RpcScan(rpc), RpcChain(rpc)
        fault = await fault_of(config, rpc, scan, clock)
        if fault:
            return Examined(fault, "", ())
        doubts = []
        for one in config.assets:
            if one.token and not await chain.code(one.token):
                advice = "correct its contract: what is paid to it is lost"
                doubts.append((one.asset.code, "there is no contract at its address", advice))
            elif one.token and (decimals := await _decimals(chain, one.token)) != one.asset.scale:
                told = f"its contract says {decimals} decimals, not {one.asset.scale}"
                doubts.append((one.asset.code, told, "correct its scale before anything arrives"))
        poor = [one for one in keys.addresses if not await chain.balance(one)]
        doubts += [("gas", f"{one} has no coin", "send it some, to pay for gas") for one in poor]
        if not keys.can_sweep:
            advice = "sweep them where the private key is"
            doubts.append(("sweeping", "only the public key of the deposits is here", advice))
        if found.batch_wait_s and not await _can_batch(chain):
            told = f"the chain lacks {DEPLOYER}, which would put our contract there"
            doubts.append(("batches", told, "set batch_wait_s to 0: payments leave alone"))
        head = await chain.height()
        if found.traces and not await _traces(scan, head):
            advice = "name a node that has trace_block, or leave traces out: nothing is seen so"
            doubts.append(("traces", "the node does not tell what contracts pass on", advice))
    codes = ", ".join(one.asset.code for one in config.assets)
    return Examined("", f"chain {config.chain_id}, block {head}, takes {codes}", tuple(doubts))


async def _traces(scan: RpcScan, height: int) -> bool:
    try:
        await scan.inner(height, ())
    except RailRejected:
        return False
    return True


async def _can_batch(chain: RpcChain) -> bool:
    """Whether the contract for it is on the chain, or what would put it there."""
    return bool(await chain.code(artifact("Disperse").address) or await chain.code(DEPLOYER))


async def _decimals(chain: RpcChain, token: str) -> int | None:
    try:
        told = await chain.run(token, Call(token, 0, calldata("decimals()")))
        return answered(("uint256",), told)[0]
    except (RailRejected, ValueError):
        return None
