// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;

import {Token} from "./Balances.sol";

/// Calls whom it was told to call, whenever it is moved: a token that would be paid out twice.
contract HostileToken is Token {
    uint8 public constant decimals = 18;
    address private _target;
    bytes private _data;
    /// Whether its last call within a move came through.
    bool public came;
    /// How many calls it has made.
    uint256 public calls;

    function plan(address target, bytes calldata data) external {
        (_target, _data) = (target, data);
    }

    function _move(address from, address to, uint256 value) internal override {
        super._move(from, to, value);
        if (_target == address(0)) return;
        calls += 1;
        (came,) = _target.call(_data);
    }
}
