"""Which parts of a model a prediction depends on: heads, edges, layers, neurons, features.

`kinds` finds the components (`sites`, `edges`, `features`), and `sources` computes the activations that replace theirs. `prediction` predicts the
effect of changing each component from backward passes, `runs` refines and measures these effects, `effects` is the result, and `names` names a
component. `against_measured` compares predictions with measurements; its result is an `agreement`. `flow_of_token` follows one token through
the heads; its result is a `token_flow`.
"""
