"""The one hash function of the formats: BLAKE2b (RFC 7693)."""

try:
    # It is what hashlib calls. hashlib itself loads OpenSSL first: 3 ms and 1 MiB at the start of each mount.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

__all__ = ["blake2b"]
