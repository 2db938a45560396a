// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;

import {Token} from "./Balances.sol";

/// 6 decimals; whoever runs it can stop it, block an address, or have it answer false instead of
/// moving anything. Anybody may: it is for tests.
contract GuardedToken is Token {
    string public name = "Guarded";
    string public symbol = "GRD";
    uint8 public constant decimals = 6;
    bool public paused;
    bool public lies;
    mapping(address => bool) public blocked;

    function setPaused(bool value) external {
        paused = value;
    }

    function setLies(bool value) external {
        lies = value;
    }

    function setBlocked(address who, bool value) external {
        blocked[who] = value;
    }

    function transfer(address to, uint256 value) external override returns (bool) {
        if (lies) return false;
        _move(msg.sender, to, value);
        return true;
    }

    function _move(address from, address to, uint256 value) internal override {
        require(!paused, "paused");
        require(!blocked[from] && !blocked[to], "blocked");
        super._move(from, to, value);
    }
}
