"""Senses are bound in pairs."""
