"""The error that a job prints in one line."""


class UserError(Exception):
    """Wrong usage, or a place that cannot be reached. Printed as one line; exit code 2."""
