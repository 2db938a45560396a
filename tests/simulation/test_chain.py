"""The model of a chain does what the wallet that it stands for does, and what chains do."""

from __future__ import annotations

import inspect
from random import Random

from farebox.clock import ManualClock
from farebox.rails.bitcoin.wallet import Wallet
from tests.simulation.chain import ChainMoods, ModelChain, ModelWallet


def chain_of() -> ModelChain:
    return ModelChain(ManualClock(), ChainMoods(Random(1)), lambda _: None)


def test_the_models_wallet_is_called_as_the_real_one_is() -> None:
    names = ("info", "fee_rate", "broadcast", "sync", "build", "bump", "address", "script", "close")
    for name in names:
        real, model = (
            list(inspect.signature(getattr(one, name)).parameters.values())
            for one in (Wallet, ModelWallet)
        )
        assert [one.kind for one in real] == [one.kind for one in model], name
        assert len(real) == len(model), name


def test_what_is_unconfirmed_is_replaced_by_what_pays_more_and_by_nothing_else() -> None:
    chain = chain_of()
    first = chain.pay([("bcrt1house0", 9_000)], 500)
    assert not chain.accept(first)
    dearer = chain.pay([("bcrt1mine", 9_000)], 1_500, first.spends[0])
    cheaper = chain.pay([("bcrt1mine", 9_000)], 400, first.spends[0])
    assert "insufficient fee" in chain.accept(cheaper)
    assert not chain.accept(dearer)
    assert list(chain.pool) == [dearer.txid]
    chain.mine()
    assert "missingorspent" in chain.accept(chain.pay([("x", 1)], 9_000, first.spends[0]))


def test_a_branch_that_is_left_gives_its_payments_back_and_may_return() -> None:
    chain = chain_of()
    paid = chain.pay([("bcrt1house0", 9_000)], 500)
    chain.accept(paid)
    block = chain.mine()
    assert chain.view().txs[paid.txid] == block
    chain.moods.leaves_out = 1
    chain.reorganise(1)
    assert chain.view().txs[paid.txid] is None
    assert chain.tip.height == block.height + 1
    chain.return_to_left()
    assert chain.view().txs[paid.txid] == block
    assert chain.received_sat("bcrt1house0") == 9_000
