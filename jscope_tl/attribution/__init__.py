"""The entry points (`attribute`, `attribute_batch`, `influence_pattern`, `jacobian`, `spectrum`) and the setup that they share."""
