"""Where the Jacobian is taken.

`forward` runs the model once, cut at the hook points and at the unembedding (`cuts`), under gradient rules (`rules`, `under_rules`: a `ruled_pass`
through those of norms, attention, MLPs and products), and gives a `Run` (`run`). `vjp` takes the vector-Jacobian products through it, in chunks of rows. `one_position` hands a scope those of
the position that it scores, and `state` what it may look at.
"""
