"""Query sets, texts, ratings and vectors that come with the package, and their card (README.md)."""

from pathlib import Path

FOLDER = Path(__file__).parent
