"""Studies, searches and final trainings of many runs on Ray. Only this package imports Ray."""

import os

QUIET = {  # Ray reads these when it is first imported; the user's own settings win
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(256 * 2**20),
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # paragraphs on lost processes, which get a line of ours
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # otherwise reports wait two seconds
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # for a pruned run to leave its process to the next
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches the driver
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # reports on progress have no score
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the driver prints one line
    "TUNE_WARN_THRESHOLD_S": "60",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
