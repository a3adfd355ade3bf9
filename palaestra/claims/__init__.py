"""Papers' claims as experiments, one file a paper. `CLAIMS` lists them; nothing is imported until it is asked for."""

CLAIMS = {
    "mex": "palaestra.claims.mex",
    "pmoe": "palaestra.claims.pmoe",
    "props": "palaestra.claims.props",
    "snapshotrl": "palaestra.claims.snapshotrl",
    "stop-regressing": "palaestra.claims.stop_regressing",
}
