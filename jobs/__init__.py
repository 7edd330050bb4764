"""The jobs. Importing any of them sets variables that Ray, which is imported later, reads."""

import os
import tempfile

RAY_VARIABLES = {
    # Of a Ray that the job starts: by default its workers yield to any other process, and a worker
    # that shares its core with one gets 3 % of it.
    "RAY_worker_niceness": "0",
    # Seconds between two polls of Ray Train's controller. A worker that reports waits for the next
    # one: with the default of 2 s, no epoch would be shorter than about that.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # The rest turns off messages that a user cannot act on, or that the job reports in one line.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning about a future default
    "RAY_COLOR_PREFIX": "0",  # color codes in messages about lost nodes, even in files
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # read when Ray is imported
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables: the job has its own progress line
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials write their rows, each epoch once
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # jobs/interrupt.py: nothing of Tune's needs saving
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a traceback for each retry
    # Advice to save less often, on a slow storage.
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
if os.path.expanduser("~") == "~":  # the user has none, as in containers with arbitrary users
    os.environ["HOME"] = tempfile.gettempdir()  # read when Ray is imported
os.environ |= RAY_VARIABLES | os.environ  # what the user has set stays
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"  # read when Ray is imported; jobs/gan.py needs Train V2
