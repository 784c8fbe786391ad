"""Where a prompt enters: one view of TransformerLens' model classes, prompts as token ids, attention patterns, loading."""
