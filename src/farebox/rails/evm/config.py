"""What the operator decides about being paid on one chain, and the chains that are known."""

from __future__ import annotations

from dataclasses import dataclass

from farebox.money import Asset
from farebox.payments.rail import Limits
from farebox.rails.evm.arrivals import Depth, TakenAsset
from farebox.rails.evm.gas import L1Fee
from farebox.rails.evm.payouts import PaidAsset


@dataclass(frozen=True, slots=True)
class Domain:
    """The EIP-712 domain of a token that takes signed transfers (EIP-3009)."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvmAsset:
    """An asset on a chain; `token` is its contract, empty for the chain's coin.

    `ceiling` is the most that is held of it there.
    """

    asset: Asset
    token: str
    deposits: Limits
    payouts: Limits | None
    depths: tuple[Depth, ...]
    ceiling: int | None = None
    keeps_part: bool = False
    domain: Domain | None = None

    @property
    def taken(self) -> TakenAsset:
        """As it is looked for."""
        return TakenAsset(self.asset.code, self.token, self.depths, self.keeps_part)

    @property
    def paid(self) -> tuple[PaidAsset, ...]:
        """As it is paid out; () where it is not."""
        if self.payouts is None:
            return ()
        return (PaidAsset(self.asset.code, self.token, self.payouts),)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvmConfig:
    """How we are paid on one chain. `name` is that of the method, and of the chain in the books.

    A chain without a block for `stale_after_s` counts as stopped. `poll_s` is between two looks.
    """

    name: str
    chain_id: int
    assets: tuple[EvmAsset, ...]
    expiry_s: int = 86_400
    poll_s: float = 4
    expected_s: int = 60
    stale_after_s: int = 600

    def of(self, code: str) -> EvmAsset | None:
        """One of its assets."""
        return next((one for one in self.assets if one.asset.code == code), None)


@dataclass(frozen=True, slots=True)
class Known:
    """A token that most people mean by its name."""

    asset: Asset
    contract: str
    domain: Domain | None = None


@dataclass(frozen=True, slots=True)
class Preset:
    """A public chain: `confirmations` are enough for everyday amounts, `block_s` is between two
    blocks. Nothing has ever vanished below `settled_blocks` there."""

    chain_id: int
    coin: Asset
    tokens: tuple[Known, ...]
    l1: L1Fee
    confirmations: int
    block_s: float
    settled_blocks: int

    def token(self, code: str) -> Known | None:
        """One of its tokens by its code."""
        return next((one for one in self.tokens if one.asset.code == code), None)


ETH, POL, WETH, DAI = (Asset(code, 18) for code in ("ETH", "POL", "WETH", "DAI"))
USDC, USDT = (Asset(code, 6) for code in ("USDC", "USDT"))
_USD_COIN = Domain("USD Coin", "2")

#: The contracts are those that Circle, Tether, Maker and the chains themselves publish.
PRESETS = {
    "ethereum": Preset(
        1,
        ETH,
        (
            Known(USDC, "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", _USD_COIN),
            Known(USDT, "0xdAC17F958D2ee523a2206206994597C13D831ec7"),
            Known(DAI, "0x6B175474E89094C44Da98b954EedeAC495271d0F"),
            Known(WETH, "0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2"),
        ),
        L1Fee.NONE,
        confirmations=6,
        block_s=12,
        settled_blocks=96,
    ),
    "polygon": Preset(
        137,
        POL,
        (
            Known(USDC, "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", _USD_COIN),
            Known(USDT, "0xc2132D05D31c914a87C6611C10748AEb04B58e8F"),
            Known(DAI, "0x8f3Cf7ad23Cd3CaDbD9735AFf958023239c6A063"),
            Known(WETH, "0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619"),
        ),
        L1Fee.NONE,
        confirmations=64,
        block_s=2,
        settled_blocks=512,
    ),
    "arbitrum": Preset(
        42_161,
        ETH,
        (
            Known(USDC, "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", _USD_COIN),
            Known(USDT, "0xFd086bC7CD5C481DCC9C85ebE478A1C0b69FCbb9"),
            Known(DAI, "0xDA10009cBd5D07dd0CeCc66161FC93D7c9000da1"),
            Known(WETH, "0x82aF49447D8a07e3bd95BD0d56f35241523fBab1"),
        ),
        L1Fee.ARBITRUM,
        confirmations=40,
        block_s=0.25,
        settled_blocks=5_000,
    ),
    "optimism": Preset(
        10,
        ETH,
        (
            Known(USDC, "0x0b2C639c533813f4Aa9D7837CAf62653d097Ff85", _USD_COIN),
            Known(USDT, "0x94b008aA00579c1307B0EF2c499aD98a8ce58e58"),
            Known(DAI, "0xDA10009cBd5D07dd0CeCc66161FC93D7c9000da1"),
            Known(WETH, "0x4200000000000000000000000000000000000006"),
        ),
        L1Fee.OP,
        confirmations=20,
        block_s=2,
        settled_blocks=900,
    ),
    "base": Preset(
        8_453,
        ETH,
        (
            Known(USDC, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", _USD_COIN),
            Known(DAI, "0x50c5725949A6F0c72E6C4a641F24049A917DB0Cb"),
            Known(WETH, "0x4200000000000000000000000000000000000006"),
        ),
        L1Fee.OP,
        confirmations=20,
        block_s=2,
        settled_blocks=900,
    ),
}
