"""What docs/pricing.md shows is what the code reads."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from farebox.pricing.book import DEFAULT_BOUNDS
from farebox.pricing.model import Component
from farebox.pricing.parse import parse_price, parse_rules

PAGE = (Path(__file__).parents[3] / "docs" / "pricing.md").read_text()


def test_the_example_rules_are_read() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    rules = parse_rules(tomllib.loads(example)["price"])
    assert len(rules) == 4
    assert rules[3].free


def test_the_short_texts_are_read() -> None:
    for text in re.findall(r"`([0-9.]+ (?:sat|msat|USD)[^`]*)`", PAGE):
        assert parse_price(text).prices


def test_every_component_and_bound_is_explained() -> None:
    for component in Component:
        assert f"`{component}`" in PAGE
    bounds = DEFAULT_BOUNDS
    for number in (bounds.max_output_tokens, bounds.overhead_tokens, bounds.image_tokens):
        assert f"{number:,}" in PAGE
    assert f"{bounds.max_input_tokens:,}" in PAGE
