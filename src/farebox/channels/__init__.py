"""Payment channels: one signed voucher pays for each request, and no two of them touch a chain.

Promises: a payer owes for one request per sub-channel at most; a voucher is taken once and never
lost; what is proposed is stored before it is told; nothing is served that a rule doesn't price, a
signature doesn't prove or a collateral doesn't cover; a payer signs only what follows from its last
voucher and a cost within its limits.
Never: HTTP, a chain's own library, a key that is not given to it.

`processor` is the way through for a payee, `payer` for a payer; `weighing` decides, `postings` says
what it does to the books, `chain` is the port to where channels are backed.
"""

from __future__ import annotations

from farebox.channels.billing import (
    BillingContext,
    BillingContextBuilder,
    BillingEngine,
    BillingRule,
    CostCalculator,
    FinalCost,
    FixedRates,
    PaymentUtils,
    PerRequest,
    PerToken,
    RateProvider,
)
from farebox.channels.chain import (
    ChannelInfo,
    ChannelStatus,
    ClaimUnderway,
    PayeeContract,
    PayerContract,
)
from farebox.channels.claims import ClaimPolicy, ClaimScheduler
from farebox.channels.closing import CooperativeClose
from farebox.channels.codecs import HttpPaymentCodec, McpPaymentCodec, PaymentCodec
from farebox.channels.ledger_chain import LEDGER_CHANNEL, LedgerContract, ledger_channel_id
from farebox.channels.model import (
    CHANNEL_CLOSE,
    SUB_CHANNEL,
    PaymentErrorCode,
    PaymentProcessingResult,
    PaymentProcessingStats,
    RequestMetadata,
    VerificationResult,
)
from farebox.channels.payee import CreditPolicy, PaymentChannelPayeeClient
from farebox.channels.payer import (
    PAYER_SUB_CHANNEL,
    PaymentChannelPayerClient,
    SignSubRAVOptions,
    SpendingLimits,
)
from farebox.channels.pending import PendingSubRAVStats, PendingSubRAVStore
from farebox.channels.processor import Admission, PaymentProcessor, PaymentProcessorConfig
from farebox.channels.rules import load_rules, parse_rules
from farebox.channels.tools import PaidToolResult, call_paid_tool

#: What a book must know to hold channels.
RECORDS = (SUB_CHANNEL, PAYER_SUB_CHANNEL, LEDGER_CHANNEL, CHANNEL_CLOSE)

__all__ = [
    "CHANNEL_CLOSE",
    "LEDGER_CHANNEL",
    "PAYER_SUB_CHANNEL",
    "RECORDS",
    "SUB_CHANNEL",
    "Admission",
    "BillingContext",
    "BillingContextBuilder",
    "BillingEngine",
    "BillingRule",
    "ChannelInfo",
    "ChannelStatus",
    "ClaimPolicy",
    "ClaimScheduler",
    "ClaimUnderway",
    "CooperativeClose",
    "CostCalculator",
    "CreditPolicy",
    "FinalCost",
    "FixedRates",
    "HttpPaymentCodec",
    "LedgerContract",
    "McpPaymentCodec",
    "PaidToolResult",
    "PayeeContract",
    "PayerContract",
    "PaymentChannelPayeeClient",
    "PaymentChannelPayerClient",
    "PaymentCodec",
    "PaymentErrorCode",
    "PaymentProcessingResult",
    "PaymentProcessingStats",
    "PaymentProcessor",
    "PaymentProcessorConfig",
    "PaymentUtils",
    "PendingSubRAVStats",
    "PendingSubRAVStore",
    "PerRequest",
    "PerToken",
    "RateProvider",
    "RequestMetadata",
    "SignSubRAVOptions",
    "SpendingLimits",
    "VerificationResult",
    "call_paid_tool",
    "ledger_channel_id",
    "load_rules",
    "parse_rules",
]
