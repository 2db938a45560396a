// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// Payment channels: collateral is locked once, vouchers promise a total, the newest pays for all.
///
/// A channel is the one between a payer, a payee and a token (the zero address: Ether). Its id holds
/// the chain and this contract, so a voucher is good here alone. Each sub-channel is one key, named
/// by a fragment, with a total of its own. A key that may sign stays so until the channel is closed.
///
///   NONE --open--> OPEN --requestClose--> CLOSING --close, challenge over--> CLOSED --open--> OPEN
///                    \______ close by the payee ______________________________/      (next epoch)
///
/// A closing channel pays vouchers as an open one does. With a new epoch every total begins at zero,
/// and vouchers of the old one are worth nothing.
///
/// There is no owner, no fee, no upgrade and no pause. Money leaves to the payee of a channel or to
/// its payer, to nobody else.
contract FareboxChannels {
    enum Status {
        NONE,
        OPEN,
        CLOSING,
        CLOSED
    }

    struct Channel {
        address payer;
        uint64 epoch;
        Status status;
        address payee;
        uint64 closesAt;
        address token;
        uint128 collateral;
    }

    struct SubChannel {
        address key;
        uint128 claimed;
        uint64 nonce;
        uint64 epoch;
    }

    struct Voucher {
        bytes32 channelId;
        uint64 epoch;
        string fragment;
        uint256 amount;
        uint64 nonce;
        bytes32 r;
        bytes32 s;
    }

    event Opened(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address token,
        uint64 epoch,
        uint256 arrived
    );
    event ToppedUp(bytes32 indexed channelId, uint256 arrived);
    event KeyAuthorized(bytes32 indexed channelId, string fragment, address key);
    event Claimed(
        bytes32 indexed channelId, uint64 epoch, string fragment, uint256 claimed, uint256 paid
    );
    event Closing(bytes32 indexed channelId, address indexed payee, uint64 epoch, uint64 closesAt);
    event Closed(bytes32 indexed channelId, address indexed payee, uint64 epoch, uint256 returned);

    error NotNow(Status status);
    error NotThePayer();
    error BadParty();
    error BadFragment();
    error BadKey();
    error BadVoucher();
    error BadSignature();
    error WrongValue();
    error NothingArrived();
    error TransferFailed();
    error Reentered();

    /// How long a payee may claim after its payer asked to close, in seconds.
    uint64 public constant CHALLENGE_PERIOD = 1 days;

    mapping(bytes32 channelId => Channel) public channels;
    mapping(bytes32 channelId => mapping(bytes32 fragmentHash => SubChannel)) private _subs;
    bool private transient _entered;

    bytes32 private constant _DOMAIN_TYPE = keccak256(
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    );
    bytes32 private constant _VOUCHER_TYPE = keccak256(
        "SubRAV(uint8 version,uint64 chainId,bytes32 channelId,uint64 channelEpoch,"
        "string vmIdFragment,uint256 accumulatedAmount,uint64 nonce)"
    );
    /// Half the order of secp256k1: a greater s is the same signature written another way.
    uint256 private constant _S_MAX =
        0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    modifier once() {
        if (_entered) revert Reentered();
        _entered = true;
        _;
        _entered = false;
    }

    // ── reading ──────────────────────────────────────────────────────────────────────────────────

    /// The one channel between these, whether it was ever opened or not.
    function channelIdOf(address payer, address payee, address token)
        public
        view
        returns (bytes32)
    {
        return keccak256(abi.encode(block.chainid, address(this), payer, payee, token));
    }

    /// A key, and what was claimed with it in the channel's present epoch. No key: all zero.
    function subChannel(bytes32 channelId, string calldata fragment)
        external
        view
        returns (SubChannel memory sub)
    {
        sub = _subs[channelId][keccak256(bytes(fragment))];
        uint64 epoch = channels[channelId].epoch;
        if (sub.epoch != epoch) (sub.claimed, sub.nonce, sub.epoch) = (0, 0, epoch);
    }

    // ── what a payer does ────────────────────────────────────────────────────────────────────────

    /// Open a channel and let a key sign; one that is open takes the amount as a top-up. A closed
    /// one opens again, in its next epoch, and this key may take the place of one that was lost.
    /// What counts is what arrived, not what was sent.
    function open(
        address payee,
        address token,
        uint256 amount,
        string calldata fragment,
        address key
    ) external payable once returns (bytes32 channelId) {
        if (payee == address(0) || payee == msg.sender || payee == address(this)) revert BadParty();
        channelId = channelIdOf(msg.sender, payee, token);
        Channel storage channel = channels[channelId];
        if (channel.status == Status.CLOSING) revert NotNow(channel.status);
        bool isAnew = channel.status == Status.CLOSED;
        if (isAnew) channel.epoch += 1;
        (channel.payer, channel.payee, channel.token) = (msg.sender, payee, token);
        channel.status = Status.OPEN;
        _authorize(channelId, fragment, key, isAnew);
        uint256 arrived = _collect(channel, amount);
        emit Opened(channelId, msg.sender, payee, token, channel.epoch, arrived);
    }

    /// Add to the collateral of an open channel. Whoever does gives it to the payer.
    function topUp(bytes32 channelId, uint256 amount) external payable once {
        Channel storage channel = channels[channelId];
        if (channel.status != Status.OPEN) revert NotNow(channel.status);
        emit ToppedUp(channelId, _collect(channel, amount));
    }

    /// Let one more key sign, on a sub-channel of its own.
    function authorize(bytes32 channelId, string calldata fragment, address key) external once {
        _ofPayer(channelId);
        _authorize(channelId, fragment, key, false);
    }

    /// Begin the challenge period.
    function requestClose(bytes32 channelId) external once {
        Channel storage channel = _ofPayer(channelId);
        channel.status = Status.CLOSING;
        channel.closesAt = uint64(block.timestamp) + CHALLENGE_PERIOD;
        emit Closing(channelId, channel.payee, channel.epoch, channel.closesAt);
    }

    // ── what anybody does for a payee ────────────────────────────────────────────────────────────

    /// Pay vouchers to their payees, whoever sends them: those of one payee and token, one after
    /// the other, in one transfer. One that was claimed before, or whose channel or epoch has ended,
    /// moves nothing and harms no other; one that the collateral does not cover is paid in part.
    function claim(Voucher[] calldata vouchers) external once {
        address payee;
        address token;
        uint256 owed;
        for (uint256 i = 0; i < vouchers.length; i++) {
            Channel storage channel = channels[vouchers[i].channelId];
            uint256 paid = _redeem(channel, vouchers[i]);
            if (paid == 0) continue;
            if (channel.payee != payee || channel.token != token) {
                _pay(token, payee, owed);
                (payee, token, owed) = (channel.payee, channel.token, 0);
            }
            owed += paid;
        }
        _pay(token, payee, owed);
    }

    /// Pay the last vouchers and give back the rest: the payee at any time, anybody else once the
    /// challenge period is over.
    function close(bytes32 channelId, Voucher[] calldata last) external once {
        Channel storage channel = channels[channelId];
        bool isOpen = channel.status == Status.OPEN || channel.status == Status.CLOSING;
        bool isOver = channel.status == Status.CLOSING && block.timestamp >= channel.closesAt;
        if (!isOpen || !(isOver || msg.sender == channel.payee)) revert NotNow(channel.status);
        uint256 owed;
        for (uint256 i = 0; i < last.length; i++) {
            if (last[i].channelId != channelId) revert BadVoucher();
            owed += _redeem(channel, last[i]);
        }
        uint256 rest = channel.collateral;
        (channel.status, channel.collateral, channel.closesAt) = (Status.CLOSED, 0, 0);
        emit Closed(channelId, channel.payee, channel.epoch, rest);
        _pay(channel.token, channel.payee, owed);
        _pay(channel.token, channel.payer, rest);
    }

    // ── steps ────────────────────────────────────────────────────────────────────────────────────

    function _ofPayer(bytes32 channelId) private view returns (Channel storage channel) {
        channel = channels[channelId];
        if (channel.payer != msg.sender) revert NotThePayer();
        if (channel.status != Status.OPEN) revert NotNow(channel.status);
    }

    function _authorize(
        bytes32 channelId,
        string calldata fragment,
        address key,
        bool mayReplace
    ) private {
        if (bytes(fragment).length == 0 || bytes(fragment).length > 255) revert BadFragment();
        SubChannel storage sub = _subs[channelId][keccak256(bytes(fragment))];
        if (sub.key == key && key != address(0)) return;
        if (key == address(0) || (sub.key != address(0) && !mayReplace)) revert BadKey();
        sub.key = key;
        emit KeyAuthorized(channelId, fragment, key);
    }

    /// Take a voucher off the collateral, and say what is to be paid for it.
    function _redeem(Channel storage channel, Voucher calldata voucher)
        private
        returns (uint256 paid)
    {
        bool isOpen = channel.status == Status.OPEN || channel.status == Status.CLOSING;
        if (!isOpen || voucher.epoch != channel.epoch) return 0;
        SubChannel storage sub = _subs[voucher.channelId][keccak256(bytes(voucher.fragment))];
        if (!_isSigned(voucher, sub.key)) revert BadSignature();
        uint256 claimed = sub.epoch == voucher.epoch ? sub.claimed : 0;
        if (voucher.amount <= claimed) return 0;
        paid = voucher.amount - claimed;
        if (paid > channel.collateral) paid = channel.collateral;
        if (paid == 0) return 0;
        uint64 nonce = sub.epoch == voucher.epoch ? sub.nonce : 0;
        // Whatever its nonce: who signed a small amount with a great one owes the great amount too.
        sub.nonce = voucher.nonce > nonce ? voucher.nonce : nonce;
        sub.epoch = voucher.epoch;
        claimed += paid;
        require(claimed <= type(uint128).max);
        sub.claimed = uint128(claimed);
        channel.collateral -= uint128(paid);
        emit Claimed(voucher.channelId, voucher.epoch, voucher.fragment, claimed, paid);
    }

    function _isSigned(Voucher calldata voucher, address key) private view returns (bool) {
        if (key == address(0) || uint256(voucher.s) > _S_MAX) return false;
        bytes32 voucherHash = keccak256(
            abi.encode(
                _VOUCHER_TYPE,
                uint8(1),
                uint64(block.chainid),
                voucher.channelId,
                voucher.epoch,
                keccak256(bytes(voucher.fragment)),
                voucher.amount,
                voucher.nonce
            )
        );
        // With the chain's number of now: after a fork that changes it, vouchers of old are void.
        bytes32 domainHash = keccak256(
            abi.encode(
                _DOMAIN_TYPE,
                keccak256("Farebox Channels"),
                keccak256("1"),
                block.chainid,
                address(this)
            )
        );
        bytes32 digest = keccak256(abi.encodePacked("\x19\x01", domainHash, voucherHash));
        // The wire's 64 bytes don't say which of the two points with this r was meant.
        return ecrecover(digest, 27, voucher.r, voucher.s) == key
            || ecrecover(digest, 28, voucher.r, voucher.s) == key;
    }

    function _collect(Channel storage channel, uint256 amount) private returns (uint256 arrived) {
        address token = channel.token;
        if (token == address(0)) {
            if (msg.value != amount) revert WrongValue();
            arrived = amount;
        } else {
            if (msg.value != 0) revert WrongValue();
            uint256 before = _balance(token);
            _call(
                token,
                abi.encodeWithSelector(0x23b872dd, msg.sender, address(this), amount) // transferFrom
            );
            arrived = _balance(token) - before;
        }
        if (arrived == 0) revert NothingArrived();
        require(arrived <= type(uint128).max);
        channel.collateral += uint128(arrived);
    }

    function _pay(address token, address to, uint256 amount) private {
        if (amount == 0) return;
        if (token == address(0)) {
            (bool isSent,) = to.call{value: amount}("");
            if (!isSent) revert TransferFailed();
        } else {
            _call(token, abi.encodeWithSelector(0xa9059cbb, to, amount)); // transfer
        }
    }

    /// A token's call: it says yes, or says nothing and is a contract.
    function _call(address token, bytes memory data) private {
        (bool isDone, bytes memory said) = token.call(data);
        if (!isDone) revert TransferFailed();
        bool isYes = said.length == 0 ? token.code.length != 0 : abi.decode(said, (bool));
        if (!isYes) revert TransferFailed();
    }

    function _balance(address token) private view returns (uint256) {
        (bool isDone, bytes memory said) =
            token.staticcall(abi.encodeWithSelector(0x70a08231, address(this))); // balanceOf
        if (!isDone || said.length < 32) revert TransferFailed();
        return abi.decode(said, (uint256));
    }
}
