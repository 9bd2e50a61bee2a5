"""The one error of reading checkpoints."""


class PriorError(ValueError):
    """A checkpoint is missing, incomplete, damaged or of another kind; the message names the file and the fix."""
