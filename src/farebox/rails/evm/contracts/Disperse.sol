// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// Pays many recipients in one transaction. Whoever calls it pays with what he sends along or has
/// approved. An item that fails is told by its index and comes back to the caller; its neighbours
/// are paid. Nothing stays here between two transactions, and nobody has special rights.
contract Disperse {
    /// Item number `index` was not paid.
    event Failed(uint256 indexed index);

    error LengthsDiffer();
    error AmountsExceedValue();
    error TokenRefused();
    /// The token has kept a part of what was to be paid: it takes a fee on transfers.
    error TokenTakesFee();

    /// What one recipient may use up: enough to take ETH, too little to spoil it for the others.
    uint256 private constant STIPEND = 10_000;

    function payNative(address[] calldata to, uint256[] calldata amounts) external payable {
        if (to.length != amounts.length) revert LengthsDiffer();
        // Counted here, never read off our balance: a recipient that calls us in the midst of it
        // finds nothing of the others to take.
        uint256 left = msg.value;
        for (uint256 i = 0; i < to.length; ++i) {
            uint256 amount = amounts[i];
            if (amount > left) revert AmountsExceedValue();
            if (_send(to[i], amount)) left -= amount;
            else emit Failed(i);
        }
        if (left > 0 && !_sendAll(msg.sender, left)) revert AmountsExceedValue();
    }

    function payToken(address token, address[] calldata to, uint256[] calldata amounts) external {
        if (to.length != amounts.length) revert LengthsDiffer();
        uint256 total = 0;
        for (uint256 i = 0; i < amounts.length; ++i) total += amounts[i];
        uint256 before = _held(token);
        if (!_call(token, abi.encodeWithSelector(0x23b872dd, msg.sender, address(this), total)))
            revert TokenRefused(); // transferFrom
        if (_held(token) != before + total) revert TokenTakesFee();
        uint256 failed = 0;
        for (uint256 i = 0; i < to.length; ++i) {
            if (!_call(token, abi.encodeWithSelector(0xa9059cbb, to[i], amounts[i]))) {
                failed += amounts[i];
                emit Failed(i);
            }
        }
        if (failed > 0 && !_call(token, abi.encodeWithSelector(0xa9059cbb, msg.sender, failed)))
            revert TokenRefused();
        if (_held(token) != before) revert TokenTakesFee();
    }

    /// A call of a token that succeeded: some return nothing, some say false instead of failing.
    function _call(address token, bytes memory data) private returns (bool ok) {
        assembly {
            mstore(0, 1)
            ok := call(gas(), token, 0, add(data, 32), mload(data), 0, 32)
            if ok {
                switch returndatasize()
                case 0 { ok := gt(extcodesize(token), 0) }
                default { ok := and(gt(returndatasize(), 31), eq(mload(0), 1)) }
            }
        }
    }

    function _held(address token) private view returns (uint256 amount) {
        (bool ok, bytes memory told) =
            token.staticcall(abi.encodeWithSelector(0x70a08231, address(this))); // balanceOf
        if (!ok || told.length < 32) revert TokenRefused();
        return abi.decode(told, (uint256));
    }

    function _send(address to, uint256 amount) private returns (bool ok) {
        uint256 stipend = STIPEND;
        assembly { ok := call(stipend, to, amount, 0, 0, 0, 0) }
    }

    function _sendAll(address to, uint256 amount) private returns (bool ok) {
        assembly { ok := call(gas(), to, amount, 0, 0, 0, 0) }
    }
}
