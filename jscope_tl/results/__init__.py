"""The results of the entry points: dataclasses that print themselves and can be saved to files."""
