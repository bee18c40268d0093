"""Turning plaintext into stored bytes and back: chunking, hashing, compressing, sealing, and the keys for it. No I/O,
no clock.
"""
