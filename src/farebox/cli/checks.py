"""What `farebox doctor` looks at, one function a check. Each finding says what to do."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path

import aiohttp

from farebox.books import book_place, open_audit, require_schema
from farebox.bootstrap.bitcoin import examine_bitcoin
from farebox.bootstrap.cards import connector_of, hears, providers
from farebox.bootstrap.channels import credit_of, house_did
from farebox.bootstrap.lightning import config_of, node_of
from farebox.clock import NS_PER_S, SystemClock
from farebox.errors import InvalidSettings, RailError, RailRejected, StoreError
from farebox.ledger.standing import BOOK, KEY, BookState, Standing
from farebox.operating.findings import Finding, Verdict, disk_space, existing, fine, free_bytes
from farebox.payments.cards.connector import Connector
from farebox.pricing.model import Component, Currency, Rule
from farebox.pricing.parse import parse_rules
from farebox.pricing.tokens import local_tokenizer
from farebox.rails.cashu import HttpMint, MintLimits, open_session
from farebox.rails.lightning import fault_of, open_node_session
from farebox.settings import (
    ChannelChain,
    EvmSettings,
    LightningSettings,
    MintPolicy,
    MintSettings,
    Settings,
    read_root_key,
)
from farebox.signer import Signer

_SKEW_MAX_S = 30
_LIMITS = MintLimits(connect_s=5, call_s=10)
_TOKENS = {
    Component.INPUT_TOKEN,
    Component.OUTPUT_TOKEN,
    Component.CACHED_TOKEN,
    Component.REASONING_TOKEN,
}


async def examine(found: Settings, *, is_served: bool, say: Callable[[str], None]) -> list[Finding]:
    """Every check, one after the other; `say` hears whom it waits for."""
    rules = parse_rules(found.prices)
    findings = [
        *settings(found, rules),
        data_directory(found.data_dir),
        root_key(found, os.environ),
        disk_space(free_bytes(found.data_dir)),
        durable_writes(found.data_dir),
        await asyncio.to_thread(tokenizer, rules),  # it may load data for a second
        book(found, is_served=is_served),
    ]
    async with open_session() as session:
        for known in found.mints:
            say(f"asking {known.url} …")
            findings += await mint(session, known)
        if found.lightning.url is not None:
            say(f"asking {found.lightning.url} …")
            findings += await lightning(found.lightning)
        if found.bitcoin.url is not None:
            say(f"asking {found.bitcoin.url} …")
            findings += await bitcoin(found)
        for chain in found.evm:
            say(f"asking the node of {chain.name} …")
            findings += await evm(chain)
        if found.channels.chain is ChannelChain.EVM:
            findings.append(await channel_contract(found))
        for name in providers(found):
            say(f"asking {name} …")
            findings += await cards(name, found, session)
        for service in found.upstreams:
            for url in service.urls:
                say(f"asking {url} …")
                findings.append(await upstream(session, url, service.connect_timeout_s))
    return findings


# ── here ─────────────────────────────────────────────────────────────────────────────────────────


def settings(found: Settings, rules: Sequence[Rule]) -> list[Finding]:
    """Whether there is something to sell, a price for it, and money to take."""
    trusted = [mint for mint in found.mints if mint.policy is MintPolicy.TRUSTED]
    rails = (found.lightning.url, found.bitcoin.url, *providers(found))
    ways = len(trusted) + sum(one is not None for one in rails) + len(found.evm)
    wants = (
        ("upstream", len(found.upstreams), "name the service with --upstream or [[upstream]]"),
        (
            "way to be paid",
            ways,
            "name a mint you trust with --mint or [[mint]], or fill in the table of a rail",
        ),
        ("price", len(rules), "name a price with --price or [[price]]: what has none is refused"),
    )
    findings = [
        fine(f"settings: {name}", f"{count}")
        if count
        else Finding(Verdict.FAILURE, f"settings: {name}", "none", advice)
        for name, count, advice in wants
    ]
    in_dollars = any(Currency.USD in rule.currencies for rule in rules)
    if in_dollars and not (found.rates.btc_usd or found.rates.sources):
        advice = "set rates.sources or rates.btc_usd: without a rate those requests are refused"
        findings.append(Finding(Verdict.FAILURE, "settings: rates", "prices in USD", advice))
    if found.traces.endpoint is not None and find_spec("opentelemetry") is None:
        advice = "`pip install 'farebox[otel]'`, or leave traces.endpoint out"
        findings.append(Finding(Verdict.FAILURE, "settings: traces", "no library", advice))
    findings.append(channels(found))
    return findings


def channels(found: Settings) -> Finding:
    """How channels pay, and whether what is asked of them can be."""
    told = found.channels
    if told.chain is ChannelChain.NONE:
        return fine("channels", "none pays")
    try:
        credit = credit_of(told)
    except InvalidSettings as error:
        return Finding(Verdict.FAILURE, "channels", str(error), "correct it in [channels]")
    exposure = f"at most {credit.exposure_max // 1000} sat of one payer unclaimed"
    to = house_did(told) if told.chain is ChannelChain.LEDGER else f"our address on {told.evm}"
    return fine("channels", f"on the {told.chain.value}, to {to}, {exposure}")


async def channel_contract(found: Settings) -> Finding:
    """Whether the contract that backs channels is on its chain, and is the one it should be."""
    check = "channels: contract"
    try:
        from farebox.bootstrap.evm_channels import examine_contract
    except ImportError:
        advice = "`pip install 'farebox[evm]'`, or another channels.chain"
        return Finding(Verdict.FAILURE, check, "the libraries of EVM are not installed", advice)
    try:
        return fine(check, await examine_contract(found))
    except InvalidSettings as error:
        return Finding(Verdict.FAILURE, check, str(error), "correct it in [channels]")
    except RailRejected as error:
        advice = "the first `farebox serve` puts it there; it needs coin for gas"
        return Finding(Verdict.WARNING, check, str(error), advice)
    except RailError as error:
        advice = "check the chain's address; channels are refused until it answers"
        return Finding(Verdict.FAILURE, check, str(error), advice)


def data_directory(path: Path) -> Finding:
    """Whether the books are where only we can read them."""
    check = "data directory"
    if not path.is_dir():
        advice = f"`farebox serve --data {path}` makes it at its first start"
        return Finding(Verdict.WARNING, check, f"{path} is not there yet", advice)
    facts = path.stat()
    if facts.st_uid != os.geteuid() or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        advice = f"run farebox as the owner of {path}, or chown it"
        return Finding(Verdict.FAILURE, check, f"{path} is not ours to write", advice)
    if stat.S_IMODE(facts.st_mode) & 0o077:
        found = f"{path} has permissions {stat.S_IMODE(facts.st_mode):04o}"
        return Finding(Verdict.WARNING, check, found, f"chmod 700 {path}")
    return fine(check, str(path))


def root_key(found: Settings, environ: Mapping[str, str]) -> Finding:
    """Whether the key to everything sealed is there and private."""
    check = "root key"
    try:
        Signer(read_root_key(found.data_dir, environ))
    except InvalidSettings as error:
        if needs_root_key(found, environ):
            return Finding(Verdict.WARNING, check, "none yet", "the first `farebox serve` makes it")
        return Finding(Verdict.FAILURE, check, str(error.found), error.allowed)
    return fine(check, "there, and private")


def needs_root_key(found: Settings, environ: Mapping[str, str]) -> bool:
    """Whether this is a first start: no book, and no key for one.

    A book whose key is gone must not get a new one: nothing it has sealed would ever open again.
    """
    told = {"FAREBOX_ROOT_KEY", "FAREBOX_ROOT_KEY_FILE"} & set(environ)
    path = found.database_path
    # A book in PostgreSQL may be there already, with a key that another machine has.
    there = path is None or path.exists() or (found.data_dir / "root.key").exists()
    return not told and not there


def durable_writes(path: Path) -> Finding:
    """Whether a write can be made durable: each payment waits for one fsync."""
    check = "durable writes"
    loop_time = asyncio.get_running_loop().time
    try:
        with tempfile.TemporaryFile(dir=existing(path)) as file:
            file.write(b"farebox" * 512)
            file.flush()
            began_s = loop_time()
            os.fsync(file.fileno())
            took_ms = int((loop_time() - began_s) * 1000)
    except OSError as error:
        advice = "put the data directory on a local disk that we may write"
        return Finding(Verdict.FAILURE, check, f"fsync failed: {error.strerror}", advice)
    return fine(check, f"fsync took {took_ms} ms")


def tokenizer(rules: Sequence[Rule]) -> Finding:
    """Whether tokens can be counted where an upstream reports none."""
    by_token = any(component in _TOKENS for rule in rules for component, _ in rule.prices)
    if not local_tokenizer().is_estimate:
        return fine("tokenizer", "installed")
    if not by_token:
        return fine("tokenizer", "none, and no price needs one")
    advice = "for upstreams that report no usage: pip install 'farebox[tokenizer]', load its data"
    return Finding(Verdict.WARNING, "tokenizer", "none: tokens are estimated", advice)


def book(found: Settings, *, is_served: bool) -> Finding:
    """Whether the book is there and may be served, and whether a server has it open."""
    path = found.database_path
    if is_served:
        return fine("book", f"{book_place(found)}, open in a running server")
    if path is not None and not path.exists():
        return fine("book", f"{path} is made at the first start")
    try:
        require_schema(found)
        with open_audit(found) as reader:
            row = reader.value(BOOK, KEY)
    except InvalidSettings as error:
        return Finding(Verdict.FAILURE, "book", str(error.found), error.allowed)
    except StoreError as error:
        if path is not None:
            advice = "do what it says; else keep the file as it is, and see docs/operating.md"
            return Finding(Verdict.FAILURE, "book", str(error), advice)
        advice = "check FAREBOX_DATABASE; the book is made at the first start"
        return Finding(Verdict.WARNING, "book", str(error), advice)
    state = row[0] if row else BookState()
    if state.standing is not Standing.OPEN:
        told = f"{book_place(found)} is {state.standing}: {state.reason}"
        advice = "see Restore and Move to PostgreSQL in docs/operating.md: `farebox reconcile`"
        return Finding(Verdict.FAILURE, "book", told, advice)
    return fine("book", f"{book_place(found)}, no server of this directory is running")


# ── the network ──────────────────────────────────────────────────────────────────────────────────


async def mint(session: aiohttp.ClientSession, known: MintSettings) -> list[Finding]:
    """Whether a mint answers, issues what we take, and agrees about the time."""
    check = f"mint {known.url}"
    try:
        keysets = await HttpMint(known.url, session, SystemClock(), limits=_LIMITS).keysets()
    except RailError as error:
        advice = "check the address and the network; its tokens are refused until it answers"
        return [Finding(Verdict.FAILURE, check, str(error), advice)]
    active = {keyset.unit for keyset in keysets if keyset.active}
    missing = [unit.value for unit in known.units if unit.value not in active]
    if missing:
        found = f"no active keyset in {', '.join(missing)}; it has {', '.join(sorted(active))}"
        return [Finding(Verdict.FAILURE, check, found, "take the unit out of mint.units")]
    found = f"answers, {len(keysets)} keysets, issues {', '.join(sorted(active))}"
    return [fine(check, found), await clock(session, known.url)]


async def lightning(found: LightningSettings) -> list[Finding]:
    """Whether the node answers, is on the network it should be, and can be paid and pay."""
    check = f"lightning {found.url}"
    async with open_node_session() as session:
        try:
            node, _ = node_of(found, session, SystemClock())
            info = await node.info()
        except InvalidSettings as error:
            return [Finding(Verdict.FAILURE, check, str(error), "correct it")]
        except RailError as error:
            advice = "check address, key and certificate; deposits are refused until it answers"
            return [Finding(Verdict.FAILURE, check, str(error), advice)]
    config = config_of(found)
    if fault := fault_of(info, config):
        advice = "correct lightning.network, or let the node catch up"
        return [Finding(Verdict.FAILURE, check, fault, advice)]
    findings = [fine(check, f"{found.node.value} {info.version}, on ln{info.network}…")]
    room = (
        ("receive", info.receive_msat, config.deposits.most, "deposits that large fail"),
        ("send", info.send_msat, config.payouts.most, "payments out that large fail"),
    )
    for what, has_msat, most_msat, harm in room:
        if has_msat is not None and has_msat < most_msat:
            told = f"its channels can {what} {has_msat // 1000} sat"
            advice = f"{harm}: get more capacity, or lower the most in [lightning]"
            findings.append(Finding(Verdict.WARNING, f"{check}: {what}", told, advice))
    return findings


async def bitcoin(found: Settings) -> list[Finding]:
    """Whether the chain's source answers, is on the right chain, and has caught up."""
    check = f"bitcoin {found.bitcoin.url}"
    try:
        fault, told = await examine_bitcoin(found)
    except InvalidSettings as error:
        return [Finding(Verdict.FAILURE, check, str(error), "correct it")]
    except RailError as error:
        advice = "check its address and login; nothing is seen or paid until it answers"
        return [Finding(Verdict.FAILURE, check, str(error), advice)]
    if fault:
        advice = "correct bitcoin.network, or let the node catch up"
        return [Finding(Verdict.FAILURE, check, fault, advice)]
    return [fine(check, told)]


async def evm(found: EvmSettings) -> list[Finding]:
    """Whether the chain's node answers, is on the right chain, knows the tokens, and has gas."""
    check = f"evm {found.name}"
    try:
        from farebox.bootstrap.evm import examine_chain
    except ImportError:
        advice = "`pip install 'farebox[evm]'`, or leave it out"
        return [Finding(Verdict.FAILURE, check, "its libraries are not installed", advice)]
    try:
        examined = await examine_chain(found)
    except InvalidSettings as error:
        return [Finding(Verdict.FAILURE, check, str(error), "correct it")]
    except RailError as error:
        advice = "check its address and key; deposits are refused until it answers"
        return [Finding(Verdict.FAILURE, check, str(error), advice)]
    if examined.fault:
        advice = "correct chain_id, or let the node catch up"
        return [Finding(Verdict.FAILURE, check, examined.fault, advice)]
    findings = [fine(check, examined.told)]
    for what, found_there, advice in examined.doubts:
        findings.append(Finding(Verdict.WARNING, f"{check}: {what}", found_there, advice))
    return findings


async def cards(provider: str, found: Settings, session: aiohttp.ClientSession) -> list[Finding]:
    """Whether a provider of card money lets us in, and can tell us at once what happened."""
    check = provider
    try:
        connector = connector_of(provider, found, session, SystemClock(), "https://example.com")
        fault = await connector.probe()
    except InvalidSettings as error:
        return [Finding(Verdict.FAILURE, check, str(error), "correct it")]
    except RailError as error:
        fault = str(error)
    if fault:
        advice = f"check [{provider}] and the network; its deposits are refused until it answers"
        return [Finding(Verdict.FAILURE, check, fault, advice)]
    converted = await _converted(provider, found, connector)
    return [fine(check, "lets us in"), webhook(provider, found), *converted]


async def _converted(provider: str, found: Settings, connector: Connector) -> list[Finding]:
    """Currencies that payers are charged in, and the provider's balance does not know."""
    try:
        told = await connector.balances()
    except RailError:
        return []  # it does not tell
    codes = [one.value for one in providers(found)[provider].currencies if one.value not in told]
    if not told or not codes:
        return []
    advice = "let it settle them, or take them out of currencies: it converts what is paid in them"
    words = f"its balance knows no {', '.join(codes)}"
    return [Finding(Verdict.WARNING, f"{provider}: currencies", words, advice)]


def webhook(provider: str, found: Settings) -> Finding:
    """Whether a provider can reach us to tell what happened."""
    check = f"{provider}: webhook"
    if not hears(providers(found)[provider]):
        advice = f"set it in [{provider}]: until then payments are noticed some seconds later"
        return Finding(Verdict.WARNING, check, "no secret to check webhooks by", advice)
    url = found.gateway.public_url
    if url is None:
        advice = "set gateway.public_url to where the provider reaches us"
        return Finding(Verdict.WARNING, check, "nobody knows where we are", advice)
    return fine(check, f"is {url}/v1/webhooks/{provider}")


async def clock(session: aiohttp.ClientSession, url: str) -> Finding:
    """Whether our clock and a mint's agree: quotes and keysets expire by it."""
    check = f"clock, by {url}"
    timeout = aiohttp.ClientTimeout(total=_LIMITS.call_s)
    try:
        async with session.get(f"{url}/v1/info", timeout=timeout) as answer:
            there_s = int(parsedate_to_datetime(answer.headers["Date"]).timestamp())
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
        return fine(check, "it tells no time")
    skew_s = SystemClock().now_ns() // NS_PER_S - there_s
    if abs(skew_s) > _SKEW_MAX_S:
        found = f"{abs(skew_s)} s {'ahead of' if skew_s > 0 else 'behind'} it"
        return Finding(Verdict.FAILURE, check, found, "set this machine's clock, best by NTP")
    return fine(check, f"within {abs(skew_s)} s")


async def upstream(session: aiohttp.ClientSession, url: str, connect_s: float) -> Finding:
    """Whether a service answers at all; with what is its own business."""
    check = f"upstream {url}"
    timeout = aiohttp.ClientTimeout(total=_LIMITS.call_s, sock_connect=connect_s)
    try:
        async with session.get(url, timeout=timeout, allow_redirects=False) as answer:
            return fine(check, f"answers ({answer.status})")
    except (aiohttp.ClientError, TimeoutError) as error:
        found = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        advice = "start it, or correct upstream.urls; until then callers get 502, charged nothing"
        return Finding(Verdict.FAILURE, check, found, advice)
