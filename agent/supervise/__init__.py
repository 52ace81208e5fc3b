"""Processes that must outlive the agent: started detached, found again, watched by pidfd, and ended for good.

`base` says what a supervisor offers; `detached` does it with plain processes, for hosts without systemd; `processes`
reads /proc: who is who (pid and start time, so that a reused pid is never taken for ours) and who is left over.
"""
