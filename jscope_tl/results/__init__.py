"""What the entry points return: dataclasses with their text and their files."""
