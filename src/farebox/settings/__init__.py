"""Settings: what the operator decides, read once at the start into frozen values.

Promises: a wrong setting stops the start with its dotted key, what was found and what is allowed;
every setting is described where it is declared, and the example file is made from that.
Never: a secret among the defaults, in a repr or in an error; a setting read by any room but
`bootstrap` and `cli`.
"""

from farebox.settings.bitcoin import BitcoinNetwork, BitcoinSettings, BitcoinSource
from farebox.settings.cards import CardCurrency, CardSettings, PaypalSettings, StripeSettings
from farebox.settings.channels import ChannelChain, ChannelsSettings
from farebox.settings.evm import EvmAssetSettings, EvmChain, EvmSettings
from farebox.settings.load import find_settings, load_settings
from farebox.settings.model import (
    AccountsSettings,
    ChangePolicy,
    DatabaseSettings,
    EcashSettings,
    ForeignPolicy,
    GatewaySettings,
    LightningNodeKind,
    LightningSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    MetricsSettings,
    MintPolicy,
    MintSettings,
    Network,
    Settings,
    TracesSettings,
    UpstreamSettings,
)
from farebox.settings.rates import AssetRateSettings, PricedIn, RatesSettings
from farebox.settings.render import render_default_settings, render_settings
from farebox.settings.secrets import Secret, create_root_key, read_root_key, read_secret_file
from farebox.settings.values import Address

__all__ = [
    "AccountsSettings",
    "Address",
    "AssetRateSettings",
    "BitcoinNetwork",
    "BitcoinSettings",
    "BitcoinSource",
    "CardCurrency",
    "CardSettings",
    "ChangePolicy",
    "ChannelChain",
    "ChannelsSettings",
    "DatabaseSettings",
    "EcashSettings",
    "EvmAssetSettings",
    "EvmChain",
    "EvmSettings",
    "ForeignPolicy",
    "GatewaySettings",
    "LightningNodeKind",
    "LightningSettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "MetricsSettings",
    "MintPolicy",
    "MintSettings",
    "Network",
    "PaypalSettings",
    "PricedIn",
    "RatesSettings",
    "Secret",
    "Settings",
    "StripeSettings",
    "TracesSettings",
    "UpstreamSettings",
    "create_root_key",
    "find_settings",
    "load_settings",
    "read_root_key",
    "read_secret_file",
    "render_default_settings",
    "render_settings",
]
