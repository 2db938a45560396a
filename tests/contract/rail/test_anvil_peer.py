"""What later tests take for granted of anvil and of the tokens on it."""

from __future__ import annotations

import pytest

from tests.peers.anvil import CONTRACTS, Anvil, RpcError

SOMEBODY = "0x00000000000000000000000000000000000A11cE"


def test_tokens_have_the_decimals_and_manners_they_are_there_for(anvil: Anvil) -> None:
    payer = anvil.accounts[0]
    for name, decimals, arrives in (
        ("PlainToken", 18, 1_000),
        ("TetherLike", 6, 1_000),
        ("AuthorizedToken", 6, 1_000),
        ("FeeToken", 18, 990),
    ):
        token = anvil.deploy(CONTRACTS / f"{name}.sol")
        token.send("mint", payer, 5_000)
        anvil.mined(token.send("transfer", SOMEBODY, 1_000))
        assert token.call("decimals") == decimals
        assert token.call("balanceOf", SOMEBODY) == arrives
        returned = anvil.rpc(
            "eth_call",
            {"from": payer, "to": token.address, "data": token.data("transfer", SOMEBODY, 1)},
            "latest",
        )
        assert (returned == "0x") == (name == "TetherLike")


def test_a_reorganisation_takes_a_transaction_back(anvil: Anvil) -> None:
    before = anvil.balance(SOMEBODY)
    transaction = anvil.send(SOMEBODY, 7)
    anvil.mined(transaction)
    anvil.mine(2)
    assert anvil.balance(SOMEBODY) == before + 7
    anvil.reorganise(3)
    assert anvil.balance(SOMEBODY) == before
    assert anvil.receipt(transaction) is None


def test_a_paused_chain_keeps_transactions_waiting(anvil: Anvil) -> None:
    with anvil.paused():
        transaction = anvil.send(SOMEBODY, 7)
        assert anvil.receipt(transaction) is None
    assert anvil.mined(transaction)["status"] == "0x1"


def test_a_contract_sends_ether_without_a_log(anvil: Anvil) -> None:
    sender = anvil.deploy(CONTRACTS / "EtherSender.sol")
    before = anvil.balance(SOMEBODY)
    receipt = anvil.mined(sender.send("send", SOMEBODY, value=9))
    assert receipt["logs"] == []
    assert anvil.balance(SOMEBODY) == before + 9


def test_errors_are_told(anvil: Anvil) -> None:
    with pytest.raises(RpcError, match=r"not found|Method"):
        anvil.rpc("eth_nonsense")
