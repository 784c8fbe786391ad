"""Through which parts of a model a prediction comes: heads, edges, layers, neurons, features.

`kinds` says where components are (`sites`, `edges`, `features`), `sources` what takes their place. `prediction` predicts what changing each
does, from backward rows, `runs` refines and measures that, `effects` holds it, `names` names a component. `against_measured` holds predictions
against measurements, in an `agreement`. `flow_of_token` follows one token through the heads, in a `token_flow`.
"""
