"""Ways to look at an `Attribution`. Views read results and never change them."""
