"""The doors: each turns its wire into the Request and Reply of ``wire.py``."""
