"""`farebox demo`: the whole story on loopback, with play money and nothing but the package."""
