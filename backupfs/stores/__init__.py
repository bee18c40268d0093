"""Where objects are kept: the port, its local implementation, and the file operations that everything durable goes
through.
"""
