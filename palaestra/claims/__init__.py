"""Papers' claims as experiments, one file a paper. `CLAIMS` lists them; nothing is imported until it is asked for."""

CLAIMS = {
    "data-quality-il": "palaestra.claims.data_quality_il",
    "dataset-perspective": "palaestra.claims.dataset_perspective",
    "mex": "palaestra.claims.mex",
    "pmoe": "palaestra.claims.pmoe",
    "props": "palaestra.claims.props",
    "snapshotrl": "palaestra.claims.snapshotrl",
    "stop-regressing": "palaestra.claims.stop_regressing",
}
