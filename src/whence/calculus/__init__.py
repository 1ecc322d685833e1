"""Derivatives of a problem: per-example gradients, Hessian products, retraining from an optimum."""
