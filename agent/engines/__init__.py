"""Database engines: made, started, stopped, replicated and looked at, never judged.

`base` is what the agent asks of any engine; each make has a package of its own below it. `tools` runs the engines' own
programs with a deadline, `files` writes what belongs to the engine's user. What to do is decided in `agent.ha` alone.
"""
