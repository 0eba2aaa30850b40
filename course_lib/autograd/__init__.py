"""Automatic differentiation of our own: `scalar` for single numbers, `tensor` for arrays."""
