// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;

import {Token} from "./Balances.sol";

/// A token as most are: 18 decimals, `transfer` returns true.
contract PlainToken is Token {
    string public name = "Plain";
    string public symbol = "PLAIN";
    uint8 public constant decimals = 18;
}
