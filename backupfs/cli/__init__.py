"""The command line: arguments, environment, secrets, output, exit codes. It decides nothing."""
