"""Models and prompts: a common view of TransformerLens' model classes, tokenization, attention patterns, and loading."""
