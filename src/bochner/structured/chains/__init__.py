"""Chains and all that is asked of them."""
