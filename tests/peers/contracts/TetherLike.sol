// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;

import {Balances} from "./Balances.sol";

/// 6 decimals, and nothing is returned from `transfer`, `transferFrom` and `approve`: as USDT does.
contract TetherLike is Balances {
    string public name = "Tether-like";
    string public symbol = "USDT";
    uint8 public constant decimals = 6;

    /// A standing allowance must be set to zero before it is set to another.
    function approve(address spender, uint256 value) external {
        require(value == 0 || allowance[msg.sender][spender] == 0, "not from one to another");
        _approve(spender, value);
    }

    function transfer(address to, uint256 value) external {
        _move(msg.sender, to, value);
    }

    function transferFrom(address from, address to, uint256 value) external {
        _moveFrom(from, to, value);
    }
}
