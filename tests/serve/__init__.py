"""The server, judged by real clients."""
