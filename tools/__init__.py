"""What builds this repository and is not installed with emolab: the runner of notebooks and what it compares."""
