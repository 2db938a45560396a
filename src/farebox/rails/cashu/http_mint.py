"""The wallet's port to a mint, over HTTP."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar
from urllib.parse import quote as percent_encoded

import aiohttp
from yarl import URL

from farebox.clock import NS_PER_S, Clock
from farebox.ecash.codes import NutError
from farebox.ecash.mint import MeltQuote, MintInfo, MintQuote, ProofState
from farebox.errors import InvalidCredential, RailRejected, RailUnavailable
from farebox.rails.cashu.shapes import (
    InfoJson,
    KeysetsJson,
    MeltQuoteJson,
    MintQuoteJson,
    RestoreJson,
    SignaturesJson,
    StatesJson,
    info_from,
    melt_quote_from,
    mint_quote_from,
    signatures_from,
)
from farebox.rails.cashu.transport import MintLimits, exchange, open_session
from farebox.rails.web.breaker import Breaker
from farebox.tally import Calls
from farebox.wire.cashu.documents import (
    KeysetJson,
    keyset_from,
    output_document,
    proof_document,
    signature_from,
)
from farebox.wire.cashu.keysets import has_honest_id
from farebox.wire.cashu.model import BlindedMessage, BlindSignature, Keyset, Proof

__all__ = ["HttpMint", "MintLimits", "open_session"]

KEYSETS_AGE_MAX_S = 300
#: Bad tokens must not make us ask for the list again and again.
KEYSETS_AGE_MIN_S = 1
_KEYS_KEPT_MAX = 256
#: Refusals after which the list of keysets may be out of date. Mints in use answer 11000, which
#: means nothing in particular, for outputs of a keyset they have put out of use.
_KEYSET_REFUSALS = frozenset(
    {
        None,
        11000,
        12000,
        NutError.KEYSET_UNKNOWN,
        NutError.KEYSET_INACTIVE,
        NutError.KEYSET_EXPIRED,
    }
)
_Shape = TypeVar("_Shape")
_Value = TypeVar("_Value")


class HttpMint:
    """One mint at `url`, over a session that all mints share; implements `farebox.ecash.mint.Mint`.

    Keysets are remembered for some minutes, or until the mint refuses one; keys for good, once
    they were found to make up their keyset's id.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        clock: Clock,
        *,
        limits: MintLimits | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self.url = url
        self.breaker = breaker or Breaker(clock)
        self.calls = Calls()
        self._session = session
        self._clock = clock
        self._limits = limits or MintLimits()
        self._keysets: dict[str, Keyset] = {}
        self._keysets_at_ns: int | None = None
        self._keysets_doubted = False
        self._keys: OrderedDict[str, Mapping[int, bytes]] = OrderedDict()
        self._refreshing = asyncio.Lock()

    async def info(self) -> MintInfo:
        """NUT-06."""
        return await self._get("/v1/info", InfoJson, info_from)

    async def keysets(self) -> tuple[Keyset, ...]:
        """NUT-02; from memory while that is fresh."""
        return tuple((await self._known_keysets()).values())

    @property
    def doubts_keysets(self) -> bool:
        """Whether the mint has contradicted its list since it was read; it is read again soon."""
        return self._keysets_doubted

    async def keys(self, keyset_id: str) -> Keyset:
        """NUT-01; from memory once known. Its fee and state are the list's."""
        known = await self._known_keysets()
        if keyset_id not in known:
            self._keysets_doubted = True
            known = await self._known_keysets()
        if keyset_id not in known:
            raise RailRejected("the mint has no such keyset", code=int(NutError.KEYSET_UNKNOWN))
        if keyset_id not in self._keys:
            self._remember_keys(await self._fetch_keys(known[keyset_id]))
        self._keys.move_to_end(keyset_id)
        return replace(known[keyset_id], keys=self._keys[keyset_id])

    async def swap(
        self, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
    ) -> tuple[BlindSignature, ...]:
        """NUT-03."""
        body = {"inputs": _inputs(inputs), "outputs": _outputs(outputs)}
        return await self._post(
            "/v1/swap", body, SignaturesJson, lambda shape: _bounded(shape, len(outputs))
        )

    async def check_state(self, ys: Sequence[bytes]) -> tuple[ProofState, ...]:
        """NUT-07."""
        body = {"Ys": [y.hex() for y in ys]}
        return await self._post(
            "/v1/checkstate", body, StatesJson, lambda shape: _states(shape, ys)
        )

    async def restore(self, outputs: Sequence[BlindedMessage]) -> Mapping[bytes, BlindSignature]:
        """NUT-09."""
        body = {"outputs": _outputs(outputs)}
        return await self._post(
            "/v1/restore", body, RestoreJson, lambda shape: _restored(shape, outputs)
        )

    async def mint_quote(
        self, amount: int, unit: str, public_key: bytes | None = None
    ) -> MintQuote:
        """NUT-04, 20 and 23. A mint without NUT-20 answers with a quote that has no key."""
        body: dict[str, object] = {"amount": amount, "unit": unit}
        if public_key is not None:
            body["pubkey"] = public_key.hex()
        return await self._post("/v1/mint/quote/bolt11", body, MintQuoteJson, mint_quote_from)

    async def mint_quote_state(self, quote: str) -> MintQuote:
        """NUT-04."""
        path = f"/v1/mint/quote/bolt11/{_in_path(quote)}"
        return await self._get(path, MintQuoteJson, mint_quote_from)

    async def mint_tokens(
        self, quote: str, outputs: Sequence[BlindedMessage], signature: str | None
    ) -> tuple[BlindSignature, ...]:
        """NUT-04 and 20."""
        body: dict[str, object] = {"quote": quote, "outputs": _outputs(outputs)}
        if signature is not None:
            body["signature"] = signature
        return await self._post(
            "/v1/mint/bolt11", body, SignaturesJson, lambda shape: _bounded(shape, len(outputs))
        )

    async def melt_quote(self, request: str, unit: str) -> MeltQuote:
        """NUT-05 and 23."""
        body = {"request": request, "unit": unit}
        return await self._post("/v1/melt/quote/bolt11", body, MeltQuoteJson, melt_quote_from)

    async def melt_quote_state(self, quote: str) -> MeltQuote:
        """NUT-05."""
        path = f"/v1/melt/quote/bolt11/{_in_path(quote)}"
        return await self._get(path, MeltQuoteJson, melt_quote_from)

    async def melt(
        self, quote: str, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
    ) -> MeltQuote:
        """NUT-05 and 08."""
        body: dict[str, object] = {"quote": quote, "inputs": _inputs(inputs)}
        if outputs:
            body["outputs"] = _outputs(outputs)
        path, total_s = "/v1/melt/bolt11", self._limits.melt_s
        return await self._post(path, body, MeltQuoteJson, melt_quote_from, total_s)

    async def _known_keysets(self) -> dict[str, Keyset]:
        async with self._refreshing:
            age_max_s = KEYSETS_AGE_MIN_S if self._keysets_doubted else KEYSETS_AGE_MAX_S
            if not self._are_younger_than(age_max_s):
                self._keysets = await self._get("/v1/keysets", KeysetsJson, _keysets_from)
                self._keysets_at_ns, self._keysets_doubted = self._clock.now_ns(), False
            return self._keysets

    def _are_younger_than(self, age_s: int) -> bool:
        if self._keysets_at_ns is None:
            return False
        return 0 <= self._clock.now_ns() - self._keysets_at_ns < age_s * NS_PER_S

    async def _fetch_keys(self, listed: Keyset) -> Keyset:
        def read(shape: KeysetsJson) -> Keyset:
            for document in shape.keysets:
                if document.id.lower() == listed.id:
                    # Older mints tell fee and expiry in their list only.
                    return replace(listed, keys=keyset_from(document).keys)
            raise InvalidCredential("the mint answered with the keys of another keyset")

        keyset = await self._get(f"/v1/keys/{listed.id}", KeysetsJson, read)
        if not has_honest_id(keyset):
            raise RailUnavailable("the mint's keys do not make up their keyset's id")
        return keyset

    def _remember_keys(self, keyset: Keyset) -> None:
        self._keys[keyset.id] = keyset.keys
        if len(self._keys) > _KEYS_KEPT_MAX:
            self._keys.popitem(last=False)

    async def _get(
        self, path: str, shape: type[_Shape], read: Callable[[_Shape], _Value]
    ) -> _Value:
        return await self._call("GET", path, None, shape, read, self._limits.call_s)

    async def _post(
        self,
        path: str,
        body: object,
        shape: type[_Shape],
        read: Callable[[_Shape], _Value],
        total_s: float | None = None,
    ) -> _Value:
        try:
            return await self._call("POST", path, body, shape, read, total_s or self._limits.call_s)
        except RailRejected as error:
            if error.code in _KEYSET_REFUSALS:
                self._keysets_doubted = True
            raise

    async def _call(
        self,
        method: str,
        path: str,
        body: object,
        shape: type[_Shape],
        read: Callable[[_Shape], _Value],
        total_s: float,
    ) -> _Value:
        url = URL(self.url + path, encoded=True)
        kind = path.split("/", 3)[2]  # "/v1/swap": ours, not the mint's
        with self.breaker.attempt(), self.calls.timed(kind):
            answer = await exchange(
                self._session, method, url, body, shape, limits=self._limits, total_s=total_s
            )
            try:
                return read(answer)
            except InvalidCredential as error:
                raise RailUnavailable(f"the mint's answer cannot be read: {error}") from None


def _inputs(proofs: Sequence[Proof]) -> list[dict[str, object]]:
    return [proof_document(proof, with_dleq=False) for proof in proofs]


def _outputs(outputs: Sequence[BlindedMessage]) -> list[dict[str, object]]:
    return [output_document(output) for output in outputs]


def _in_path(quote: str) -> str:
    # The id is the mint's; it must not lead to another path.
    return percent_encoded(quote, safe="")


def _bounded(shape: SignaturesJson, signatures_max: int) -> tuple[BlindSignature, ...]:
    if len(shape.signatures) > signatures_max:
        raise InvalidCredential("more signatures than there were outputs")
    return signatures_from(shape.signatures)


def _states(shape: StatesJson, ys: Sequence[bytes]) -> tuple[ProofState, ...]:
    found = {entry.Y.lower(): entry.state for entry in shape.states}
    try:
        return tuple(found[y.hex()] for y in ys)
    except KeyError:
        raise InvalidCredential("the state of a proof is missing") from None


def _restored(shape: RestoreJson, outputs: Sequence[BlindedMessage]) -> dict[bytes, BlindSignature]:
    if len(shape.outputs) != len(shape.signatures) or len(shape.outputs) > len(outputs):
        raise InvalidCredential("restored outputs and signatures do not match")
    asked = {output.B_.hex(): output.B_ for output in outputs}
    pairs = zip(shape.outputs, shape.signatures, strict=True)
    try:
        return {asked[output.B_.lower()]: signature_from(signed) for output, signed in pairs}
    except KeyError:
        raise InvalidCredential("an output was restored that nobody asked for") from None


def _keysets_from(shape: KeysetsJson) -> dict[str, Keyset]:
    """The keysets we can read: some mints still list ids of before NUT-02, which nobody can use."""
    found: dict[str, Keyset] = {}
    for document in shape.keysets:
        keyset = _readable(document)
        if keyset is None:
            continue
        if keyset.id in found:
            raise InvalidCredential("two keysets have one id")
        found[keyset.id] = keyset
    return found


def _readable(document: KeysetJson) -> Keyset | None:
    try:
        return replace(keyset_from(document), keys={})
    except InvalidCredential:
        return None
