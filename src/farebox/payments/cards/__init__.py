"""Card money: what a card provider has to do for us, and its answers in words of no provider.

Promises: a definite no is told apart from an answer that was lost, and says what it leaves to be
tried; nothing is tried elsewhere while an answer is unknown. Never: a card's number.
"""
