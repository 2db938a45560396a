"""Exchange rates from public price pages.

Promises: an answer is bounded in size and time, and a price is read digit by digit.
Never: a judgement about which price to believe; that is `farebox.pricing.rates`' to make.
"""
