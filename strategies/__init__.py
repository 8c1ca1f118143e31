"""Federated methods, one short file each; each says which paper it follows."""
