// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;

/// Passes on the ether it is called with: no log tells of it, and the transaction names another.
contract EtherSender {
    function send(address payable to) external payable {
        (bool is_sent,) = to.call{value: msg.value}("");
        require(is_sent, "not taken");
    }
}
