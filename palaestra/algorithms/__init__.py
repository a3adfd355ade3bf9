"""Base algorithms, one file each, and the list of what an expression may name.

The list is `slug -> "module:function"`, the form of an entry point: third parties add to it through the entry-point
groups `palaestra.algorithms` and `palaestra.methods`. Nothing is imported until it is asked for.
"""

ALGORITHMS = {
    "td3": "palaestra.algorithms.td3:td3",
    "ddpg": "palaestra.algorithms.td3:ddpg",
    "sac": "palaestra.algorithms.sac:sac",
    "sac-discrete": "palaestra.algorithms.sac:sac_discrete",
    "dqn": "palaestra.algorithms.dqn:dqn",
}
VARIANTS = {
    "double": "palaestra.algorithms.dqn:double",
    "dueling": "palaestra.algorithms.dqn:dueling",
    "n-step": "palaestra.algorithms.experience:n_step",
    "prioritised": "palaestra.algorithms.experience:prioritised",
}
