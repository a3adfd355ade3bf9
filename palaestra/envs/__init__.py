"""Environments: our own natively vectorised worlds, and the saved state of anyone's.

Importing this package makes the ids in `registration.WORLDS` known to Gymnasium.
"""

from palaestra.envs.registration import register

register()
