"""Recipes that make what this repository ships: the tiny base model, its tokenizer and the demo's data."""
