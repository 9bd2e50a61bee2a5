"""The one error of the diffusion mathematics."""


class DiffusionError(ValueError):
    """A value that diffusion/ cannot work with.

    Its message is one sentence in four parts: what happened with the actual value; what was expected; the fix; why.
    A plain message is all it holds, so it survives pickling between processes.
    """

    @classmethod
    def explained(cls, happened: str, *, expected: str, fix: str, why: str = "") -> "DiffusionError":
        """Compose the four parts: "`happened`; expected `expected`; `fix` (`why`)"."""
        reason = f" ({why})" if why else ""
        return cls(f"{happened}; expected {expected}; {fix}{reason}")
