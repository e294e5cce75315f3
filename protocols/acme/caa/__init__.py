"""CAA (RFC 8659, with the parameters of RFC 8657): whether the owners of names let this CA certify them."""
