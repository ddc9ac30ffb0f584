"""``--workers N``: several processes that serve one address, and the parent that keeps them."""
