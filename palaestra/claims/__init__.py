"""Papers' claims as experiments, one file a paper. `CLAIMS` lists them; nothing is imported until it is asked for."""

CLAIMS = {
    "a2pr": "palaestra.claims.a2pr",
    "cocoa": "palaestra.claims.cocoa",
    "data-quality-il": "palaestra.claims.data_quality_il",
    "dataset-perspective": "palaestra.claims.dataset_perspective",
    "dual-rl": "palaestra.claims.dual_rl",
    "mex": "palaestra.claims.mex",
    "pmoe": "palaestra.claims.pmoe",
    "prdc": "palaestra.claims.prdc",
    "props": "palaestra.claims.props",
    "rlif": "palaestra.claims.rlif",
    "smore": "palaestra.claims.smore",
    "snapshotrl": "palaestra.claims.snapshotrl",
    "ss-orl": "palaestra.claims.ss_orl",
    "stop-regressing": "palaestra.claims.stop_regressing",
    "trajectory-weighting": "palaestra.claims.trajectory_weighting",
    "v-gps": "palaestra.claims.v_gps",
}
