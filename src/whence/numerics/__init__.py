"""Numerics that know no model: layouts of vectors, linear algebra, statistics."""
