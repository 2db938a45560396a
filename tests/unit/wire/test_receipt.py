"""A receipt is proven by the house's key alone, however many share its signature."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidInput
from farebox.signer import Signer
from farebox.wire import receipt
from tests.architecture.sources import ROOT

SIGNER = Signer(b"r" * 32)
KEY = SIGNER.public_key
DOCUMENTS = [b'{"charged_msat":%d}' % number for number in range(5)]


def signed(documents: list[bytes]) -> list[str]:
    root, paths = receipt.tree(documents)
    return receipt.encode(documents, SIGNER.sign(root), paths)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=70))
def test_each_of_many_is_proven_alone(documents: list[bytes]) -> None:
    for document, told in zip(documents, signed(documents), strict=True):
        assert receipt.check(told, KEY) == receipt.document_of(told) == document


def test_a_lone_receipt_needs_no_path_and_many_need_a_short_one() -> None:
    assert signed([b"one"])[0].endswith(".")
    path = signed([b"%d" % number for number in range(1_000)])[0].rpartition(".")[2]
    assert len(path) == 440, "ten steps of 33 bytes"


def test_no_other_document_key_or_path_is_believed() -> None:
    first, second, third = signed([b'{"charged_msat":1}', b'{"charged_msat":2}', b"{}"])
    document, signature, path = first.split(".")
    forged = base64.urlsafe_b64encode(b'{"charged_msat":0}').decode()
    wrong = [
        f"{forged}.{signature}.{path}",
        f"{document}.{signature}.",
        f"{document}.{signature}.{second.rpartition('.')[2]}",
        f"{third.partition('.')[0]}.{signature}.{path}",
        f"{document}.{signed([b'{}'])[0].split('.')[1]}.{path}",
    ]
    for text in wrong:
        with pytest.raises(InvalidInput):
            receipt.check(text, KEY)
    with pytest.raises(InvalidInput):
        receipt.check(first, Signer(b"s" * 32).public_key)


def test_a_node_of_the_tree_is_no_document() -> None:
    """What two leaves hash to must not pass for a leaf: leaves and nodes are hashed apart."""
    told = signed([b"a", b"b"])
    _, signature, path = told[0].split(".")
    sibling = base64.urlsafe_b64decode(path + "==")[1:]
    inner = base64.urlsafe_b64encode(b"a" + sibling).rstrip(b"=").decode()
    with pytest.raises(InvalidInput):
        receipt.check(f"{inner}.{signature}.", KEY)


def test_the_documented_check_needs_nothing_of_ours() -> None:
    page = (ROOT / "docs" / "receipts.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    for document, told in zip(DOCUMENTS, signed(DOCUMENTS), strict=True):
        assert names["check"](told, KEY.hex()) == document
        with pytest.raises(InvalidSignature):
            names["check"](told, Signer(b"s" * 32).public_key.hex())


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c.d", "!.!.!", "e30.e30.e30", "é.é.é"])
def test_what_is_no_receipt_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        receipt.document_of(text)


def test_a_path_has_an_end() -> None:
    long = base64.urlsafe_b64encode(b"\0" * 33 * 33).decode()
    with pytest.raises(InvalidInput):
        receipt.document_of(f"e30.e30.{long}")
