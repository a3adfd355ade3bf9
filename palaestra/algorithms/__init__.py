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
    "c51": "palaestra.algorithms.c51:c51",
    "qr-dqn": "palaestra.algorithms.qr_dqn:qr_dqn",
    "ppo": "palaestra.algorithms.ppo:ppo",
    "recurrent-ppo": "palaestra.algorithms.recurrent_ppo:recurrent_ppo",
    "bc": "palaestra.algorithms.bc:bc",
    "gaussian-bc": "palaestra.algorithms.bc:gaussian_bc",
    "percentile-bc": "palaestra.algorithms.bc:percentile_bc",
    "iql": "palaestra.algorithms.iql:iql",
    "iql-discrete": "palaestra.algorithms.iql:iql_discrete",
    "xql": "palaestra.algorithms.xql:xql",
    "td3-bc": "palaestra.algorithms.td3_bc:td3_bc",
    "decision-transformer": "palaestra.algorithms.decision_transformer:decision_transformer",
    "return-conditioned": "palaestra.algorithms.decision_transformer:return_conditioned",
    "rlpd": "palaestra.algorithms.rlpd:rlpd",
    "cql": "palaestra.algorithms.cql:cql",
    "cal-ql": "palaestra.algorithms.cql:cal_ql",
    "cql-discrete": "palaestra.algorithms.cql:cql_discrete",
}
VARIANTS = {
    "double": "palaestra.algorithms.dqn:double",
    "dueling": "palaestra.algorithms.dqn:dueling",
    "tuned-conservatism": "palaestra.algorithms.cql:tuned_conservatism",
    "n-step": "palaestra.algorithms.experience:n_step",
    "prioritised": "palaestra.algorithms.experience:prioritised",
    "prior-data": "palaestra.algorithms.experience:prior_data",
    "annealed-clip": "palaestra.algorithms.ppo:annealed_clip",
    "clipped-value": "palaestra.algorithms.ppo:clipped_value",
    "raw-advantage": "palaestra.algorithms.ppo:raw_advantage",
    "normalised-obs": "palaestra.algorithms.normalisation:normalised_obs",
    "normalised-reward": "palaestra.algorithms.normalisation:normalised_reward",
    "normalised-return": "palaestra.algorithms.normalisation:normalised_return",
    "shifted-reward": "palaestra.algorithms.normalisation:shifted_reward",
}
