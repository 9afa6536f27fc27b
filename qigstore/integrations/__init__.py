"""Joins to frameworks, each a module that is imported by its own name and needs that framework."""
