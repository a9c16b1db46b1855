"""Text encoders on the host's own classes."""
