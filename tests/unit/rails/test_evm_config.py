"""EVM chains as the settings say them: what is known of each, and what is refused at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eth_utils.address import is_checksum_address

from farebox.bootstrap.evm import config_of, keys_of, tree_of
from farebox.errors import InvalidSettings
from farebox.rails.evm.arrivals import FINALIZED, Depth
from farebox.rails.evm.config import PRESETS
from farebox.settings import EvmChain, EvmSettings, load_settings
from farebox.wire.bip32 import write_public

MNEMONIC = "test test test test test test test test test test test junk"
#: Of that mnemonic at m/44'/60'/0'/0/0, as every wallet has it.
SENDER = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


def chain(**said: object) -> EvmSettings:
    """The chain that a table of the settings describes."""
    table = {"name": "base", "chain": "base", "url": "http://n", "key": MNEMONIC, **said}
    return load_settings(None, {}, {"evm": [table]}).evm[0]


def started(said: dict[str, Any]) -> None:
    """What a start makes of a chain."""
    found = chain(**said)
    keys_of(found)
    config_of(found)


def test_the_known_chains_are_all_there_with_contracts_that_are_typed_right() -> None:
    assert set(PRESETS) == {one.value for one in EvmChain} - {"custom"}
    assert len({one.chain_id for one in PRESETS.values()}) == len(PRESETS)
    for preset in PRESETS.values():
        assert all(is_checksum_address(one.contract) for one in preset.tokens)
        assert {"USDC", "WETH"} <= {one.asset.code for one in preset.tokens}


def test_a_known_chain_needs_an_address_and_a_key() -> None:
    config = config_of(chain())
    assert config.chain_id == 8_453
    assert [one.asset.code for one in config.assets] == ["ETH", "USDC", "DAI", "WETH"]
    usdc = config.of("USDC")
    assert usdc is not None
    assert (usdc.asset.scale, usdc.deposits.least, usdc.deposits.most) == (6, 10**6, 10**10)
    assert usdc.domain is not None
    assert usdc.depths == (Depth(0, PRESETS["base"].confirmations),)
    eth = config.of("ETH")
    assert eth is not None
    assert eth.deposits.least == 10**15


def test_what_is_said_of_an_asset_counts() -> None:
    said = {
        "asset": "USDC",
        "deposit_min": "0.50",
        "ceiling": "7",
        "confirmations": ["3 from 0", "finalized from 1000.5"],
    }
    (usdc,) = config_of(chain(asset=[said])).assets
    assert (usdc.deposits.least, usdc.ceiling) == (500_000, 7_000_000)
    assert usdc.depths == (Depth(0, 3), Depth(1_000_500_000, FINALIZED))
    assert [usdc.taken.depth(one) for one in (1, 1_000_500_000)] == [3, FINALIZED]


def test_deposits_may_be_taken_with_a_public_key_alone() -> None:
    keys = keys_of(chain())
    assert keys.addresses == (SENDER,)
    assert keys.can_sweep
    from farebox.rails.evm.keys import deposit_key

    xpub = write_public(deposit_key(MNEMONIC))
    watching = chain(key="0x" + "11" * 32, deposit_key=xpub)
    assert not keys_of(watching).can_sweep
    assert tree_of(watching).address(7) == tree_of(chain()).address(7)


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ({"chain_id": 1}, "evm.base.chain_id"),
        ({"chain": "custom"}, "evm.base.chain_id"),
        ({"key": "0x" + "11" * 32}, "evm.base.deposit_key"),
        ({"asset": [{"asset": "FOO"}]}, "evm.base.asset.FOO.contract"),
        (
            {"asset": [{"asset": "FOO", "contract": "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB49"}]},
            "evm.base.asset.FOO.contract",
        ),
        ({"asset": [{"asset": "USDC", "payout_min": "3", "payout_max": "2"}]}, "payout_min"),
        ({"asset": [{"asset": "USDC", "confirmations": ["3 from 1"]}]}, "confirmations"),
        ({"asset": [{"asset": "USDC", "confirmations": ["0 from 1"]}]}, "confirmations"),
        ({"asset": [{"asset": "USDC"}, {"asset": "USDC"}]}, "evm.base.asset"),
        ({"name": "Base"}, "name"),
        ({"deposit_key": "xpub1"}, "evm.base.deposit_key"),
        ({"key": "zoo " * 12}, "evm.base"),
    ],
)
def test_what_is_wrong_stops_the_start_with_its_name(said: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidSettings) as raised:
        started(said)
    assert key in raised.value.key
    for secret in (MNEMONIC, "11" * 32, "zoo zoo"):
        assert secret not in str(raised.value)


@pytest.mark.parametrize("name", ["key", "deposit_key"])
def test_a_key_does_not_stand_in_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "farebox.toml"
    path.write_text(f'[[evm]]\nname = "base"\nurl = "http://n"\n{name} = "{MNEMONIC}"\n')
    with pytest.raises(InvalidSettings) as raised:
        load_settings(path, {}, {})
    assert (raised.value.key, MNEMONIC in str(raised.value)) == (f"evm.{name}", False)
