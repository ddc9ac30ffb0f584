"""A registry on servers elsewhere, without the library that speaks to them (``sessions/redis.py``)."""
