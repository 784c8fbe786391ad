"""The computation of Jacobians.

`forward` runs the model once, cuts the graph at the hook points and at the unembedding (`cuts`), applies gradient rules (`rules`,
`under_rules`: a `ruled_pass` with those of norms, attention, MLPs and products), and returns a `Run` (`run`). `vjp` computes
vector-Jacobian products through it, in chunks of rows. `one_position` provides a scope with those of the position that it scores, and
`state` with the output of the model at this position.
"""
