"""The parts of an export: torch's exporters, names, dynamic shapes, and the proof against the module itself."""
