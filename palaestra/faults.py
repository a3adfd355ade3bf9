"""What stops a run that is not a mistake in its arguments: numbers that are not finite, environments that
raise, rewards that are no numbers.
"""


class NotFinite(ArithmeticError):
    """An observation, a reward, an action, a loss or a parameter is NaN or infinite; the message says which."""


class EnvironmentFailed(RuntimeError):
    """An environment raised in `reset` or `step`; the message says what, in which copy, at which step."""


class RewardFailed(ValueError):
    """A reward raised, or gave anything but one finite number an answer; the message says which, at which row."""
