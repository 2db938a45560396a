"""The settings, one frozen type per section. Descriptions and defaults stand beside each."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from farebox.settings.bitcoin import BitcoinSettings
from farebox.settings.cards import PaypalSettings, StripeSettings
from farebox.settings.channels import ChannelsSettings
from farebox.settings.evm import EvmSettings
from farebox.settings.fields import (
    limit,
    optional,
    raw_tables,
    required,
    section,
    sections,
    setting,
)
from farebox.settings.rates import AssetRateSettings, RatesSettings
from farebox.settings.secrets import Secret
from farebox.settings.values import (
    ADDRESS,
    AMOUNT_MSAT,
    DATABASE,
    DESTINATION,
    DIRECTORY,
    FILE,
    FLAG,
    HEADERS,
    MEMO,
    NAME,
    ORIGIN,
    PATH_PREFIX,
    SECRET,
    URL,
    Address,
    choice,
    integer,
    many,
    seconds,
)

_DAY_S = 86_400
_YEAR_S = 366 * _DAY_S
_MIB = 1024 * 1024


class MintPolicy(enum.Enum):
    """What to do with tokens of a mint."""

    TRUSTED = "trusted"
    REFUSED = "refused"


class ForeignPolicy(enum.Enum):
    """What to do with tokens of a mint that no `[[mint]]` names."""

    REFUSE = "refuse"
    SWAP = "swap"


class MintUnit(enum.Enum):
    """The units of a mint that are accepted."""

    SAT = "sat"
    MSAT = "msat"


class LightningNodeKind(enum.Enum):
    """A kind of Lightning node."""

    LND = "lnd"
    CLN = "cln"
    LNBITS = "lnbits"


class Network(enum.Enum):
    """A Bitcoin network; its value is how invoices of it begin, after "ln"."""

    MAINNET = "bc"
    TESTNET = "tb"
    SIGNET = "tbs"
    SIMNET = "sb"
    REGTEST = "bcrt"


class ChangePolicy(enum.Enum):
    """A way to give change back."""

    SAME = "same"
    CHEAPEST = "cheapest"
    CREDIT = "credit"
    AGGREGATE = "aggregate"


class LogLevel(enum.Enum):
    """The least severity that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(enum.Enum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    """Where the books are kept."""

    url: Secret = setting(
        DATABASE,
        "The database: a file, or a PostgreSQL server for more than one process. A password is "
        "not written here: FAREBOX_DATABASE or FAREBOX_DATABASE_FILE may say all of it.",
        "sqlite:farebox.db",
    )

    @property
    def postgres(self) -> Secret | None:
        """The connection string, when the books are in PostgreSQL."""
        return None if self.url.reveal().startswith("sqlite:") else self.url


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """The door that callers come through."""

    listen: Address = setting(ADDRESS, "Where to listen.", "127.0.0.1:8080")
    public_url: str | None = optional(
        URL,
        "The address callers know us by, for the links in answers. Left out, they are relative, "
        "and where they cannot be (wallets, channels, providers) taken from `listen`.",
        "https://api.example.com",
    )
    cors_origins: tuple[str, ...] = setting(
        many(ORIGIN),
        'Pages of these origins may call from a browser; "*" is any. None: no page can read an '
        "answer.",
        [],
    )
    body_bytes_max: int = setting(
        integer(1, 1024 * _MIB), "The largest request body; a larger one is 413.", 10 * _MIB
    )
    bodies_bytes_max: int = setting(
        integer(1, 1024 * 1024 * _MIB),
        "The memory that the bodies of all requests under way share, each beyond its first 64 KiB; "
        "a request that finds none left is 503.",
        256 * _MIB,
    )
    header_bytes_max: int = setting(
        integer(8192, _MIB),
        "All request headers together. Tokens travel in a header: leave them room.",
        65_536,
    )
    requests_max: int = setting(
        integer(1, 100_000), "How many requests are served at the same time.", 1024
    )
    queue_max: int = setting(
        integer(0, 100_000), "How many more may wait for their turn; beyond that it is 503.", 1024
    )
    body_timeout_s: float = setting(
        seconds(3600), "How long a caller may take to send a request body.", 30
    )
    queue_timeout_s: float = setting(
        seconds(3600), "How long a request may wait for its turn; then it is 503.", 10
    )
    stop_grace_s: float = setting(
        seconds(3600),
        "How long running requests may go on after a stop signal; then they are cut and settled.",
        30,
    )
    drain_s: int = setting(
        integer(0, 3600),
        "How long requests are still taken after a stop signal while /readyz says that we stop: as "
        "long as a load balancer needs to notice.",
        0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """A service behind the gateway."""

    path: str = setting(
        PATH_PREFIX,
        "Requests whose path begins with this go here; of several, the longest match wins.",
        "/",
    )
    urls: tuple[str, ...] = required(
        many(URL, least=1),
        "Where the service is. The second is tried when the first is down, and so on.",
        ["http://127.0.0.1:11434"],
    )
    headers: Mapping[str, Secret] = setting(
        HEADERS,
        "Headers to set on each forwarded request. A key is best written as "
        '{ Authorization = { env = "UPSTREAM_KEY", prefix = "Bearer " } }.',
        {},
    )
    connect_timeout_s: float = setting(seconds(600), "How long a connection may take.", 5)
    first_byte_timeout_s: float = setting(
        seconds(3600), "How long the first byte of an answer may take.", 120
    )
    idle_timeout_s: float = setting(
        seconds(3600), "How long a stream may be silent between two chunks.", 60
    )
    models_refresh_s: int = setting(
        integer(0, _DAY_S),
        "How often models and prices are read again from /v1/models; 0 never reads them.",
        0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MintSettings:
    """A mint whose eCash tokens are known."""

    url: str = required(URL, "The address of the mint.", "https://mint.example.com")
    policy: MintPolicy = setting(
        choice(MintPolicy),
        "A trusted mint's tokens are money here. A refused one's never are, not even swapped.",
        "trusted",
    )
    units: tuple[MintUnit, ...] = setting(
        many(choice(MintUnit), least=1), "The units that are accepted.", ["sat"]
    )
    ceiling_msat: int = setting(
        AMOUNT_MSAT,
        "The most we are ready to hold at this mint, which could run away with it. A payment that "
        "would exceed it is refused.",
        "100000 sat",
        key="ceiling",
    )
    require_dleq: bool = setting(
        FLAG, "Refuse tokens that don't carry the mint's proof of its signature (NUT-12).", False
    )
    offline_max_msat: int = setting(
        AMOUNT_MSAT,
        "Tokens locked to our key are taken without asking the mint, and swapped later in batches; "
        "this is the most that may wait so, beside the ceiling. 0 sat takes none.",
        "0 sat",
        key="offline_max",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EcashSettings:
    """How eCash is received and returned."""

    foreign: ForeignPolicy = setting(
        choice(ForeignPolicy),
        "A token of a mint that is not listed: refuse it, or swap it into a trusted mint over "
        "Lightning (the payer bears the fees).",
        "refuse",
    )
    change: tuple[ChangePolicy, ...] = setting(
        many(choice(ChangePolicy), least=1),
        "How to give change, the first that is possible: by the same method, by the cheapest one, "
        "as account credit, or collected until it is worth returning.",
        ["same", "cheapest", "credit", "aggregate"],
    )
    small_change_msat: int = setting(
        AMOUNT_MSAT,
        "Change below this stays as account credit. 0 returns every unit.",
        "0 msat",
        key="small_change",
    )
    consolidate_proofs: int = setting(
        integer(2, 1000),
        "How many small proofs of a mint are gathered before they are swapped into larger ones.",
        64,
    )
    mint_timeout_s: float = setting(
        seconds(600), "How long a mint may take to answer; then the outcome is asked for.", 10
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningSettings:
    """A Lightning node of yours. Without a `url` there is none."""

    node: LightningNodeKind = setting(
        choice(LightningNodeKind), "What the node is; each is spoken to over its REST API.", "lnd"
    )
    url: str | None = optional(
        URL, "Where its REST API is. Left out, Lightning is not used.", "https://127.0.0.1:8080"
    )
    key: Secret | None = optional(
        SECRET,
        "What lets us in: LND's macaroon in hexadecimal (`lncli bakemacaroon info:read "
        "invoices:read invoices:write offchain:read offchain:write` prints one), Core Lightning's "
        "rune, or the admin key of a wallet at LNbits.",
        {"file": "lightning.key"},
    )
    invoice_key: Secret | None = optional(
        SECRET,
        "LNbits only: the wallet's invoice key, to hear of payments at once instead of asking.",
        {"env": "LNBITS_INVOICE_KEY"},
    )
    certificate: Path | None = optional(
        FILE,
        "The node's own TLS certificate, where no authority vouches for it (LND's tls.cert).",
        "tls.cert",
    )
    network: Network = setting(
        choice(Network), "The network its invoices are of: another one's are refused.", "bc"
    )
    name: str = setting(
        NAME, "What this node is called in the books. A new node gets a new name.", "main"
    )
    ceiling_msat: int = setting(
        AMOUNT_MSAT,
        "The most we are ready to hold on this node; no deposit is asked for that would exceed it.",
        "1000000 sat",
        key="ceiling",
    )
    deposit_min_msat: int = limit("deposit_min", "1 sat")
    deposit_max_msat: int = limit("deposit_max", "100000 sat")
    payout_min_msat: int = limit("payout_min", "1 sat")
    payout_max_msat: int = limit("payout_max", "100000 sat")
    invoice_expiry_s: int = setting(
        integer(60, 30 * _DAY_S), "How long an invoice of ours may be paid.", 3600
    )
    memo: str = setting(MEMO, "What a payer's wallet shows of an invoice of ours.", "Top-up")
    fee_base_msat: int = setting(
        AMOUNT_MSAT, "A payment's fees are at most this much …", "5 sat", key="fee_base"
    )
    fee_ppm: int = setting(
        integer(0, 1_000_000),
        "… and so many millionths of its amount. The receiver bears them.",
        5000,
    )
    timeout_s: float = setting(
        seconds(600), "How long the node may take to answer; then the outcome is asked for.", 15
    )
    pay_timeout_s: int = setting(
        integer(1, 600), "How long the node may look for a way to pay before it gives up.", 30
    )
    allowed: tuple[str, ...] = setting(
        many(DESTINATION),
        "Only these Lightning addresses and LNURLs are paid, no invoices and so no withdraw links. "
        "Left empty, everybody is.",
        [],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountsSettings:
    """Accounts and their keys."""

    keys_max: int = setting(
        integer(1, 1_000_000_000), "How many keys may exist; then no new ones are made.", 1_000_000
    )
    key_expiry_s: int = setting(
        integer(0, 10 * _YEAR_S),
        "How long a new key lives unless it says so itself; what is left then goes to its refund "
        "address. 0 is for ever.",
        0,
    )
    failures_max: int = setting(
        integer(1, 100_000), "Wrong keys from one address within the window; then it is 429.", 20
    )
    failures_window_s: int = setting(integer(1, _DAY_S), "That window.", 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What is written to standard error. Secrets never are."""

    level: LogLevel = setting(choice(LogLevel), "The least severity that is logged.", "info")
    format: LogFormat = setting(choice(LogFormat), "Lines for people, or for machines.", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """Metrics for Prometheus. They tell what you hold and earn."""

    listen: Address | None = optional(
        ADDRESS,
        "Where /metrics, /healthz and /readyz are served for your own programs; no stranger may "
        "reach it. Left out, there are no metrics.",
        "127.0.0.1:9464",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TracesSettings:
    """Traces of requests, operations and calls to mints, for OpenTelemetry."""

    endpoint: str | None = optional(
        URL,
        "Where spans are sent, by OTLP over HTTP; needs `pip install 'farebox[otel]'`. Left out, "
        "nothing is traced.",
        "http://127.0.0.1:4318/v1/traces",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the operator decides."""

    data_dir: Path = setting(
        DIRECTORY,
        "Where the books and the root key are kept. A relative path starts at this file.",
        "farebox-data",
    )
    database: DatabaseSettings = section(DatabaseSettings, "Where the books are kept.")
    gateway: GatewaySettings = section(GatewaySettings, "The door that callers come through.")
    upstreams: tuple[UpstreamSettings, ...] = sections(
        UpstreamSettings, "A service behind the gateway. Repeat it for each.", key="upstream"
    )
    mints: tuple[MintSettings, ...] = sections(
        MintSettings, "A mint whose eCash is accepted or refused. Repeat it for each.", key="mint"
    )
    ecash: EcashSettings = section(EcashSettings, "How eCash is received and returned.")
    lightning: LightningSettings = section(
        LightningSettings, "A Lightning node of yours, to be paid by invoice and to pay with."
    )
    bitcoin: BitcoinSettings = section(
        BitcoinSettings, "A Bitcoin wallet of yours, to be paid on the chain and to pay with."
    )
    evm: tuple[EvmSettings, ...] = sections(
        EvmSettings,
        "An EVM chain, to be paid in its coin and tokens and to pay in them. Repeat it for each.",
        key="evm",
    )
    stripe: StripeSettings = section(
        StripeSettings, "A Stripe account of yours, to be paid by card; needs `[rates]`."
    )
    paypal: PaypalSettings = section(
        PaypalSettings, "A PayPal account of yours, to be paid by it; needs `[rates]`."
    )
    channels: ChannelsSettings = section(
        ChannelsSettings,
        "Payment channels: one signed voucher pays for each request. Amounts are in sat or msat, "
        "whatever the channels' asset; in another than bitcoin they are worth what its [[rate]] "
        "says at the time.",
    )
    prices: tuple[Mapping[str, object], ...] = raw_tables(
        "A price. The first rule that matches counts; what none matches is refused, not free. "
        "All that a rule may say is in docs/pricing.md.",
        key="price",
        example={"path": "/v1/*", "per_request": "10 sat"},
    )
    rates: RatesSettings = section(
        RatesSettings, "What a bitcoin and other assets are worth, and what converting them costs."
    )
    asset_rates: tuple[AssetRateSettings, ...] = sections(
        AssetRateSettings,
        "What another asset than bitcoin and dollars is worth. Repeat it for each.",
        key="rate",
    )
    accounts: AccountsSettings = section(AccountsSettings, "Accounts and their keys.")
    log: LogSettings = section(LogSettings, "What is written to standard error.")
    metrics: MetricsSettings = section(MetricsSettings, "Metrics for Prometheus.")
    traces: TracesSettings = section(TracesSettings, "Traces for OpenTelemetry.")

    @property
    def database_path(self) -> Path | None:
        """The file the books are kept in; None when they are in PostgreSQL."""
        if self.database.postgres is not None:
            return None
        return self.data_dir / self.database.url.reveal().removeprefix("sqlite:")
