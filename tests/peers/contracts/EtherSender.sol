// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;

/// Passes on the ether it is called with: no log tells of it, and the transaction names another.
contract EtherSender {
    function send(address payable to) external payable {
        (bool is_sent,) = to.call{value: msg.value}("");
        require(is_sent, "not taken");
    }

    /// Passes it on inside of a call that fails: it has not happened, and this keeps it.
    function sendInVain(address payable to) external payable {
        try this.fail(to, msg.value) {} catch {}
    }

    function fail(address payable to, uint256 amount) external {
        (bool is_sent,) = to.call{value: amount}("");
        require(!is_sent, "undone");
    }
}
