// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// Never deployed: run by `eth_call` in the place of one of our senders, to see what a transfer
/// would do before it is made.
contract Probe {
    /// What `to` would have more, and we less, after `token.transfer(to, amount)`.
    function tryTransfer(address token, address to, uint256 amount)
        external
        returns (uint256 arrived, uint256 left)
    {
        uint256 toBefore = _held(token, to);
        uint256 ourBefore = _held(token, address(this));
        (bool ok, bytes memory told) =
            token.call(abi.encodeWithSelector(0xa9059cbb, to, amount)); // transfer
        require(ok, "the token refuses");
        require(told.length == 0 || abi.decode(told, (bool)), "the token says no");
        return (_held(token, to) - toBefore, ourBefore - _held(token, address(this)));
    }

    function _held(address token, address who) private view returns (uint256) {
        (bool ok, bytes memory told) =
            token.staticcall(abi.encodeWithSelector(0x70a08231, who)); // balanceOf
        require(ok && told.length >= 32, "not a token");
        return abi.decode(told, (uint256));
    }
}
