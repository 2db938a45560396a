// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;

import {Token} from "./Balances.sol";

/// 18 decimals; a hundredth of each transfer goes elsewhere. Its event names the whole value, so
/// only a balance tells what arrived.
contract FeeToken is Token {
    string public name = "Fee";
    string public symbol = "FEE";
    uint8 public constant decimals = 18;
    address public constant collector = address(0xFEE);

    function _move(address from, address to, uint256 value) internal override {
        uint256 fee = value / 100;
        balanceOf[from] -= value;
        balanceOf[to] += value - fee;
        balanceOf[collector] += fee;
        emit Transfer(from, to, value);
    }
}
