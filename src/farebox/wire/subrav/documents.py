"""SubRAVs as JSON objects, and the documents of a payee's endpoints.

Numbers travel as decimal strings in headers and pending proposals. The endpoints' own documents
write them as bare integers of any size, as lossless-json does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from farebox.errors import InvalidCredential
from farebox.wire.subrav import multibase
from farebox.wire.subrav.model import SIGNATURE_BYTES, SignedSubRAV, SubRAV

#: A u256 has at most 78 digits; longer text is refused before it is parsed.
_DIGITS_MAX = 78
_SIGNATURE_MAX_CHARS = 1 + (SIGNATURE_BYTES * 4 + 2) // 3

_T = TypeVar("_T")
#: payment-kit writes strings and reads numbers too.
Number = Annotated[int, msgspec.Meta(ge=0)] | Annotated[str, msgspec.Meta(max_length=_DIGITS_MAX)]


class SubRavJson(msgspec.Struct, frozen=True):
    """The seven fields of a SubRAV."""

    version: Number
    chainId: Number  # noqa: N815
    channelId: str  # noqa: N815
    channelEpoch: Number  # noqa: N815
    vmIdFragment: str  # noqa: N815
    accumulatedAmount: Number  # noqa: N815
    nonce: Number


class SignedSubRavJson(msgspec.Struct, frozen=True):
    """`{subRav, signature}`; the signature is multibase text."""

    subRav: SubRavJson  # noqa: N815
    signature: str


def convert(item: object, shape: type[_T], what: str) -> _T:
    """`item` read as `shape`, strictly. Raises InvalidCredential that shows no value of it."""
    try:
        return msgspec.convert(item, shape, strict=True)
    except (msgspec.ValidationError, RecursionError, OverflowError):
        raise InvalidCredential(f"the {what} does not have the fields it must have") from None


def read_number(value: int | str, what: str) -> int:
    """A decimal string, or a number, as an int. Raises InvalidCredential."""
    if isinstance(value, int):
        return value
    try:
        number = int(value) if len(value) <= _DIGITS_MAX else -1
    except ValueError:
        number = -1
    # Python reads more than one text as the same number; the wire has one.
    if number < 0 or str(number) != value:
        raise InvalidCredential(f"{what} is not a whole decimal number")
    return number


def sub_rav_from(shape: SubRavJson) -> SubRAV:
    """The SubRAV that a document stands for. Raises InvalidCredential."""
    return SubRAV(
        version=read_number(shape.version, "version"),
        chain_id=read_number(shape.chainId, "chainId"),
        channel_id=shape.channelId,
        channel_epoch=read_number(shape.channelEpoch, "channelEpoch"),
        vm_id_fragment=shape.vmIdFragment,
        accumulated_amount=read_number(shape.accumulatedAmount, "accumulatedAmount"),
        nonce=read_number(shape.nonce, "nonce"),
    )


def sub_rav_document(sub_rav: SubRAV) -> dict[str, str]:
    """The JSON object of a SubRAV, every number a string."""
    return {
        "version": str(sub_rav.version),
        "chainId": str(sub_rav.chain_id),
        "channelId": sub_rav.channel_id,
        "channelEpoch": str(sub_rav.channel_epoch),
        "vmIdFragment": sub_rav.vm_id_fragment,
        "accumulatedAmount": str(sub_rav.accumulated_amount),
        "nonce": str(sub_rav.nonce),
    }


def signed_from(shape: SignedSubRavJson) -> SignedSubRAV:
    """The voucher that a document stands for. Raises InvalidCredential."""
    signature = multibase.decode(shape.signature, _SIGNATURE_MAX_CHARS, "signature")
    return SignedSubRAV(sub_rav_from(shape.subRav), signature)


def signed_document(signed: SignedSubRAV) -> dict[str, Any]:
    """The JSON object of a voucher."""
    return {
        "subRav": sub_rav_document(signed.sub_rav),
        "signature": multibase.encode(signed.signature),
    }


# ── what a payee tells about itself ──────────────────────────────────────────────────────────────

WELL_KNOWN_PATH = "/.well-known/nuwa-payment/info"
DEFAULT_BASE_PATH = "/payment-channel"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """`GET /.well-known/nuwa-payment/info`. The price, in 10^-12 USD, is a hint."""

    service_id: str
    service_did: str
    network: str
    default_asset_id: str
    base_path: str = DEFAULT_BASE_PATH
    default_price_pico_usd: int | None = None

    def document(self) -> dict[str, Any]:
        """The bare JSON object, in no envelope."""
        document: dict[str, Any] = {
            "version": 1,
            "serviceId": self.service_id,
            "serviceDid": self.service_did,
            "network": self.network,
            "defaultAssetId": self.default_asset_id,
            "basePath": self.base_path,
        }
        if self.default_price_pico_usd is not None:
            document["defaultPricePicoUSD"] = str(self.default_price_pico_usd)
        return document


class _InfoJson(msgspec.Struct, frozen=True):
    version: int
    serviceId: str  # noqa: N815
    serviceDid: str  # noqa: N815
    network: str
    defaultAssetId: str  # noqa: N815
    basePath: str = DEFAULT_BASE_PATH  # noqa: N815
    defaultPricePicoUSD: Number | None = None  # noqa: N815


def parse_service_info(raw: bytes | str) -> ServiceInfo:
    """Read a payee's discovery document. Raises InvalidCredential."""
    shape = convert(multibase.read_json(raw, "discovery document"), _InfoJson, "discovery document")
    price = shape.defaultPricePicoUSD
    return ServiceInfo(
        service_id=shape.serviceId,
        service_did=shape.serviceDid,
        network=shape.network,
        default_asset_id=shape.defaultAssetId,
        base_path=shape.basePath,
        default_price_pico_usd=None if price is None else read_number(price, "price"),
    )


def success(data: object, timestamp: str) -> dict[str, Any]:
    """The envelope of an endpoint's answer; `timestamp` is RFC 3339 in UTC."""
    return {"success": True, "data": data, "timestamp": timestamp}


def failure(
    code: str, message: str, http_status: int, timestamp: str | None = None
) -> dict[str, Any]:
    """The envelope of a refusal. The 402 of a route has no timestamp, an endpoint's has."""
    document: dict[str, Any] = {
        "success": False,
        "error": {"code": code, "message": message, "httpStatus": http_status},
    }
    return document if timestamp is None else document | {"timestamp": timestamp}


def read_envelope(raw: bytes | str) -> Any:
    """`data` of a successful answer. Raises InvalidCredential for every other."""
    document = multibase.read_json(raw, "answer")
    if not isinstance(document, dict) or document.get("success") is not True:
        raise InvalidCredential("the answer tells of no success")
    return document.get("data")


def health(status: str, timestamp: str) -> dict[str, Any]:
    """`GET …/health`: whether payments can be taken."""
    return {
        "success": True,
        "status": status,
        "timestamp": timestamp,
        "paymentKitEnabled": True,
    }


def recovery(
    channel: dict[str, Any] | None,
    pending: SubRAV | None,
    sub_channel: dict[str, Any] | None,
    timestamp: str,
) -> dict[str, Any]:
    """`GET …/recovery`: what a payer that lost its state must know to go on."""
    return {
        "channel": channel,
        "pendingSubRav": None if pending is None else sub_rav_document(pending),
        "subChannel": sub_channel,
        "timestamp": timestamp,
    }


def read_recovered_proposal(raw: bytes | str) -> SubRAV | None:
    """The pending proposal of a recovery answer, or None. Raises InvalidCredential."""
    data = read_envelope(raw)
    pending = data.get("pendingSubRav") if isinstance(data, dict) else None
    return None if pending is None else sub_rav_from(convert(pending, SubRavJson, "proposal"))


def stored_voucher(signed: SignedSubRAV) -> dict[str, Any]:
    """`GET …/subrav?nonce=`: numbers bare, the signature as an object of its bytes by index.

    That shape is what JavaScript makes of a byte array by mistake, and what its readers expect.
    """
    sub_rav = signed.sub_rav
    return {
        "subRav": {
            "version": sub_rav.version,
            "chainId": sub_rav.chain_id,
            "channelId": sub_rav.channel_id,
            "channelEpoch": sub_rav.channel_epoch,
            "vmIdFragment": sub_rav.vm_id_fragment,
            "accumulatedAmount": sub_rav.accumulated_amount,
            "nonce": sub_rav.nonce,
        },
        "signature": {str(index): byte for index, byte in enumerate(signed.signature)},
    }


class _StoredJson(msgspec.Struct, frozen=True):
    subRav: SubRavJson  # noqa: N815
    signature: dict[str, Annotated[int, msgspec.Meta(ge=0, le=255)]]


def read_stored_voucher(raw: bytes | str) -> SignedSubRAV:
    """The voucher of a `/subrav` answer. Raises InvalidCredential."""
    return _stored_from(convert(read_envelope(raw), _StoredJson, "stored voucher"))


def _stored_from(shape: _StoredJson) -> SignedSubRAV:
    try:
        signature = bytes(shape.signature[str(index)] for index in range(SIGNATURE_BYTES))
    except KeyError:
        raise InvalidCredential("the stored voucher's signature lacks bytes") from None
    return SignedSubRAV(sub_rav_from(shape.subRav), signature)


def read_committed_voucher(document: object) -> SignedSubRAV:
    """`{subRav: voucher}`, its signature as text or as an object of bytes. InvalidCredential."""
    item = document.get("subRav") if isinstance(document, dict) else None
    signature = item.get("signature") if isinstance(item, dict) else None
    if isinstance(signature, dict):
        return _stored_from(convert(item, _StoredJson, "voucher"))
    return signed_from(convert(item, SignedSubRavJson, "voucher"))


def claim_triggered(
    channel_id: str, queued: Mapping[str, int], skipped: Mapping[str, str]
) -> dict[str, Any]:
    """`POST …/admin/claim-trigger`: what will be claimed by sub-channel, and what won't and why."""
    return {
        "channelId": channel_id,
        "queued": [{"vmIdFragment": name, "delta": delta} for name, delta in queued.items()],
        "skipped": [{"vmIdFragment": name, "reason": reason} for name, reason in skipped.items()],
    }


class ClaimTriggerJson(msgspec.Struct, frozen=True):
    """The body of `POST …/admin/claim-trigger`."""

    channelId: str  # noqa: N815
