"""Searches of recipe fields."""
