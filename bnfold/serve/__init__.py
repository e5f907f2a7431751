"""Serving: the Open Inference Protocol over a core that knows no transport."""
