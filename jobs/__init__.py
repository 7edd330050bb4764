"""The jobs. Importing any of them has Ray, which is imported later, say less."""

import os

# What Ray says unasked and a user can do nothing about, or is told by the job in a line.
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about a default that is to change
    "RAY_COLOR_PREFIX": "0",  # of what it says of lost nodes, also into files
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # read when Ray is imported
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables: the job has a progress line of its own
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # tracebacks of each retry: the job tells what failed
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
os.environ |= QUIET | os.environ  # what its user has set stays
