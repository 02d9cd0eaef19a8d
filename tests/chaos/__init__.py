"""The stream under faults: real processes are killed, paused and cut off, then the log is asked what was lost."""
