"""Where the Jacobian is taken: one forward pass cut at the hook points and at the unembedding, and rows pulled back through it."""
