"""EVM chains: deposits of tokens and ether to addresses of our own, payouts in both.

Promises: a transfer credits once, the account its address was made for; one that a reorganisation
takes back is reversed; chain, token and decimals are those the settings name, or nothing works.
Never: a credit for naming a public transaction; a key, mnemonic or node's address in an error or a
log.
"""
