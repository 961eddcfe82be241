"""Bundled query sets (JSON) and their data card (README.md)."""
