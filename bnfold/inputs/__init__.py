"""Inputs for a model: samples of several kinds, the sizes it takes, the user's own."""
