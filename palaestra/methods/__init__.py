"""Papers' methods, one file a paper, in a folder a family; listed as in `palaestra.algorithms`."""

METHODS: dict[str, str] = {
    "snapshotrl": "palaestra.methods.curriculum.snapshotrl:snapshotrl",
    "snapshotrl-classified": "palaestra.methods.curriculum.snapshotrl:snapshotrl_classified",
    "snapshotrl-truncated": "palaestra.methods.curriculum.snapshotrl:snapshotrl_truncated",
    "snapshotrl-uniform": "palaestra.methods.curriculum.snapshotrl:snapshotrl_uniform",
    "pmoe": "palaestra.methods.online.pmoe:pmoe",
    "props": "palaestra.methods.online.props:props",
    "robust-on-policy-sampling": "palaestra.methods.online.props:robust_on_policy_sampling",
    "stop-regressing": "palaestra.methods.online.stop_regressing:stop_regressing",
    "two-hot": "palaestra.methods.online.stop_regressing:two_hot",
    "mex": "palaestra.methods.exploration.mex:mex",
    "mex-without-baseline": "palaestra.methods.exploration.mex:mex_without_baseline",
}
