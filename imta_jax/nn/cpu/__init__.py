"""Forms of the network's operations that exist only because CPUs need them."""
